"""A launch that is started again is told from another launch, and ranks from those whose torchrun has ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.train.agent import Agent, find_agent, is_lost, is_restarted
from train.test_elastic import torchrun
from train.test_processes import environment, ledger, run, running, wait_for_steps

RANK = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}
_TELL = "from largebatch.train.agent import find_agent; print(find_agent())"
_AGENT = """
import os, subprocess, sys
words = [sys.executable, "-c", sys.argv[1]]
if sys.argv[2] == "wrapped":
    words = ["sh", "-c", 'true; "$@"; true', "sh", *words]
print(os.getpid(), flush=True)
subprocess.run(words, env={**os.environ, **eval(sys.argv[3])}, check=True)
"""


def write_record(folder: Path, session: dict[str, Any]) -> None:
    (folder / "run.json").write_text(json.dumps({"format_version": 1, "sessions": [session]}))


@pytest.mark.parametrize("how", ["direct", "wrapped"])
def test_the_agent_is_the_nearest_ancestor_that_is_no_rank(how: str) -> None:
    words = [sys.executable, "-c", _AGENT, _TELL, how, repr(RANK)]
    told = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[1].split()[1] == told[0]


def test_a_process_that_torchrun_did_not_start_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in RANK:
        monkeypatch.delenv(name, raising=False)
    assert find_agent() is None
    assert not is_lost(None)
    write_record(tmp_path, {"agents": ["host 1 1"]})
    assert not is_restarted(tmp_path)


def test_only_an_agent_of_the_last_session_has_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**RANK, "TORCHELASTIC_RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    agent = find_agent()
    assert agent is not None
    assert not is_lost(agent)
    assert not is_restarted(tmp_path), "there is no run yet"
    write_record(tmp_path, {"agents": ["elsewhere 1 1", str(agent)]})
    assert is_restarted(tmp_path)
    # The same number, given to another process; a run id or a count of restarts does not make it the same launch.
    write_record(tmp_path, {"agents": [f"{str(agent).rpartition(' ')[0]} 1"], "launch": "none"})
    assert not is_restarted(tmp_path)
    write_record(tmp_path, {})
    assert not is_restarted(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert not is_restarted(tmp_path)


def test_an_agent_that_has_ended_is_lost() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert Agent(child.pid, started).alive()
        assert not Agent(child.pid, "1").alive()
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and its exit status not yet taken
    assert not Agent(child.pid, started).alive()
    child.wait()
    assert not Agent(child.pid, started).alive()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_launch_is_refused_at_each_of_its_restarts(tmp_path: Path) -> None:
    out, once = tmp_path / "run", ("--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    again = (*once, "--rdzv-id=RUN", "--max-restarts=1")
    with torchrun(out, "first", again, ()) as process:
        assert process.wait(timeout=100) == 0, (tmp_path / "first.out").read_text()[-3000:]
    held = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with torchrun(out, "second", again, ()) as process:
        assert process.wait(timeout=200) == 1
    assert (tmp_path / "second.out").read_text().count("already holds a run of toy: add --resume") == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == held


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_whose_agent_is_killed_save_and_end(tmp_path: Path) -> None:
    words = ("--steps", "60", "--pause-seconds", "0.05", "--dropout", "0.3")
    whole = run(tmp_path / "whole", *words, ranks=2)
    assert whole.returncode == 0, whole.stderr
    out, launcher = tmp_path / "run", ("--standalone", "--nproc-per-node=2")
    with torchrun(out, "first", launcher, words) as process:
        wait_for_steps(out, 10, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with torchrun(out, "second", launcher, (*words, "--resume")) as second:
            assert second.wait(timeout=200) == 0, (tmp_path / "second.out").read_text()[-3000:]
        assert not [words for _, words in running() if str(out).encode() in words]
    told = (tmp_path / "first.out").read_text()
    assert "largebatch: torchrun has ended: its ranks stop too, having saved step " in told
    steps = int(told.split("having saved step ")[1].split()[0])
    assert json.loads((out / "run.json").read_text())["sessions"][-1]["from_step"] == steps
    assert ledger(out) == ledger(tmp_path / "whole")
