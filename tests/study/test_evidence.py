"""Verdicts are false as often as stated, and say what the seeds can support."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from largebatch.errors import InputError
from largebatch.study.evidence import Comparison, Scores, compare, compare_with, holm

REPETITIONS = 1000
LAMB = Scores("LAMB", (89.97, 81.06, 86.07, 83.01, 83.01))
LARS = Scores("LARS", (76.04, 71.31, 69.64, 71.87, 74.93))


def made(rng: np.random.Generator, seeds: int, mean: float = 0.0, deviation: float = 1.0, name: str = "a") -> Scores:
    return Scores(name, tuple((mean + deviation * rng.standard_normal(seeds)).tolist()))


def share_told_apart(told: Callable[[np.random.Generator], bool]) -> float:
    rng = np.random.default_rng(0)
    return sum(told(rng) for _ in range(REPETITIONS)) / REPETITIONS


def limit(share: float) -> float:
    """Four standard deviations of a share over the repetitions: a false alarm in 30,000 runs, and the seed is fixed."""
    return 4 * math.sqrt(share * (1 - share) / REPETITIONS)


@pytest.mark.parametrize(("first", "second"), [(3, 3), (5, 5), (3, 10)])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_equally_good_methods_are_told_apart_as_often_as_stated(first: int, second: int, spread: float) -> None:
    def told(rng: np.random.Generator) -> bool:
        return compare(made(rng, first), made(rng, second, deviation=spread)).better() is not None

    # Welch's degrees of freedom are an approximation: with three seeds beside ten it errs by up to two of 100.
    assert share_told_apart(told) < 0.05 + limit(0.05) + (0.02 if first != second else 0)


def test_a_test_that_takes_the_spread_as_known_is_false_too_often() -> None:
    def told(rng: np.random.Generator) -> bool:
        first, second = made(rng, 3), made(rng, 3)
        assert first.mean is not None
        assert second.mean is not None
        error = math.sqrt(sum((scores.deviation or 0) ** 2 / 3 for scores in (first, second)))
        return abs(first.mean - second.mean) > 1.96 * error

    assert share_told_apart(told) > 0.05 + limit(0.05)


def test_a_known_difference_is_found_as_often_as_the_verdict_says() -> None:
    detectable = []

    def told(rng: np.random.Generator) -> bool:
        found = compare(made(rng, 5, mean=2.02), made(rng, 5))
        assert found.detectable is not None
        detectable.append(found.detectable)
        return found.better() is found.first

    assert share_told_apart(told) == pytest.approx(0.8, abs=0.03)
    assert np.mean(detectable) == pytest.approx(2.02, rel=0.06)


def test_among_six_comparisons_a_known_difference_is_found_at_least_as_often_as_the_verdict_says() -> None:
    """The difference that one comparison alone would find four times of five is found half as often by Holm's rule."""
    alone = 2.02
    rng = np.random.default_rng(1)
    six = float(np.mean([compare(made(rng, 5), made(rng, 5), comparisons=6).detectable or 0 for _ in range(200)]))

    def told_at(mean: float) -> Callable[[np.random.Generator], bool]:
        def told(rng: np.random.Generator) -> bool:
            reference = made(rng, 5)
            others = [made(rng, 5, name=name) for name in "bcdef"]
            verdicts = compare_with(reference, [made(rng, 5, mean=-mean, name="worse"), *others])
            return "better" in verdicts["worse"]

        return told

    assert six > 1.3 * alone
    assert share_told_apart(told_at(six)) > 0.77
    assert share_told_apart(told_at(alone)) < 0.6


def test_one_of_five_equally_good_methods_stands_out_as_often_as_stated() -> None:
    names = "bcdef"

    def told(rng: np.random.Generator) -> bool:
        verdicts = compare_with(made(rng, 5), [made(rng, 5, name=name) for name in names])
        return any("better" in verdict for verdict in verdicts.values())

    def told_without_holm(rng: np.random.Generator) -> bool:
        reference = made(rng, 5)
        return any(compare(reference, made(rng, 5)).better() is not None for _ in names)

    assert share_told_apart(told) < 0.05 + limit(0.05)
    assert share_told_apart(told_without_holm) > 0.05 + limit(0.05)


@pytest.mark.parametrize("seeds", [4, 5])
def test_seeds_that_diverge_are_ranked_last_and_told_apart_as_often_as_stated(seeds: int) -> None:
    def sometimes_diverged(rng: np.random.Generator) -> Scores:
        return Scores("a", tuple(None if rng.random() < 0.3 else float(rng.standard_normal()) for _ in range(seeds)))

    def told(rng: np.random.Generator) -> bool:
        return compare(sometimes_diverged(rng), sometimes_diverged(rng)).better() is not None

    assert share_told_apart(told) < 0.05 + limit(0.05)


def test_welch_is_that_of_scipy() -> None:
    found = compare(LAMB, LARS)
    theirs = stats.ttest_ind(LAMB.finished, LARS.finished, equal_var=False)
    one_sided = stats.ttest_ind(LAMB.finished, LARS.finished, equal_var=False, alternative="greater")
    assert found.p == pytest.approx(theirs[1])
    assert found.p_first == pytest.approx(one_sided[1])
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert LAMB.interval() == pytest.approx(stats.t.interval(0.95, 4, LAMB.mean, stats.sem(LAMB.finished)))


def test_ranks_are_those_of_scipy_with_and_without_ties() -> None:
    first, second = Scores("a", (1.0, 2.0, 5.0, None)), Scores("b", (3.0, 4.0, 6.0, 7.0, 8.0))
    found = compare(first, second)
    theirs = stats.mannwhitneyu([1.0, 2.0, 5.0, -1e9], second.finished, method="exact", alternative="less")
    assert (found.test, found.p_second) == ("Mann-Whitney", pytest.approx(theirs.pvalue))
    # All the same: nothing can be said.
    assert compare(Scores("a", (1.0,) * 5), Scores("b", (1.0,) * 5)).p == 1
    many = np.random.default_rng(1).standard_normal((2, 40)).round(1)
    found = compare(Scores("a", (*many[0].tolist(), None)), Scores("b", tuple((many[1] + 0.5).tolist())))
    padded = stats.mannwhitneyu([*many[0], -1e9], many[1] + 0.5, method="asymptotic", alternative="less")
    assert found.p_second == pytest.approx(padded.pvalue, rel=1e-6)


def test_a_lower_loss_is_better() -> None:
    low = Scores("low", (1.0, 1.1, 0.9, 1.05), higher_is_better=False)
    high = Scores("high", (2.0, 2.1, 1.9, None), higher_is_better=False)
    assert compare(low, high).better() is low
    ended = Scores("high", (2.0, 2.1, 1.9, 2.05), higher_is_better=False)
    assert compare(ended, low).better() is low


def test_a_verdict_in_words() -> None:
    assert compare(LAMB, LARS).verdict() == (
        "LAMB is better than LARS: LAMB (84.62 ± 3.5, 5 seeds), LARS (72.76 ± 2.7, 5 seeds); "
        "first less second 7.294 to 16.44 at 95%, p = 0.0004 (Welch)."
    )
    assert "Not told apart: LAMB" in compare(LAMB, Scores("x", (84.0, 86.5, 82.0))).verdict()
    alone = compare(LAMB, Scores("x", (10.0,)))
    assert alone.better() is None
    assert alone.verdict().startswith("Not tested, with a single seed")
    fallen = compare(LAMB, Scores("x", (None, None, 3.0)))
    assert "x (3, 3 seeds, 2 of them diverged)" in fallen.verdict()
    assert "x (none of 2 seeds came to an end)" in compare(LAMB, Scores("x", (None, None))).verdict()
    lamb, lars = (replace(scores, unit=" %") for scores in (LAMB, LARS))
    assert "(84.62 ± 3.5 %, 5 seeds)" in compare(lamb, lars).verdict()
    assert "16.44 % at 95%" in compare(lamb, lars).verdict()


def test_a_verdict_among_others_has_both_p_values_and_goes_by_the_second() -> None:
    adam = Scores("Adam", (80.0, 82.0, 78.0, 81.0, 80.0))
    alone = compare(LAMB, adam)
    assert alone.p == pytest.approx(0.0442, abs=1e-4)
    assert alone.verdict().startswith("LAMB is better than Adam")
    told = compare_with(LAMB, [adam, LARS])["Adam"]
    assert told.startswith("LAMB is better than Adam"), "the last of Holm's rule is not multiplied"
    others = [Scores(f"x{number}", (84.0, 86.5, 82.0)) for number in range(3)]
    told = compare_with(LAMB, [adam, *others])["Adam"]
    assert told.startswith("Not told apart")
    assert "p = 0.044 (Welch), with the other comparisons p = 0.18 (Holm); so many seeds would tell 8.04" in told


def test_three_seeds_of_each_rank_too_few_to_tell() -> None:
    """Of 20 ways to deal six ranks, the most extreme one in either direction is a tenth: never below 0.05."""
    found: Comparison = compare(Scores("a", (9.0, 8.0, 7.0)), Scores("b", (1.0, None, None)))
    assert found.p == pytest.approx(0.1)
    assert found.better() is None
    assert "so few seeds tell nothing apart by their ranks" in found.verdict()
    many = compare(Scores("a", (9.0, 8.0, 7.0, 6.0)), Scores("b", (1.0, None, None, None)))
    assert many.better() is many.first
    with_others = compare(many.first, many.second, comparisons=2)
    assert "so few seeds" in with_others.verdict(2 * (many.p or 0)), "8 seeds could at best have 2 x 2 / 70"


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_seeds_that_do_not_differ_have_no_deviation_and_are_compared_by_ranks(seeds: int) -> None:
    """NumPy's deviation of equal numbers is often some 1e-17, by which anything would be told apart."""
    wrong = 0
    for k in range(1, 100):
        scores = Scores("a", (k / 169,) * seeds)
        wrong += float(np.std(scores.finished, ddof=1)) > 0
        assert scores.deviation == 0
        assert scores.interval() is None
        found = compare(scores, Scores("b", (k / 169 + 0.1,) * seeds))
        assert found.test == "Mann-Whitney"
    assert wrong > 0 or seeds == 2


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="x has no seeds, allowed is 1 or more"):
        Scores("x", ())
    with pytest.raises(InputError, match="x has the score nan, allowed are finite numbers"):
        Scores("x", (1.0, math.nan))
    with pytest.raises(InputError, match=r"alpha is 1\.5, allowed is more than 0 and less than 1"):
        compare(LAMB, LARS, alpha=1.5)
    with pytest.raises(InputError, match="only one is better when higher"):
        compare(LAMB, Scores("x", (1.0, 2.0), higher_is_better=False))
