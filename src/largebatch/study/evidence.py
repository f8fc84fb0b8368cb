"""What the scores of several seeds support: mean and interval, a test between two methods, and a verdict in words.

Two methods with n and m seeds, means a and b, variances s^2 and t^2 (Welch, Biometrika 34, 1947):

    z = (a - b) / e,   e^2 = s^2/n + t^2/m,   degrees of freedom = e^4 / ((s^2/n)^2 / (n-1) + (t^2/m)^2 / (m-1))

The p-value is one-sided: how often methods that are equally good would show the first this far ahead, or further. Where
a seed has diverged, or the seeds of a method do not differ, there is no such z: then the ranks are compared, a seed
that diverged being the last of all (Mann and Whitney, 1947, exact by going through all ways to deal the ranks, ties
too).

A verdict says "better" in either direction, each at half of ``alpha``, so that of methods that are equally good a
share of ``alpha`` at most is told apart. Where k are compared with one, Holm's rule keeps that for all of them
together: the least p-value is multiplied by k, the next by k - 1, and none comes out below one before it (Holm, 1979).

Seeds that chose the best of several trials do not belong here: the luck of the choice is in them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import special, stats

from largebatch.errors import InputError

ALPHA = 0.05
"""The share of verdicts between equally good methods that may be false, where none other is given."""

POWER = 0.8
"""How often a difference that is called detectable would be found."""

_MOST_DEALS = 200_000


@dataclass(frozen=True)
class Scores:
    """A method's scores, one for each seed; None for a seed that diverged.

    Raises:
        InputError: no seeds, or a score that is not a finite number.
    """

    name: str
    of_seeds: tuple[float | None, ...]
    higher_is_better: bool = True
    unit: str = ""
    """Behind numbers in sentences, such as " %"."""

    def __post_init__(self) -> None:
        if not self.of_seeds:
            raise InputError(f"{self.name} has no seeds, allowed is 1 or more")
        for score in self.of_seeds:
            if score is not None and not math.isfinite(score):
                raise InputError(f"{self.name} has the score {score}, allowed are finite numbers, and None if diverged")

    @property
    def finished(self) -> tuple[float, ...]:
        """Of the seeds that came to their end."""
        return tuple(score for score in self.of_seeds if score is not None)

    @property
    def diverged(self) -> int:
        """How many seeds did not."""
        return len(self.of_seeds) - len(self.finished)

    @property
    def mean(self) -> float | None:
        """Over the seeds that came to their end."""
        return math.fsum(self.finished) / len(self.finished) if self.finished else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over those, with n - 1; None for fewer than two."""
        if len(self.finished) < 2:
            return None
        # Of equal numbers NumPy's is not always zero: their mean is rounded.
        return float(np.std(self.finished, ddof=1)) if len(set(self.finished)) > 1 else 0.0

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """Return Student's interval for the mean over all seeds there could be; None where seeds do not differ."""
        mean, deviation, n = self.mean, self.deviation, len(self.finished)
        if mean is None or not deviation:
            return None
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
        return mean - half, mean + half

    def __str__(self) -> str:
        """As a sentence has it: name, mean and deviation, seeds."""
        seeds = f"{len(self.of_seeds)} seed{'s' if len(self.of_seeds) > 1 else ''}"
        if self.mean is None:
            return f"{self.name} (none of {seeds} came to an end)"
        if self.diverged:
            seeds += f", {self.diverged} of them diverged"
        return f"{self.name} ({_number(self.mean)}{_spread(self.deviation)}{self.unit}, {seeds})"


@dataclass(frozen=True)
class Comparison:
    """A test between two methods."""

    first: Scores
    second: Scores
    alpha: float
    test: Literal["Welch", "Mann-Whitney", "none"]
    """none if a method has a single seed."""
    p_first: float | None = None
    """One-sided, for "the first is better"."""
    p_second: float | None = None
    """One-sided, for "the second is better"."""
    interval: tuple[float, float] | None = None
    """Of the first mean less the second, at 1 - alpha; of Welch's alone."""
    comparisons: int = 1
    """That are made together with this one, itself among them."""
    detectable: float | None = None
    """The difference that so many seeds with this spread would tell apart four times of five or more often, also where
    it is the least of all comparisons; of Welch's alone."""

    @property
    def p(self) -> float | None:
        """For "they differ": twice the smaller of the two, 1 at most."""
        if self.p_first is None or self.p_second is None:
            return None
        return min(1.0, 2 * min(self.p_first, self.p_second))

    def better(self, adjusted_p: float | None = None) -> Scores | None:
        """Return which is better, or None where the seeds do not tell.

        Args:
            adjusted_p: the p-value for several comparisons together, if this is one of several.
        """
        p = self.p if adjusted_p is None else adjusted_p
        if p is None or p > self.alpha:
            return None
        assert self.p_first is not None
        assert self.p_second is not None
        return self.first if self.p_first < self.p_second else self.second

    def verdict(self, adjusted_p: float | None = None) -> str:
        """Return in words what the seeds can support.

        Interval and p-value are of these two alone; the p-value with the other comparisons, by which the verdict goes,
        follows them.
        """
        pair = f"{self.first}, {self.second}"
        if self.p is None:
            return f"Not tested, with a single seed there is no spread to judge a difference by: {pair}."
        numbers = f"{_p_value(self.p)} ({self.test})"
        if self.interval is not None:
            low, high = self.interval
            difference = f"first less second {_number(low)} to {_number(high)}{self.first.unit}"
            numbers = f"{difference} at {1 - self.alpha:.0%}, {numbers}"
        if adjusted_p is not None and self.comparisons > 1:
            numbers += f", with the other comparisons {_p_value(adjusted_p)} (Holm)"
        better = self.better(adjusted_p)
        if better is not None:
            other = self.second if better is self.first else self.first
            return f"{better.name} is better than {other.name}: {pair}; {numbers}."
        if self.detectable is not None:
            apart = f"{_number(self.detectable)}{self.first.unit}"
            numbers += f"; so many seeds would tell {apart} apart four times of five"
        elif self.test == "Mann-Whitney" and self._least_p() > self.alpha:
            numbers += "; so few seeds tell nothing apart by their ranks"
        return f"Not told apart: {pair}; {numbers}."

    def _least_p(self) -> float:
        """Return the p-value, with the other comparisons, of the clearest result that so many seeds could have."""
        n, m = len(self.first.of_seeds), len(self.second.of_seeds)
        return 2 * self.comparisons / math.comb(n + m, n)


def compare(first: Scores, second: Scores, alpha: float = ALPHA, comparisons: int = 1) -> Comparison:
    """Test two methods against each other.

    Args:
        first: one of them.
        second: the other.
        alpha: how often a verdict may be false.
        comparisons: how many are made together, this one among them; p-values are not adjusted here.

    Raises:
        InputError: alpha is not between 0 and 1, or only one of both is better when higher.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}, allowed is more than 0 and less than 1")
    if first.higher_is_better != second.higher_is_better:
        raise InputError(f"of {first.name} and {second.name} only one is better when higher, allowed is both or none")
    if min(len(first.of_seeds), len(second.of_seeds)) == 1:
        return Comparison(first, second, alpha, "none", comparisons=comparisons)
    if first.diverged or second.diverged or not first.deviation or not second.deviation:
        p_first, p_second = _rank_test(_with_worst(first), _with_worst(second))
        return Comparison(first, second, alpha, "Mann-Whitney", p_first, p_second, comparisons=comparisons)
    return _welch(first, second, alpha, comparisons)


def compare_with(reference: Scores, others: Sequence[Scores], alpha: float = ALPHA) -> dict[str, str]:
    """Return name -> verdict of the reference beside each other method, by Holm's rule for all of them together."""
    found = {other.name: compare(reference, other, alpha, len(others)) for other in others}
    adjusted = holm({name: one.p for name, one in found.items() if one.p is not None}, len(others))
    return {name: one.verdict(adjusted.get(name)) for name, one in found.items()}


def holm(p_values: Mapping[str, float], comparisons: int | None = None) -> dict[str, float]:
    """Return name -> p-value for all of them together, and for those that are still to come, if there are more."""
    comparisons = len(p_values) if comparisons is None else comparisons
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (comparisons - rank) * p_values[name]))
        adjusted[name] = least
    return adjusted


def _welch(first: Scores, second: Scores, alpha: float, comparisons: int) -> Comparison:
    assert first.mean is not None
    assert second.mean is not None
    assert first.deviation is not None
    assert second.deviation is not None
    n, m = len(first.finished), len(second.finished)
    of_first, of_second = first.deviation**2 / n, second.deviation**2 / m
    error = math.sqrt(of_first + of_second)
    freedom = (of_first + of_second) ** 2 / (of_first**2 / (n - 1) + of_second**2 / (m - 1))
    difference = first.mean - second.mean
    z = difference / error if first.higher_is_better else -difference / error
    quantile = float(stats.t.ppf(1 - alpha / 2, freedom))
    strictest = float(stats.t.ppf(1 - alpha / 2 / comparisons, freedom))  # Holm's rule for the least p-value
    return Comparison(
        first,
        second,
        alpha,
        test="Welch",
        p_first=float(stats.t.sf(z, freedom)),
        p_second=float(stats.t.cdf(z, freedom)),
        interval=(difference - quantile * error, difference + quantile * error),
        comparisons=comparisons,
        detectable=float(special.nctdtrinc(freedom, 1 - POWER, strictest)) * error,  # z is a noncentral t by then
    )


def _with_worst(scores: Scores) -> list[float]:
    """Return how good each seed was: higher is better, one that diverged is worse than all."""
    sign = 1.0 if scores.higher_is_better else -1.0
    return [-math.inf if score is None else sign * score for score in scores.of_seeds]


def _rank_test(first: list[float], second: list[float]) -> tuple[float, float]:
    """Return the two one-sided p-values of the sum of the first one's ranks."""
    both, n = [*first, *second], len(first)
    ranks = stats.rankdata(both)
    own = float(ranks[:n].sum())
    if math.comb(len(both), n) <= _MOST_DEALS:
        sums = np.fromiter((sum(deal) for deal in combinations(ranks.tolist(), n)), np.float64)
        return float(np.mean(sums >= own)), float(np.mean(sums <= own))
    # Many seeds: the sum is nearly normal, with the variance that ties leave.
    mean = n * (len(both) + 1) / 2
    deviation = math.sqrt(n * len(second) * float(np.var(ranks, ddof=1)) / len(both))
    if not deviation:
        return 1.0, 1.0
    return float(stats.norm.sf((own - mean - 0.5) / deviation)), float(stats.norm.cdf((own - mean + 0.5) / deviation))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _spread(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.2g}"


def _p_value(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
