"""What the trials of a study come to: each arm's best point over its seeds, and what they support in words.

Which comparisons are made is fixed by the declaration and not by the outcome: at each batch every method with the
reference; where the study has a single method, each batch with the first. Holm's rule holds for all of them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from largebatch.errors import InputError
from largebatch.samples_to_target import Growth, fit_growth, samples_to_target
from largebatch.study.evidence import Comparison, Scores, compare, holm
from largebatch.study.ledger import Trial, ends
from largebatch.study.plan import Arm, Carried, Ended, Job, State, Study
from largebatch.study.space import Point, described


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What became of an arm.

    Attributes:
        arm: which.
        tuning: its trials with seed 0, by the number of the point.
        best: number of the best point in them; None without a tuning of its own, or where none came to its end.
        point: what its seeds were given; None where that is not known.
        seeds: the trials of that point, by seed.
        is_void: no seed will run, for no point of the tuning came to its end.
    """

    arm: Arm
    tuning: Mapping[int, Trial]
    best: int | None
    point: Point | None
    seeds: Mapping[int, Trial]
    is_void: bool

    def scores(self, study: Study) -> Scores | None:
        """Return the scores of its seeds; None if none has run. An arm that is void counts as diverged."""
        sign = study.higher_is_better
        if self.is_void:
            return Scores(self.arm.name, (None,) * study.seeds, sign)
        if not self.seeds:
            return None
        return Scores(self.arm.name, tuple(self.seeds[seed].score for seed in sorted(self.seeds)), sign)

    def at_target_at_first(self, study: Study) -> int:
        """Return how many seeds were at the target when they were judged for the first time."""
        first = [trial.evaluations[0][1] for trial in self.seeds.values() if trial.evaluations]
        return sum(samples in first for samples in self.to_target(study))

    def to_target(self, study: Study) -> list[int | None]:
        """Return the samples of each seed to the study's target; None for a seed that never reached it."""
        assert study.target is not None
        found = []
        for seed in sorted(self.seeds):
            points = [(samples, score) for _, samples, score in self.seeds[seed].evaluations if score is not None]
            found.append(samples_to_target(points, study.target, study.higher_is_better))
        return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One comparison that the study makes."""

    first: str
    second: str
    better: str | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it."""

    study: Study
    arms: tuple[ArmResult, ...]
    verdicts: tuple[Verdict, ...]
    growth: Mapping[str, Growth | str]
    """Method -> how the samples to the target grow with the batch, or why that cannot be said."""
    is_over: bool
    trials: int
    """That have ended."""
    planned: int

    @property
    def every_trial(self) -> list[Trial]:
        """Arm by arm, the tuning first."""
        return [trial for arm in self.arms for trial in (*arm.tuning.values(), *arm.seeds.values())]

    def ended_as(self, state: State) -> int:
        """Return how many trials ended so."""
        return sum(trial.state == state for trial in self.every_trial)


def find(study: Study, trials: Sequence[Trial]) -> Findings:
    """Return what the trials come to; the study need not be over.

    Raises:
        InputError: trials of one study were trained on different data.
    """
    data = {trial.origin.get("data") for trial in trials} - {None}
    if len(data) > 1:
        raise InputError(f"the trials of {study.name} were trained on {len(data)} sets of data, allowed is one")
    ended = ends(trials)
    by_job = {trial.job: trial for trial in trials}
    arms = tuple(_arm_result(study, arm, by_job, ended) for arm in study.arms)
    return Findings(
        study=study,
        arms=arms,
        verdicts=tuple(_verdicts(study, arms)),
        growth=_growth(study, arms),
        is_over=study.is_over(ended),
        trials=len(ended),
        planned=study.planned(ended),
    )


def _arm_result(study: Study, arm: Arm, by_job: Mapping[Job, Trial], ended: Mapping[Job, Ended]) -> ArmResult:
    seeds = {number: job for number in range(1, study.seeds + 1) if (job := Job(arm.name, "seed", number)) in by_job}
    tuned = {number: job for number in range(len(arm.points)) if (job := Job(arm.name, "tuning", number)) in by_job}
    first = Job(arm.name, "seed", 1)
    return ArmResult(
        arm=arm,
        tuning={number: by_job[job] for number, job in tuned.items()},
        best=study.best(arm, ended) if arm.is_tuned else None,
        point=study.point(first, ended),
        seeds={number: by_job[job] for number, job in seeds.items()},
        is_void=study.is_void(first, ended),
    )


def _verdicts(study: Study, arms: Sequence[ArmResult]) -> list[Verdict]:
    """Compare arms whose seeds have all come to their end; p-values are for all that the study is to compare."""
    over = [one for one in arms if one.is_void or len(one.seeds) == study.seeds]
    scores = {one.arm.name: _as_shown(study, found) for one in over if (found := one.scores(study)) is not None}
    pairs = _pairs(study)
    compared = [compare(scores[a], scores[b], comparisons=len(pairs)) for a, b in pairs if {a, b} <= scores.keys()]
    names = {number: one.p for number, one in enumerate(compared) if one.p is not None}
    adjusted = holm({str(number): p for number, p in names.items()}, len(pairs))
    return [_verdict(one, adjusted.get(str(number))) for number, one in enumerate(compared)]


def _as_shown(study: Study, scores: Scores) -> Scores:
    """Return scores in percent where the study shows them so."""
    if not study.percent:
        return scores
    in_percent = tuple(None if value is None else 100 * value for value in scores.of_seeds)
    return replace(scores, of_seeds=in_percent, unit=" %")


def _verdict(one: Comparison, adjusted: float | None) -> Verdict:
    better = one.better(adjusted)
    return Verdict(
        first=one.first.name,
        second=one.second.name,
        better=None if better is None else better.name,
        sentence=one.verdict(adjusted),
    )


def _pairs(study: Study) -> list[tuple[str, str]]:
    """Return the names of the arms that are compared."""
    if len(study.methods) == 1:
        first, *others = study.arms
        return [(first.name, other.name) for other in others]
    reference = {arm.batch: arm.name for arm in study.arms if arm.method == study.compared_with}
    others = [arm for arm in study.arms if arm.method != study.compared_with and arm.batch in reference]
    return [(reference[arm.batch], arm.name) for arm in others]


def _growth(study: Study, arms: Sequence[ArmResult]) -> dict[str, Growth | str]:
    if study.target is None:
        return {}
    found: dict[str, Growth | str] = {}
    for method in study.methods:
        own = [one for one in arms if one.arm.method == method and one.arm.batch is not None and one.seeds]
        seeds = [(float(one.arm.batch or 0), samples) for one in own for samples in one.to_target(study)]
        reached = [(batch, float(samples)) for batch, samples in seeds if samples is not None]
        if early := sum(one.at_target_at_first(study) for one in own):
            found[method] = (
                f"{early} of {len(seeds)} runs were at the target when they were first judged, so that the samples to "
                "it are not known: judge more often, or set a target that is harder"
            )
            continue
        if len({batch for batch, _ in reached}) < 2:
            if len(own) > 1:
                found[method] = "reached the target at fewer than two batches"
            continue
        try:
            found[method] = replace(fit_growth(reached), left_out=len(seeds) - len(reached))
        except InputError as error:
            found[method] = str(error)
    return found


def told_point(one: ArmResult) -> str:
    """Return what the seeds of an arm were given, in words."""
    if one.is_void:
        return "no point came to its end"
    if one.point is None:
        return "not known yet"
    carried = f", from {one.arm.search.arm}" if isinstance(one.arm.search, Carried) else ""
    return f"{described(one.point)}{carried}" if one.point else "nothing tuned"
