"""The ledger of a study: study.json, what was declared, and trials.jsonl, what every trial came to, a line each.

The database that workers share holds the same; the ledger is what is committed and what pages are made of. Both files
are whole or not there.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from largebatch.aside import write_aside
from largebatch.errors import InputError
from largebatch.study.kinds import NUMBER, TEXT, WHOLE, check_kinds, is_kind
from largebatch.study.plan import Ended, Job, Kind, State, Study, study_of
from largebatch.study.space import Point, described
from largebatch.train.ledger import read_ledger
from largebatch.train.run_record import read_record

FORMAT_VERSION = 1
STUDY, TRIALS = "study.json", "trials.jsonl"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study that has come to an end of some kind.

    Attributes:
        job: which.
        point: what was given to the recipe beyond the arm's options.
        state: "diverged" where the loss or the score was no number.
        score: of the last evaluation; None unless complete.
        metrics: of the last evaluation, the held-out loss as "loss" among them.
        evaluations: (step, samples seen, score or None) of each evaluation.
        losses: (samples seen, training loss), few of them.
        steps, samples: of the whole run as planned.
        seconds: of training, all sessions together.
        command: what repeats it.
        reason: why it diverged, in a sentence.
        origin: commit, processor, threads, versions, what identifies the data.

    Raises:
        InputError: a field that is not allowed, or a score that does not go with the state.
    """

    job: Job
    point: Point
    state: State
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[tuple[int, int, float | None], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    command: str = ""
    reason: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        what = f"the record of {self.job}"
        mappings = dict.fromkeys(("point", "metrics", "origin"), Mapping)
        check_kinds(self, what, **mappings, state=State, score=(NUMBER, None), reason=(TEXT, None))
        check_kinds(self, what, steps=WHOLE, samples=WHOLE, seconds=NUMBER, command=TEXT)
        if (self.state == "complete") != (self.score is not None):
            raise InputError(f"{what} has state {self.state!r} and score {self.score}, a score is of a complete run")
        if wrong := [name for name, value in self.metrics.items() if not is_kind(value, NUMBER)]:
            raise InputError(f"{what} has {wrong[0]} {self.metrics[wrong[0]]!r}, allowed is {NUMBER}")
        if not is_kind(self.origin.get("threads", 1), WHOLE):
            raise InputError(f"{what} has threads {self.origin['threads']!r}, allowed is {WHOLE}")

    @property
    def ended(self) -> Ended:
        """What the study goes on by."""
        return Ended(state=self.state, score=self.score)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))


def trial_of(held: Mapping[str, Any]) -> Trial:
    """Return the trial of its plain data; raises InputError if it is none."""
    try:
        job = Job(**held["job"])
        check_kinds(job, "the job of a trial", arm=TEXT, kind=Kind, number=WHOLE)
        rows = tuple((step, samples, score) for step, samples, score in held["evaluations"])
        losses = tuple((samples, loss) for samples, loss in held["losses"])
        for step, samples, score in rows:
            _check_row(job, WHOLE, step, samples)
            _check_row(job, NUMBER, *(() if score is None else (score,)))
        for samples, loss in losses:
            _check_row(job, NUMBER, samples, loss)
        return Trial(**{**held, "job": job, "evaluations": rows, "losses": losses})
    except KeyError as error:
        raise InputError(f"the record of a trial lacks {error}") from error
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError("the record of a trial has other fields than a trial has") from error


def _check_row(job: Job, kind: str, *values: object) -> None:
    if wrong := [value for value in values if not is_kind(value, kind)]:
        raise InputError(f"the record of {job} has {wrong[0]!r} in its curves, allowed is {kind}")


def ends(trials: Iterable[Trial]) -> dict[Job, Ended]:
    """Return job -> how it ended."""
    return {trial.job: trial.ended for trial in trials}


def write_study(folder: Path, study: Study, origin: Mapping[str, Any]) -> None:
    """Write what is declared, and what is to be known of where it was begun."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {"format_version": FORMAT_VERSION, "study": study.as_dict(), "origin": dict(origin)}
    write_aside(folder / STUDY, json.dumps(held, indent=1) + "\n")


def write_trials(folder: Path, study: Study, trials: Iterable[Trial]) -> None:
    """Write all trials, in the order of the study's jobs."""
    order = {job: number for number, job in enumerate(study.jobs())}
    lines = sorted(trials, key=lambda trial: order[trial.job])
    write_aside(folder / TRIALS, "".join(json.dumps(trial.as_dict()) + "\n" for trial in lines))


def is_study(folder: Path) -> bool:
    """Return whether a folder is that of a study."""
    return (folder / STUDY).is_file()


def read_study(folder: Path) -> tuple[Study, dict[str, Any]]:
    """Return a study and its origin.

    Raises:
        InputError: the folder holds none, or one that is damaged or of another format version.
    """
    path = folder / STUDY
    held = read_record(path, "study", FORMAT_VERSION)
    try:
        study, origin = study_of(held["study"]), held["origin"]
    except (KeyError, InputError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(origin, dict) or not isinstance(origin.get("versions") or {}, dict):
        raise InputError(f"{path} is damaged: its origin is {origin!r}, allowed is an object with the versions in one")
    return study, origin


def read_trials(folder: Path, study: Study) -> list[Trial]:
    """Return the trials of a study's folder, none if it holds no ledger yet.

    Raises:
        InputError: the ledger is damaged, has a trial twice, one that the study does not have, or one at another point
            than the study has for it.
    """
    path = folder / TRIALS
    if not path.exists():
        return []
    allowed, found = set(study.jobs()), {}
    for held in read_ledger(path):
        try:
            trial = trial_of(held)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if trial.job in found or trial.job not in allowed:
            raise InputError(f"{path} has {trial.job} {'twice' if trial.job in found else 'that is none of the study'}")
        found[trial.job] = trial
    ended = ends(found.values())
    for trial in found.values():
        point = study.point(trial.job, ended)
        if point is not None and point != trial.point:
            places = f"at {described(trial.point)!r}, by the other trials its point is {described(point)!r}"
            raise InputError(f"{path} has {trial.job} {places}")
    return list(found.values())
