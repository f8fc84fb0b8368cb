"""One process at a time writes to a run's folder, and one that was killed keeps nobody out."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from largebatch.errors import InputError
from largebatch.train.folder_lock import FolderHeld, claimed, locked
from largebatch.train.run_record import LOCK
from train.test_processes import environment, ledger, run, started, wait_for_steps
from train.toy import toy

_HOLDER = """
import os, sys
from pathlib import Path
from largebatch.train.folder_lock import locked
with locked(Path(sys.argv[1]), print, 0.0):
    if "--fork" in sys.argv and os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()  # until it is killed, or this test is
"""


@contextmanager
def holder(folder: Path, *words: str, code: str = _HOLDER) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock, and leaves no child behind."""
    command = [sys.executable, "-c", code, str(folder), *words]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def silent(sentence: str) -> None:
    raise AssertionError(sentence)


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(InputError, match=rf"is being written by process {process.pid} on .*: wait for its end"):
            with locked(tmp_path, silent, 0.0):
                pass


@pytest.mark.parametrize("words", [(), ("--fork",)], ids=["alone", "with a worker that outlives it"])
def test_a_process_that_is_killed_lets_go(tmp_path: Path, words: tuple[str, ...]) -> None:
    with holder(tmp_path, *words) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with claimed(tmp_path, toy(), False, silent, 0.0):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_forked_workers_keep_would_shut_the_folder(tmp_path: Path) -> None:
    """The wrong kind: with flock the worker of a process that is dead goes on holding it."""
    flocked = _HOLDER.replace("with locked(Path(sys.argv[1]), print, 0.0):", "import fcntl\nif True:").replace(
        'if "--fork"', 'held = open(sys.argv[1] + "/x", "w"); fcntl.flock(held, fcntl.LOCK_EX)\n    if "--fork"'
    )
    with holder(tmp_path, "--fork", code=flocked) as process:
        process.kill()
        process.wait()
        with (tmp_path / "x").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_new_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    def failing() -> None:
        with claimed(tmp_path / "run", toy(), False, silent):
            assert (tmp_path / "run" / LOCK).exists()
            raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        failing()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "run", toy(), False, silent):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    said: list[str] = []
    with locked(tmp_path, said.append, 0.0):
        pass
    assert said == [f"the file system of {tmp_path} has no locks: see to it that one run at a time writes there"]


def test_a_disk_that_fails_is_not_told_as_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "lockf", fails)
    with (
        pytest.raises(InputError, match="cannot be locked: input/output error") as caught,
        locked(tmp_path, print, 9.0),
    ):
        pass
    assert not isinstance(caught.value, FolderHeld)


def test_a_run_that_is_training_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(out, "--steps", "400", "--pause-seconds", "0.05") as first:
        wait_for_steps(out, 3, first)
        second = run(out, "--steps", "400", "--pause-seconds", "0.05", "--resume")
        assert second.returncode == 2
        assert f"is being written by process {first.pid} on " in second.stderr
        assert "Traceback" not in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 75
    assert not (out / LOCK).exists()
    assert len(ledger(out)) > 3
