"""What each trial of a study came to, in a file that is complete after every trial, and how a trial is run."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from collect import read_run
from largebatch.aside import write_aside
from largebatch.cli import main
from largebatch.whole_way import is_finished


class Named(Protocol):
    """A frozen dataclass that can be sorted."""

    @property
    def name(self) -> str:
        """What it is called, in messages and as a folder."""
        ...

    def __lt__(self, other: Any, /) -> bool: ...

    __dataclass_fields__: ClassVar[dict[str, Any]]


TrialT = TypeVar("TrialT", bound=Named)


@dataclass
class Ledger(Generic[TrialT]):
    """The records of trials by trial."""

    path: Path
    data: str
    """What identifies the data: trials on others are refused."""
    records: dict[TrialT, dict[str, Any]]
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, path: Path, data: str, kind: type[TrialT]) -> "Ledger[TrialT]":
        """Read it, or begin an empty one; raises ValueError for one on other data."""
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"data": data, "trials": []}
        if held["data"] != data:
            raise ValueError(f"{path} holds trials on the data {held['data']}, those given are {data}")
        return cls(path, data, {kind(**held["trial"]): held["run"] for held in held["trials"]})

    def add(self, trial: TrialT, record: dict[str, Any]) -> None:
        """Write a trial down."""
        with self.lock:
            self.records[trial] = record
            trials = sorted(self.records)
            lines = [{"trial": asdict(trial), "run": self.records[trial]} for trial in trials]
            write_aside(self.path, json.dumps({"data": self.data, "trials": lines}, indent=1) + "\n")
        scores = record.get("scores", {})
        print(f"{trial.name}: {', '.join(f'{k} {v:.4g}' for k, v in scores.items()) or 'diverged'}", flush=True)

    def run_all(self, trials: Iterable[TrialT], run: Callable[[TrialT], dict[str, Any]]) -> None:
        """Run those that are not here, two at a time."""
        missing = [trial for trial in trials if trial not in self.records]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda trial: self.add(trial, run(trial)), missing))

    def score(self, trial: TrialT, name: str, diverged: float) -> float:
        """Return a score of a trial, or a number for one that diverged."""
        record = self.records[trial]
        return diverged if "diverged" in record else record["scores"][name]


_DIVERGED = 1  # what the command line returns


@contextmanager
def two_cores() -> Iterator[Callable[[list[str], Path], dict[str, Any]]]:
    """Give a function that does what `trained` does in one of two processes of one thread each."""
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield lambda words, folder: pool.submit(trained, words, folder).result()


def trained(words: list[str], folder: Path) -> dict[str, Any]:
    """Train to the end, unless that was done before, and return the run's record, or that it diverged.

    Args:
        words: what follows `largebatch train`, without folder.
        folder: of the run; one that was stopped goes on.

    Raises:
        RuntimeError: any other error.
    """
    if not is_finished(folder):
        command = ["train", *words, "--keep-checkpoints", "1", "--out", str(folder)]
        if (folder / "run.json").is_file():
            command.append("--resume")
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = main(command)
        if code == _DIVERGED:
            return {"diverged": True}
        if code:
            raise RuntimeError(said.getvalue())
    return read_run(folder)
