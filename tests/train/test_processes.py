"""Real processes: kill -9, SIGTERM, Ctrl-C, and two gloo ranks under torchrun."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from largebatch.train.ledger import read_ledger

HERE = Path(__file__).parents[1]
# The timings differ from run to run, everything else must not.
TIMES = {"seconds", "samples_per_second", "flops_per_second", "utilisation"}
RECIPE = "train.toy:toy"


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def command(out: Path, *words: str, ranks: int = 1, recipe: str = RECIPE) -> list[str]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        logs = f"--log-dir={out.parent / 'launcher'}"
        launcher += ["torch.distributed.run", "--standalone", logs, f"--nproc-per-node={ranks}", "-m"]
    return [*launcher, "largebatch", "train", recipe, "--out", str(out), *words]


def run(out: Path, *words: str, ranks: int = 1, recipe: str = RECIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *words, ranks=ranks, recipe=recipe),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def started(
    out: Path, *words: str, ranks: int = 1, recipe: str = RECIPE
) -> AbstractContextManager[subprocess.Popen[str]]:
    return session(command(out, *words, ranks=ranks, recipe=recipe), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextmanager
def session(words: list[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own, of which nothing is left at the end."""
    process = subprocess.Popen(words, env=environment(), text=True, start_new_session=True, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_steps(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    path = out / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if path.exists() and sum(line["kind"] == "train" for line in read_ledger(path)) >= steps:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    pytest.fail(f"{steps} steps did not come")


def ledger(out: Path) -> list[dict[str, Any]]:
    """Return every line without its timings."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_ledger(out / "metrics.jsonl")
    ]


SLOWLY = ("--pause-seconds", "0.05", "--dropout", "0.3")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = run(out, *SLOWLY)
    assert done.returncode == 0, done.stderr
    return ledger(out)


def test_after_kill_9_the_run_goes_on_to_the_bit(tmp_path: Path, unbroken: list[dict[str, Any]]) -> None:
    _kill_and_resume(tmp_path, unbroken, random.SystemRandom().randrange(1, 19))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 6, 11, 12, 13, 16, 19])
def test_after_kill_9_at_any_step(tmp_path: Path, unbroken: list[dict[str, Any]], step: int) -> None:
    _kill_and_resume(tmp_path, unbroken, step)


def _kill_and_resume(folder: Path, unbroken: list[dict[str, Any]], step: int) -> None:
    out = folder / "run"
    with started(out, *SLOWLY) as process:
        wait_for_steps(out, step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(ledger(out)) < len(unbroken)
    resumed = run(out, *SLOWLY, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert ledger(out) == unbroken, f"killed after step {step}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_leaves_75_and_the_same_command_goes_on(
    tmp_path: Path, unbroken: list[dict[str, Any]], number: signal.Signals
) -> None:
    out = tmp_path / "run"
    with started(out, *SLOWLY) as process:
        wait_for_steps(out, 4, process)
        process.send_signal(number)
        told, errors = process.communicate(timeout=100)
        assert process.returncode == 75, errors
    assert "--resume" in told
    stopped_after = max(line["step"] for line in ledger(out) if line["kind"] == "train")
    assert (out / "checkpoints" / f"step-{stopped_after:09d}").is_dir()
    assert run(out, *SLOWLY, "--resume").returncode == 0
    assert ledger(out) == unbroken


# Two ranks.


def sampled(file: Path) -> list[str]:
    return sorted(sample for line in file.read_text().splitlines() for sample in line.split())


def train_losses(out: Path) -> list[float]:
    return [line["loss"] for line in ledger(out) if line["kind"] == "train"]


def test_two_ranks_train_as_one_does_with_dropout(tmp_path: Path) -> None:
    words = ("--dropout", "0.3")
    alone = run(tmp_path / "one", *words, "--log-samples", str(tmp_path / "one.txt"))
    both = run(tmp_path / "two", *words, "--log-samples", str(tmp_path / "two.txt"), ranks=2)
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), rel=1e-5)
    # Each rank also reads the first microbatch twice, to settle DDP's buckets, and a dummy where its share is empty.
    one, two = sampled(tmp_path / "one.txt"), sampled(tmp_path / "two.txt")
    assert set(one) == set(two)
    evaluated = {
        name: [line["loss"] for line in ledger(tmp_path / name) if line["kind"] == "eval"] for name in ("one", "two")
    }
    assert evaluated["two"] == pytest.approx(evaluated["one"], rel=1e-4)


def test_two_ranks_resume_to_the_bit_after_kill_9_of_both(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run(whole, *SLOWLY, ranks=2)
    assert done.returncode == 0, done.stderr
    with started(broken, *SLOWLY, ranks=2) as process:
        wait_for_steps(broken, 8, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kill_all(broken)
    resumed = run(broken, *SLOWLY, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert ledger(broken) == ledger(whole)


def running() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number and the words of each process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_bytes().split(b"\0")


def kill_all(out: Path) -> None:
    """Kill -9 torchrun, if it is still there, and its workers, which it starts in sessions of their own."""
    for number, words in running():
        if str(out).encode() in words:
            os.kill(number, signal.SIGKILL)


def test_a_stop_under_torchrun_saves_once_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(out, *SLOWLY, ranks=2) as process:
        wait_for_steps(out, 4, process)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=100)
    assert (out / "stopped.json").exists()
    resumed = run(out, *SLOWLY, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert not (out / "stopped.json").exists()
    assert len(train_losses(out)) == 20


def test_a_batch_smaller_than_the_ranks_is_one_sentence(tmp_path: Path) -> None:
    refused = run(tmp_path / "run", "--batch", "1", ranks=2)
    assert refused.returncode != 0
    said = [line for line in refused.stderr.splitlines() if line.startswith("largebatch: ")]
    assert said == ["largebatch: the global batch of 1 samples is smaller than the 2 ranks that share it"]


def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path) -> None:
    words = " ".join(command(tmp_path / "run"))
    refused = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; exec {words}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr
    said = [line for line in refused.stderr.splitlines() if line.startswith("largebatch: ")]
    assert len(said) == 1
    assert "File too large" in said[0]
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.slow
def test_two_ranks_always_leave_when_they_are_done(tmp_path: Path) -> None:
    # One in three of these runs never ended while DDP's reducer outlived the process group.
    for number in range(10):
        done = run(tmp_path / str(number), ranks=2)
        assert done.returncode == 0, done.stderr


def test_a_full_disk_ends_two_ranks_with_one_sentence(tmp_path: Path) -> None:
    ended = run(tmp_path / "run", ranks=2, recipe="train.toy:toy_on_a_full_disk")
    assert re.findall("largebatch: .*", ended.stderr) == [
        f"largebatch: {tmp_path / 'run' / 'metrics.jsonl'} cannot be written: File too large"
    ]
    ends = set(re.findall(r"exitcode *: (-?\d+)", ended.stderr))
    assert "2" in ends
    assert ends <= {"2", "-15"}, "a rank ends so, or torchrun has ended it since the other did; none by a traceback"
