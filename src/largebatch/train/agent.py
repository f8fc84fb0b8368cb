"""torchrun's agent: the process on each node that starts that node's ranks, and starts them again when one has died.

A run's record names the agents that began its last session. Ranks whose agent is among them have been started again
and go on by themselves; a launch of its own, with the same command and the same run id too, has another agent.

Ranks outlive an agent that is killed. They look after it once a step, as nobody would start or stop them any more.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.train.distributed import World
from largebatch.train.run_record import read_run_record

_OF_A_RANK = ("RANK", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
_PARENT, _STARTED = 1, 19  # places after the name in /proc/PID/stat, which begins with the state


class AgentLost(RuntimeError):
    """torchrun has ended without its ranks."""


@dataclass(frozen=True)
class Agent:
    """A process, told from later ones of the same number by when it was started."""

    pid: int
    started: str
    """In the system's ticks; empty where /proc does not say."""

    def alive(self) -> bool:
        """Return whether it still runs."""
        if not self.started:
            return os.getppid() == self.pid
        found = _status(self.pid)
        return found is not None and found[0] != "Z" and found[_STARTED] == self.started

    def __str__(self) -> str:
        """As the record has it."""
        return f"{platform.node()} {self.pid} {self.started}"


def find_agent() -> Agent | None:
    """Return the agent of this process, None if torchrun did not start it.

    It is the nearest ancestor that is not itself a rank, as a script that torchrun starts and that starts us would be.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    for pid in _ancestors():
        if not _is_same_rank(pid):
            status = _status(pid)
            return Agent(pid, status[_STARTED] if status else "")
    return Agent(os.getppid(), "")


def is_lost(agent: Agent | None) -> bool:
    """Return whether there was an agent and it has ended."""
    return agent is not None and not agent.alive()


def is_restarted(folder: Path) -> bool:
    """Return whether this process's agent began the last session of the run in a folder."""
    agent = find_agent()
    if agent is None or not (folder / "run.json").exists():
        return False
    try:
        return str(agent) in read_run_record(folder)["sessions"][-1].get("agents", ())
    except InputError:
        return False  # claiming the folder will say what is wrong


def agents_of(world: World, agent: Agent | None) -> dict[str, Any]:
    """Return what a session's record says of the agents of all ranks; all have to ask."""
    found = {told for told in world.gather(None if agent is None else str(agent)) if told is not None}
    return {"agents": sorted(found)} if found else {}


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid:
        yield pid
        status = _status(pid)
        pid = int(status[_PARENT]) if status else 0


def _is_same_rank(pid: int) -> bool:
    try:
        theirs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(f"{name}={os.environ.get(name)}".encode() in theirs for name in _OF_A_RANK)


def _status(pid: int) -> list[str] | None:
    """Return the fields of a process from its state on, None if there is none or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
