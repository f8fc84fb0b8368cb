"""What a terminal shows of a study: a line for each run that has ended, and where it stands."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from largebatch.report.wording import duration
from largebatch.study.claims import Running
from largebatch.study.ledger import Trial, ends
from largebatch.study.plan import Job, Study
from largebatch.study.report import score_text
from largebatch.study.space import described


class StudyDisplay:
    """A bar on a terminal; plain lines, a run each, everywhere."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._console = Console(file=sys.stderr, highlight=False)
        self._seen: set[Job] | None = None
        self._began = time.monotonic()
        self._at_first = 0
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> "StudyDisplay":
        if self._console.is_terminal:
            self._bar = Progress(
                BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
                console=self._console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=sum(1 for _ in self._study.jobs()))
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, trials: Sequence[Trial], running: Sequence[Running]) -> None:
        """Tell what has ended since the last time."""
        ended = ends(trials)
        total = self._study.planned(ended)
        if self._seen is None:
            self._seen, self._at_first = set(ended), len(ended)
            if ended:
                self.say(f"going on: {len(ended)} of {total} runs have ended")
        for trial in trials:
            if trial.job not in self._seen:
                self._seen.add(trial.job)
                self.say(f"[{len(self._seen)}/{total}] {self._told(trial)}{self._left(total)}")
        if self._bar is not None:
            shown = "; ".join(str(one.job) for one in running)
            self._bar.update(self._task, completed=len(ended), total=total, description=shown)

    def _told(self, trial: Trial) -> str:
        point = f" ({described(trial.point)})" if trial.point else ""
        what = trial.state if trial.score is None else f"{self._study.score} {score_text(self._study, trial.score)}"
        return f"{trial.job}{point}: {what}, {duration(trial.seconds)}"

    def _left(self, total: int) -> str:
        assert self._seen is not None
        done = len(self._seen) - self._at_first
        left = (time.monotonic() - self._began) / done * (total - len(self._seen))
        return f", {duration(left)} left" if left else ""

    def say(self, sentence: str) -> None:
        """Print one sentence above the bar."""
        self._console.print(sentence, markup=False, soft_wrap=True)
