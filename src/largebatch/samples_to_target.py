"""How many samples a target takes, and how that grows with the batch.

    E(B) = E_min (1 + B / B_crit)

Below B_crit a larger batch costs nearly no more samples and so fewer steps; beyond it steps hardly fall any more. At
B = B_crit twice E_min is needed. Source: McCandlish et al., arXiv 1812.06162, equations 2.11 and 5.2.

The fit is by least squares in log E, as samples scatter by a share of themselves. For each B_crit the best E_min is
exp(mean(log E - log(1 + B / B_crit))), so that one number is searched for; its interval holds all B_crit whose squares
are at most (1 + F / (n - 2)) times the least, F being the quantile of F(1, n - 2). Where E does not grow with B no
B_crit is too large, and the interval says so with infinity; where it grows as B does, none is too small, and the
interval begins at 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from largebatch.errors import InputError

_LEAST_POINTS = 3
_FURTHEST = 1e4
"""B_crit is searched for up to so many times the largest batch, and down to that part of the least."""


def samples_to_target(
    evaluations: Sequence[tuple[int, float]], target: float, higher_is_better: bool = True
) -> int | None:
    """Return the samples after which an evaluation first reached the target; None if none did.

    Args:
        evaluations: (samples seen, score), in this order; NaN reaches nothing.
        target: of the score.
        higher_is_better: as of an accuracy, not as of a loss.
    """
    for samples, score in evaluations:
        if score >= target if higher_is_better else score <= target:
            return samples
    return None


@dataclass(frozen=True)
class Growth:
    """A fit, E(B) = least_samples + samples_per_batch B."""

    least_samples: float
    """E_min, samples to the target at the smallest batches; 0 where E grows as B does."""
    samples_per_batch: float
    """E_min / B_crit, the fewest steps to the target; 0 where E does not grow."""
    critical_batch_interval: tuple[float, float]
    level: float
    points: int
    left_out: int = 0
    """Runs that never reached the target: what they would have needed is not known, only that it is more."""
    points_are: str = "runs"
    """What a sentence calls the points."""

    @property
    def critical_batch(self) -> float:
        """B_crit, in samples; infinite where E does not grow."""
        return self.least_samples / self.samples_per_batch if self.samples_per_batch else math.inf

    def samples(self, batch: float) -> float:
        """Return E(B)."""
        return self.least_samples + self.samples_per_batch * batch

    def __str__(self) -> str:
        """As a sentence has it."""
        return self._fitted() + (f"; {self.left_out} more never reached the target" if self.left_out else "")

    def _fitted(self) -> str:
        low, high = self.critical_batch_interval
        share = f"({self.level:.0%})"
        if not self.samples_per_batch:
            bound = f": the critical batch is {low:,.0f} or more {share}" if low else ""
            return f"the samples to the target do not grow with the batch in {self.points} {self.points_are}{bound}"
        if not self.least_samples:
            bound = f": the critical batch is {max(high, 1):,.0f} or less {share}" if math.isfinite(high) else ""
            return f"the samples to the target grow as the batch does in {self.points} {self.points_are}{bound}"
        lower = f"{low:,.0f}" if low else "no lower bound"
        upper = f"{high:,.0f}" if math.isfinite(high) else "no upper bound"
        return (
            f"critical batch {self.critical_batch:,.0f} ({self.level:.0%}: {lower} to {upper}), "
            f"{self.least_samples:,.0f} samples at the least, from {self.points} {self.points_are}"
        )


def fit_growth(points: Sequence[tuple[float, float]], level: float = 0.95) -> Growth:
    """Fit E(B) to measured points.

    Args:
        points: (batch, samples to the target), several of a batch where several seeds ran.
        level: of the interval.

    Raises:
        InputError: fewer than three points or two batches, or a number that is not finite and positive.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}, allowed is more than 0 and less than 1")
    for point in points:
        if not all(0 < value < math.inf for value in point):
            raise InputError(f"batch and samples are {point}, allowed are finite numbers above 0")
    different = len({batch for batch, _ in points})
    if len(points) < _LEAST_POINTS or different < 2:
        raise InputError(
            f"there are {len(points)} runs at {different} batches, "
            f"allowed are {_LEAST_POINTS} runs or more at 2 batches or more"
        )
    batches, samples = np.array(points, np.float64).T
    squares = _squares(batches, np.log(samples))
    low, high = math.log(batches.min() / _FURTHEST), math.log(batches.max() * _FURTHEST)
    grid = np.linspace(low, high, 400)
    at = int(np.argmin([squares(place) for place in grid]))
    beside = (grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)])
    found: Any = optimize.minimize_scalar(squares, bounds=beside, method="bounded")
    best = float(found.x)
    logs = np.log(samples)
    if at == len(grid) - 1:
        least, slope = float(np.exp(logs.mean())), 0.0
    elif at == 0:
        least, slope = 0.0, float(np.exp(np.mean(logs - np.log(batches))))
    else:
        least = float(np.exp(np.mean(logs - np.log1p(batches / math.exp(best)))))
        slope = least / math.exp(best)
    allowed = squares(best) * (1 + float(stats.f.ppf(level, 1, len(points) - 2)) / (len(points) - 2))
    interval = (_end(squares, allowed, best, low, 0.0), _end(squares, allowed, best, high, math.inf))
    return Growth(least, slope, interval, level, len(points))


Squares = Callable[[float], float]


def _squares(batches: NDArray[np.float64], logs: NDArray[np.float64]) -> Squares:
    """Return log B_crit -> the sum of squares that the best E_min leaves."""

    def of(log_critical: float) -> float:
        rest = logs - np.log1p(batches / math.exp(log_critical))
        return float(np.sum((rest - rest.mean()) ** 2))

    return of


def _end(squares: Squares, allowed: float, best: float, far: float, beyond: float) -> float:
    """Return where the interval ends on one side of the best; ``beyond`` if it does not up to ``far``."""
    if squares(far) <= allowed:
        return beyond
    return math.exp(float(optimize.root_scalar(lambda place: squares(place) - allowed, bracket=(best, far)).root))
