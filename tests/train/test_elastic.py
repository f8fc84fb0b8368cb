"""Ranks and nodes that die while others go on: torchrun starts them again, and nothing is lost but time."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from train.test_processes import (
    RECIPE,
    environment,
    kill_all,
    ledger,
    run,
    running,
    session,
    train_losses,
    wait_for_steps,
)

pytestmark = pytest.mark.slow


@contextmanager
def torchrun(
    out: Path, name: str, launcher: tuple[str, ...], words: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    """Start an agent; at the end neither it nor its ranks are left."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--log-dir={out.parent / name}", *launcher]
    command += ["-m", "largebatch", "train", RECIPE, "--out", str(out), *words]
    with (out.parent / f"{name}.out").open("w") as logs:
        try:
            with session(command, stdout=logs, stderr=subprocess.STDOUT) as process:
                yield process
        finally:
            kill_all(out)


def _children(process: subprocess.Popen[str]) -> list[int]:
    """Return the ranks that an agent has started."""
    found = []
    for number, words in running():
        with suppress(OSError, IndexError):
            parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"largebatch" in words:
                found.append(number)
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


def test_a_signal_to_one_rank_saves_on_all(tmp_path: Path) -> None:
    out, words = tmp_path / "run", ("--pause-seconds", "0.05", "--sharding", "fsdp")
    with torchrun(out, "agent", ("--standalone", "--nproc-per-node=3"), words) as process:
        wait_for_steps(out, 4, process)
        os.kill(random.SystemRandom().choice(_children(process)), signal.SIGTERM)
        assert process.wait(timeout=100) == 0, (tmp_path / "agent.out").read_text()[-3000:]
    steps = len(train_losses(out))
    assert 4 <= steps < 20
    assert (out / "stopped.json").exists()
    assert (out / "checkpoints" / f"step-{steps:09d}").is_dir()


_KILLS = """
import os
import random
import signal
import sys
import time
from pathlib import Path
from train.test_loop import ALONE, training
from train.toy import toy
from largebatch.train import checkpoint
from largebatch.train.checkpoint import Progress
from largebatch.train.checkpoint_writer import CheckpointWriter

folder = Path(sys.argv[1])
trained = training(toy(), folder)
trained.optimizer.init_state()
draw, last, interrupted = random.SystemRandom(), 0, 0

def save_for_ever(told):
    writer = CheckpointWriter(folder, 2, ALONE)
    for step in range(last + 1, 1_000_000):
        writer.begin(trained.model, trained.optimizer, Progress(step=step), step)
        writer.finish()
        os.write(told, b"%d\\n" % step)

def damaged(sentence):
    raise AssertionError(sentence)

for _ in range(50):
    reading, telling = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(telling)
    os.close(telling)
    words = os.read(reading, 4096)
    time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 4096):
        words += more
    os.close(reading)
    seen = int(words.split()[-1])
    interrupted += any((folder / "checkpoints").glob("*.partial"))
    found = checkpoint.load_newest(folder, trained.model, trained.optimizer, damaged)
    assert found in ((Progress(step=seen), seen), (Progress(step=seen + 1), seen + 1)), (found, seen)
    last = found[0].step
print(interrupted)
"""


def test_fifty_kills_while_checkpoints_are_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLS, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5, "kills that never met a checkpoint being written show nothing"
