"""A study as it is declared: methods and batches to compare, what is tuned for each, and which runs that makes.

An *arm* is one method in one setting, such as LAMB at batch 512. Its search is gone through with seed 0; its best
point, the one with the best score and the first of several, is then run with the seeds 1, 2 and so on, so that the luck
of the choice is not in what is compared. An arm may take over the point that was best in another arm, with some of its
numbers multiplied: so a scaling rule is tested without tuning again.

A study is a frozen value and equal to what its record says, so that it cannot go on as another.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal

from largebatch.errors import InputError, check_at_least
from largebatch.study.kinds import NUMBER, TEXT, TRUTH, WHOLE, check_kinds, is_kind
from largebatch.study.space import Choices, Interval, Point, Search, carried, check_options, described

Kind = Literal["tuning", "seed"]
State = Literal["complete", "diverged", "pruned"]

_PROSE = ("title", "question", "published", "notes")
_TAKEN = ("seed", "out", "resume", "dry_run", "keep_checkpoints", "device")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The best point of another arm, with some of its numbers multiplied."""

    arm: str
    factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(self, "what is carried", arm=TEXT, factors=Mapping)
        for name, factor in self.factors.items():
            if not is_kind(factor, NUMBER):
                raise InputError(f"what is carried has {name} times {factor!r}, allowed is {NUMBER}")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method in one setting.

    Attributes:
        method: as curves and tables call it.
        batch: samples in a step, where the study compares batches.
        options: of the recipe, beyond those of the study.
        search: what is tuned; a `Carried` takes it over, None tunes nothing.

    Raises:
        InputError: a field that is not allowed.
    """

    method: str
    batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    search: Search | Carried | None = None

    def __post_init__(self) -> None:
        check_kinds(self, f"arm {self.method!r}", method=TEXT, batch=(WHOLE, None), options=Mapping)
        check_at_least(self, batch=1)
        if not isinstance(self.search, Search | Carried | None):
            allowed = "quasi_random(...), grid(...), Carried(...) or None"
            raise InputError(f"arm {self.method!r} has the search {self.search!r}, allowed are {allowed}")

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.method if self.batch is None else f"{self.method}, batch {self.batch:,}"

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return re.sub(r"[\W_]+", "-", self.name.lower()).strip("-")

    @property
    def points(self) -> tuple[Point, ...]:
        """What is tried with seed 0."""
        return self.search.points if isinstance(self.search, Search) else ()

    @property
    def is_tuned(self) -> bool:
        """Whether there is a choice to be made."""
        return len(self.points) > 1


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """A trial of the tuning ends early if its score is worse than the median of the others of its arm there.

    Attributes:
        trials: how many have to be complete before any is pruned.
        evaluations: how many each has before it is judged.
    """

    trials: int = 4
    evaluations: int = 1

    def __post_init__(self) -> None:
        check_kinds(self, "pruning", trials=WHOLE, evaluations=WHOLE)
        check_at_least(self, trials=1, evaluations=1)


@dataclass(frozen=True)
class Published:
    """A row of a paper."""

    label: str
    value: float
    batch: int | None = None
    quantity: str | None = None
    """What the value is of, where that is not the study's score."""

    def __post_init__(self) -> None:
        what = "a published row"
        check_kinds(self, what, label=TEXT, value=NUMBER, batch=(WHOLE, None), quantity=(TEXT, None))


@dataclass(frozen=True, order=True)
class Job:
    """One run of a study."""

    arm: str
    kind: Kind
    number: int
    """Of the point, from 0; or the seed."""

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.number if self.kind == "seed" else 0

    def __str__(self) -> str:
        """As messages have it."""
        return f"{self.arm}: {'point' if self.kind == 'tuning' else 'seed'} {self.number}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a job came to, as far as the study goes on by it."""

    state: State
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how.

    Attributes:
        name: of the study.
        title: what it is about.
        question: what it is to answer.
        recipe: of the catalogue, ``module:function`` or ``FILE.py:function``.
        arms: see above.
        score: name of the metric of the last evaluation that decides, or "loss", the held-out one.
        higher_is_better: as of an accuracy.
        percent: the score is a share and shown in percent.
        seeds: runs of each arm's best point.
        options: of the recipe, for all arms.
        reference: the method that the others are compared with; the first arm's if left out.
        target: of the score; how many samples and steps each arm takes to it is told.
        pruning: None runs every trial to its end.
        published: rows of papers to stand beside.
        notes: what a reader has to know.

    Raises:
        InputError: a field that is not allowed, or two arms of one name.
    """

    name: str
    title: str
    question: str
    recipe: str
    arms: tuple[Arm, ...]
    score: str
    higher_is_better: bool
    percent: bool = False
    seeds: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    target: float | None = None
    pruning: Pruning | None = None
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"a study is named {self.name!r}, allowed are letters, digits, - and _")
        if not self.arms:
            raise InputError(f"study {self.name} has no arms, allowed is 1 or more")
        check_at_least(self, seeds=1)
        check_options(self.options, f"study {self.name}", _TAKEN)
        names = [arm.name for arm in self.arms]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"study {self.name} has two arms {twice!r}, allowed are names that differ")
        of_folder: dict[str, str] = {}
        for arm in self.arms:
            if (other := of_folder.setdefault(arm.folder, arm.name)) != arm.name or not arm.folder:
                allowed = "allowed are names that differ in letters or digits, whatever their case"
                raise InputError(f"the runs of arms {other!r} and {arm.name!r} would lie in one folder, {allowed}")
        if self.reference is not None and self.reference not in self.methods:
            raise InputError(f"study {self.name} compares with {self.reference!r}, allowed are {list(self.methods)}")
        for arm in self.arms:
            self._check_arm(arm)

    def _check_kinds(self) -> None:
        texts = dict.fromkeys(("name", "title", "question", "recipe", "score"), TEXT)
        truths = dict.fromkeys(("higher_is_better", "percent"), TRUTH)
        rows = dict.fromkeys(("arms", "published", "notes"), tuple)
        others = {"reference": (TEXT, None), "target": (NUMBER, None), "pruning": (Pruning, None)}
        what = f"study {self.name}"
        check_kinds(self, what, **texts, **truths, **rows, **others, seeds=WHOLE, options=Mapping)
        for name, kind in (("arms", Arm), ("published", Published), ("notes", str)):
            if wrong := [one for one in getattr(self, name) if not isinstance(one, kind)]:
                raise InputError(f"{what} has {wrong[0]!r} among its {name}, allowed is {kind.__name__}")

    def _check_arm(self, arm: Arm) -> None:
        check_options(arm.options, f"arm {arm.name!r}", (*_TAKEN, *self.options))
        for point in arm.points:
            check_options(point, f"a point of arm {arm.name!r}", (*_TAKEN, *self.options, *arm.options))
        if isinstance(arm.search, Carried):
            source = next((other for other in self.arms if other.name == arm.search.arm), None)
            if source is None or not isinstance(source.search, Search):
                allowed = [other.name for other in self.arms if isinstance(other.search, Search)]
                raise InputError(f"arm {arm.name!r} takes over from {arm.search.arm!r}, allowed are {allowed}")
            for point in source.points:
                check_options(point, f"what arm {arm.name!r} takes over", (*self.options, *arm.options))
                carried(point, arm.search.factors)

    @cached_property
    def by_name(self) -> Mapping[str, Arm]:
        """Name -> arm."""
        return {arm.name: arm for arm in self.arms}

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which they are declared."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def compared_with(self) -> str:
        """The method that the others are compared with."""
        return self.reference or self.arms[0].method

    def tuned_for(self, arm: Arm) -> Arm:
        """Return the arm whose search gives an arm its point: itself, or the one that it takes over from."""
        return self.by_name[arm.search.arm] if isinstance(arm.search, Carried) else arm

    def jobs(self) -> Iterator[Job]:
        """Yield all runs: the tuning point by point, so that no arm is ahead, then the seeds one by one."""
        most = max((len(arm.points) for arm in self.arms if arm.is_tuned), default=0)
        for number in range(most):
            for arm in self.arms:
                if arm.is_tuned and number < len(arm.points):
                    yield Job(arm.name, "tuning", number)
        for seed in range(1, self.seeds + 1):
            for arm in self.arms:
                yield Job(arm.name, "seed", seed)

    def best(self, arm: Arm, ended: Mapping[Job, Ended]) -> int | None:
        """Return the number of an arm's best point; None if its tuning is not over, or no point came to its end."""
        if not arm.is_tuned:
            return 0
        found = [ended.get(Job(arm.name, "tuning", number)) for number in range(len(arm.points))]
        sign = 1.0 if self.higher_is_better else -1.0
        scores = {
            number: sign * one.score
            for number, one in enumerate(found)
            if one is not None and one.state == "complete" and one.score is not None
        }
        if None in found or not scores:
            return None
        return max(scores, key=lambda number: (scores[number], -number))

    def point(self, job: Job, ended: Mapping[Job, Ended]) -> Point | None:
        """Return what a job gives the recipe beyond its arm's options; None if that is not known, or never will be."""
        arm = self.by_name[job.arm]
        if job.kind == "tuning":
            return arm.points[job.number]
        if arm.search is None:
            return {}
        source = self.tuned_for(arm)
        number = self.best(source, ended)
        if number is None:
            return None
        factors = arm.search.factors if isinstance(arm.search, Carried) else {}
        return carried(source.points[number], factors)

    def is_void(self, job: Job, ended: Mapping[Job, Ended]) -> bool:
        """Return whether a job will never run, for no point of the tuning before it came to its end."""
        if job.kind == "tuning" or self.point(job, ended) is not None:
            return False
        source = self.tuned_for(self.by_name[job.arm])
        return all(Job(source.name, "tuning", number) in ended for number in range(len(source.points)))

    def open_jobs(self, ended: Mapping[Job, Ended]) -> list[Job]:
        """Return the jobs that may run now, in order."""
        return [job for job in self.jobs() if job not in ended and self.point(job, ended) is not None]

    def planned(self, ended: Mapping[Job, Ended]) -> int:
        """Return how many jobs have ended or may still run."""
        return sum(job in ended or not self.is_void(job, ended) for job in self.jobs())

    def is_over(self, ended: Mapping[Job, Ended]) -> bool:
        """Return whether nothing is left to run."""
        return self.planned(ended) == len(ended)

    def told(self, job: Job, ended: Mapping[Job, Ended]) -> str:
        """Return a job in words, with its point."""
        point = self.point(job, ended)
        return f"{job} ({described(point)})" if point else str(job)

    def as_dict(self) -> dict[str, Any]:
        """Return the study as plain data, which `study_of` reads."""
        return _plain(asdict(self))

    def changed(self, held: Mapping[str, Any]) -> list[str]:
        """Name the fields that decide what is run or compared in which the plain data of a study differ from this one.

        A recipe in a file of one's own is known by the file's name, wherever it lies: on another machine, in a clone.
        """
        own, other = self.as_dict(), dict(held)
        for record in (own, other):
            record["recipe"] = _without_folder(str(record.get("recipe")))
        return [name for name, value in own.items() if name not in _PROSE and value != other.get(name)]


def study_of(held: Mapping[str, Any]) -> Study:
    """Return the study of its plain data.

    Raises:
        InputError: it is no record of a study.
    """
    try:
        arms = tuple(
            Arm(**{**arm, "options": dict(arm["options"]), "search": _search_of(arm["search"])}) for arm in held["arms"]
        )
        pruning = None if held["pruning"] is None else Pruning(**held["pruning"])
        published = tuple(Published(**row) for row in held["published"])
        notes = tuple(held["notes"])
        return Study(**{**held, "arms": arms, "pruning": pruning, "published": published, "notes": notes})
    except KeyError as error:
        raise InputError(f"the record of a study lacks {error}") from error
    except InputError:
        raise
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError("the record of a study has other fields than a study has") from error


def _without_folder(recipe: str) -> str:
    file, mark, function = recipe.rpartition(":")
    return f"{PurePath(file).name}:{function}" if mark and file.endswith(".py") else recipe


def _search_of(held: Mapping[str, Any] | None) -> Search | Carried | None:
    if held is None:
        return None
    if "arm" in held:
        return Carried(**held)
    space = {
        name: Choices(tuple(one["values"])) if "values" in one else Interval(**one)
        for name, one in held["space"].items()
    }
    return Search(space=space, points=tuple(held["points"]), way=held["way"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
