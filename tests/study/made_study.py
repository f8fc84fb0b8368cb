"""Studies and trials that were made up: what tests of the engine and of the page need."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.study.claims import SharedStudy
from largebatch.study.ledger import Trial, ends
from largebatch.study.plan import Arm, Job, Study
from largebatch.study.space import Interval, Point, Search, quasi_random

Share = Callable[..., SharedStudy]
"""The fixture that opens studies in a database."""

RATES = quasi_random({"lr": Interval(1e-3, 1.0), "decay": Interval(1e-5, 0.1)}, 4)


def made_study(
    methods: Sequence[str] = ("LAMB", "AdamW"),
    batches: Sequence[int | None] = (None,),
    search: Search | None = RATES,
    **fields: Any,
) -> Study:
    """A study that no recipe has to run."""
    given: dict[str, Any] = {
        "name": "made",
        "title": "Made up",
        "question": "Is anything better?",
        "recipe": "digits",
        "score": "accuracy",
        "higher_is_better": True,
        "seeds": 3,
    }
    arms = tuple(Arm(method=method, batch=batch, search=search) for method in methods for batch in batches)
    return Study(**{**given, "arms": arms, **fields})


def made_trial(study: Study, job: Job, point: Point, score: float | None, **fields: Any) -> Trial:
    """A trial with a curve up to its score, or one that diverged."""
    samples = 1000 if study.by_name[job.arm].batch is None else 10 * (study.by_name[job.arm].batch or 0)
    rows = tuple((step, step * samples // 5, None if score is None else score * step / 5) for step in range(1, 6))
    given: dict[str, Any] = {
        "job": job,
        "point": point,
        "state": "diverged" if score is None else "complete",
        "score": score,
        "metrics": {} if score is None else {study.score: score, "loss": 1 - score},
        "evaluations": rows,
        "losses": tuple((step * samples // 5, 2.0 / step) for step in range(1, 6)),
        "steps": 5,
        "samples": samples,
        "seconds": 2.0,
        "command": "largebatch train digits",
        "reason": None if score is not None else "5 steps in a row were not finite",
        "origin": {"commit": "abc", "cpu": "a processor", "gpu": None, "threads": 1, "data": "d", "versions": {}},
    }
    return Trial(**{**given, **fields})


def made_trials(study: Study, score: Callable[[Job, Point], float | None]) -> list[Trial]:
    """All trials of a study, with scores by a function."""
    trials: list[Trial] = []
    while jobs := study.open_jobs(ended := ends(trials)):
        for job in jobs:
            point = study.point(job, ended)
            assert point is not None
            trials.append(made_trial(study, job, point, score(job, point)))
    return trials


class FakeTraining:
    """Stands for training: writes down which job it was given, takes a while, and returns a made-up score.

    It can be sent to another process.
    """

    def __init__(self, journal: Path, seconds: float = 0.0) -> None:
        self.journal, self.seconds = journal, seconds

    def __call__(
        self, study: Study, arm: Arm, job: Job, point: Point, folder: Path, is_hopeless: Callable[[float, int], bool]
    ) -> Trial:
        """Be `largebatch.study.search.Train`."""
        with self.journal.open("a") as file:
            file.write(f"{job}\n")
        time.sleep(self.seconds)
        return made_trial(study, job, point, score_of(job, point))


def score_of(job: Job, point: Mapping[str, Any]) -> float:
    """Best at the highest rate."""
    return round(0.5 + 0.3 * float(point.get("lr", 0.5)) + 0.01 * job.number, 6)
