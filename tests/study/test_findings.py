"""What a whole study concludes is false as often as stated, and says what the declaration fixed."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from made_study import made_study, made_trial, made_trials, score_of

from largebatch.errors import InputError
from largebatch.samples_to_target import Growth
from largebatch.study.findings import Findings, find, told_point
from largebatch.study.plan import Arm, Carried, Job, Study
from largebatch.study.space import Point

REPETITIONS = 1000


def repeated(study: Study, effect: dict[str, float], judge: Callable[[Findings], bool]) -> float:
    """The share of made-up ledgers, each seed normal about its arm's effect, of which something is said."""
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(REPETITIONS):
        trials = [
            made_trial(study, job, {}, 0.5 + effect.get(job.arm, 0.0) + 0.01 * float(rng.standard_normal()))
            for job in study.jobs()
        ]
        said += judge(find(study, trials))
    return said / REPETITIONS


def most(share: float) -> float:
    return share + 4 * math.sqrt(share * (1 - share) / REPETITIONS)


def test_without_an_effect_a_study_of_four_methods_says_something_as_rarely_as_stated() -> None:
    study = made_study(("a", "b", "c", "d"), search=None, seeds=5)

    def any_better(found: Findings) -> bool:
        return any(one.better for one in found.verdicts)

    assert repeated(study, {}, any_better) < most(0.05)

    # The deliberately wrong variant: each of the three told by its own p-value, without Holm's rule.
    def without_holm(found: Findings) -> bool:
        from largebatch.study.evidence import compare

        first, *others = (one.scores(found.study) for one in found.arms)
        assert first is not None
        return any(compare(first, other).better() for other in others if other is not None)

    assert repeated(study, {}, without_holm) > most(0.05)


def test_a_known_effect_is_found_in_the_right_direction() -> None:
    study = made_study(("a", "b"), search=None, seeds=5)
    assert repeated(study, {"b": -0.03}, lambda found: found.verdicts[0].better == "a") > 0.95
    assert repeated(study, {"b": 0.03}, lambda found: found.verdicts[0].better == "b") > 0.95


def test_every_method_is_compared_with_the_reference_at_each_batch() -> None:
    study = made_study(("a", "b", "c"), (16, 32), reference="b")
    found = find(study, made_trials(study, score_of))
    pairs = [(one.first, one.second) for one in found.verdicts]
    assert pairs == [(f"b, batch {n}", f"{other}, batch {n}") for other in "ac" for n in (16, 32)]


def test_a_single_method_is_compared_with_its_first_batch() -> None:
    study = made_study(("a",), (16, 32, 64))
    found = find(study, made_trials(study, score_of))
    assert [one.second for one in found.verdicts] == ["a, batch 32", "a, batch 64"]
    assert {one.first for one in found.verdicts} == {"a, batch 16"}


def test_percent_is_what_sentences_speak_of() -> None:
    def score(job: Job, point: Point) -> float:
        return 0.7 + 0.01 * job.number

    for percent, shown in ((True, "72 ± 1"), (False, "0.72 ± 0.01")):
        study = made_study(search=None, percent=percent)
        assert shown in find(study, made_trials(study, score)).verdicts[0].sentence


def test_an_arm_whose_tuning_failed_counts_as_diverged() -> None:
    study = made_study(("a", "b"))

    def score(job: Job, point: Point) -> float | None:
        return None if job.arm == "b" else 0.5 + 0.01 * job.number

    found = find(study, made_trials(study, score))
    assert found.is_over
    assert found.ended_as("diverged") == 4
    assert found.planned == found.trials == 4 + 4 + 3
    assert told_point(found.arms[1]) == "no point came to its end"
    scores = found.arms[1].scores(study)
    assert scores is not None
    assert scores.diverged == 3
    assert "b (none of 3 seeds came to an end)" in found.verdicts[0].sentence


def test_a_study_that_is_not_over_says_so() -> None:
    study = made_study()
    trials = made_trials(study, score_of)
    found = find(study, trials[:5])
    assert not found.is_over
    assert (found.trials, found.planned) == (5, len(trials))
    assert found.verdicts == ()
    assert told_point(found.arms[0]) == "not known yet"


def test_before_the_end_only_arms_with_all_their_seeds_are_compared_and_by_the_rule_for_all() -> None:
    study = made_study(("a", "b", "c"))
    trials = made_trials(study, score_of)
    missing = Job("c", "seed", 3)
    found = find(study, [trial for trial in trials if trial.job != missing])
    whole = find(study, trials)
    assert [one.second for one in found.verdicts] == ["b"]
    assert len(whole.verdicts) == 2
    other = {one.second: one.sentence for one in whole.verdicts}["b"]
    assert "Holm" in other
    assert found.verdicts[0].sentence == other, "equally good ones: the rule multiplies by 2 here and there"


def test_samples_to_the_target_and_the_critical_batch() -> None:
    study = made_study(("a",), (10, 100, 1000), target=0.4, search=None)
    trials = []
    for job in study.jobs():
        batch = study.by_name[job.arm].batch
        assert batch is not None
        needed = int(1000 * (1 + batch / 200) * (1 + 0.01 * job.number))
        rows = ((1, needed // 2, 0.2), (2, needed, 0.45), (3, 2 * needed, 0.5))
        trials.append(made_trial(study, job, {}, 0.5, evaluations=rows))
    found = find(study, trials)
    growth = found.growth["a"]
    assert isinstance(growth, Growth)
    assert growth.critical_batch == pytest.approx(200, rel=0.05)
    assert "never" not in str(growth)
    short = [replace(one, evaluations=one.evaluations[:1]) if number > 6 else one for number, one in enumerate(trials)]
    assert str(find(study, short).growth["a"]).endswith("from 7 runs; 2 more never reached the target")
    assert found.arms[0].to_target(study) == [int(1050 * f) for f in (1.01, 1.02, 1.03)]
    early = [replace(one, evaluations=one.evaluations[1:]) if number == 4 else one for number, one in enumerate(trials)]
    assert str(find(study, early).growth["a"]).startswith("1 of 9 runs were at the target when they were first judged")
    never = find(made_study(("a",), (10, 100, 1000), target=0.9, search=None), trials)
    assert never.growth["a"] == "reached the target at fewer than two batches"
    assert never.arms[0].to_target(never.study) == [None, None, None]


def test_what_is_carried_says_from_where() -> None:
    arms = (Arm(method="a", batch=8, search=made_study().arms[0].search),)
    arms += (Arm(method="a", batch=32, search=Carried(arm="a, batch 8", factors={"lr": 2.0})),)
    study = made_study(arms=arms)
    found = find(study, made_trials(study, score_of))
    assert told_point(found.arms[1]).endswith(", from a, batch 8")


def test_trials_on_different_data_are_no_study() -> None:
    study = made_study()
    trials = made_trials(study, score_of)
    trials[0] = made_trial(study, trials[0].job, trials[0].point, 0.5, origin={"data": "other"})
    with pytest.raises(InputError, match="were trained on 2 sets of data"):
        find(study, trials)
