"""Ranks and nodes that die while others go on: torchrun starts them again, and nothing is lost but time."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from largebatch.train import checkpoint
from largebatch.train.checkpoint import Progress
from train.test_loop import training
from train.test_processes import RECIPE, environment, kill_all, ledger, run, train_losses, wait_for_steps
from train.toy import toy

pytestmark = pytest.mark.slow


@contextmanager
def torchrun(
    out: Path, name: str, launcher: tuple[str, ...], words: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    """Start an agent in a session of its own; at the end nothing of it is left."""
    logs = (out.parent / f"{name}.out").open("w")
    command = [sys.executable, "-m", "torch.distributed.run", f"--log-dir={out.parent / name}", *launcher]
    process = subprocess.Popen(
        [*command, "-m", "largebatch", "train", RECIPE, "--out", str(out), *words],
        env=environment(),
        stdout=logs,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kill_all(out)
        logs.close()


def _children(process: subprocess.Popen[str]) -> list[int]:
    """Return the ranks that an agent has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == process.pid and b"largebatch" in words:
                found.append(int(folder.name))
    return found


LONG = ("--steps", "192", "--pause-seconds", "0.02", "--dropout", "0.3", "--keep-checkpoints", "5")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_ranks_that_are_killed_at_random_change_nothing(tmp_path: Path, sharding: str) -> None:
    words = (*LONG, "--sharding", sharding)
    whole = run(tmp_path / "whole", *words, ranks=4)
    assert whole.returncode == 0, whole.stderr
    out, draw = tmp_path / "run", random.SystemRandom()
    with torchrun(out, "agent", ("--standalone", "--nproc-per-node=4", "--max-restarts=9"), words) as process:
        for strike in range(5):
            wait_for_steps(out, 30 * (strike + 1), process)
            time.sleep(draw.uniform(0, 0.4))
            victim = draw.choice(_children(process))
            os.kill(victim, signal.SIGKILL)
            deadline = time.monotonic() + 100
            while victim in _children(process) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert process.wait(timeout=400) == 0, (tmp_path / "agent.out").read_text()[-3000:]
    assert ledger(out) == ledger(tmp_path / "whole")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.timeout(900)
def test_a_node_that_is_lost(tmp_path: Path) -> None:
    words = ("--steps", "92", "--pause-seconds", "0.05", "--sharding", "fsdp")
    whole = run(tmp_path / "whole", *words[:2])
    assert whole.returncode == 0, whole.stderr
    out, endpoint = tmp_path / "run", f"127.0.0.1:{_free_port()}"
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=nodes", "--max-restarts=9")
    rendezvous += ("--nnodes=1:2", "--nproc-per-node=1", "--local-addr=127.0.0.1")
    conf = "--rdzv-conf=last_call_timeout=10,is_host="
    with torchrun(out, "first", (*rendezvous, f"{conf}1"), words) as first:
        with torchrun(out, "second", (*rendezvous, f"{conf}0"), words) as second:
            wait_for_steps(out, 12, first)
            ranks = _children(second)
            assert len(ranks) == 1, "both nodes train"
            steps = len(train_losses(out))
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            os.killpg(second.pid, signal.SIGKILL)
            assert first.wait(timeout=400) == 0, (tmp_path / "first.out").read_text()[-3000:]
    assert steps < 100, "the node was lost too late to show anything"
    assert train_losses(out) == pytest.approx(train_losses(tmp_path / "whole"), rel=1e-5)


_SAVING = """
import sys
from pathlib import Path
from train.test_loop import ALONE, training
from train.toy import toy
from largebatch.train import checkpoint
from largebatch.train.checkpoint import Progress
folder = Path(sys.argv[1])
trained = training(toy(), folder)
trained.optimizer.init_state()
for step in range(int(sys.argv[2]), 100_000):
    checkpoint.save(folder, trained.model, trained.optimizer, Progress(step=step), step, 2, ALONE)
    print(step, flush=True)
"""


def test_fifty_kills_while_checkpoints_are_written(tmp_path: Path) -> None:
    trained = training(toy(), tmp_path / "other")
    trained.optimizer.init_state()
    draw, last, interrupted = random.SystemRandom(), 0, 0
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVING, str(tmp_path), str(last + 1)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        seen = int(process.stdout.readline())
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        told = process.communicate()[0].split()
        seen = int(told[-1]) if told else seen
        interrupted += any((tmp_path / "checkpoints").glob("*.partial"))
        found = checkpoint.load_newest(tmp_path, trained.model, trained.optimizer, pytest.fail)
        assert found is not None
        assert found in ((Progress(step=seen), seen), (Progress(step=seen + 1), seen + 1))
        last = found[0].step
    assert interrupted > 5, "kills that never met a checkpoint being written show nothing"
