"""How far the batch can grow from one place of a training: what branches at larger batches have shown.

From a checkpoint, training branches: at k times the batch B, with the rate sqrt(k) eta, on so many samples as the
branch at k = 1 has, and half as many more. With every order of the data all branches are run; an order's own branch at
k = 1 says which held-out loss is to be reached, its loss after D samples. Then

    gap(k)    = loss of branch k after D samples, less the least of the smaller batches, mean over orders
    excess(k) = samples that branch k takes to that loss, over D, less 1

The batch grows **at no cost** up to the largest k such that it and all smaller ones have a gap within the tolerance,
0.01 as in arXiv 2505.23971. Samples to the loss follow E(B) = E_min (1 + B / B_crit), arXiv 1812.06162, which is fitted
to all branches; E(B) = (1 + s) E(B_0) gives the batch that takes a share s more samples than now.

A held-out loss is made to fall by isotonic regression before it is asked where it reaches another. Scatter between
orders is pooled over the batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from largebatch.errors import InputError
from largebatch.samples_to_target import Growth, fit_growth

EVALUATIONS = 8
"""Of the branch at k = 1, at equal distances; the others have half as many more."""
LEVEL = 0.95

Array = NDArray[np.float64]
State = Literal["complete", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One branch: a multiple of the batch and an order of the data, and what came of it."""

    multiple: int
    order: int
    state: State
    losses: tuple[float, ...]
    """Held-out, after 1, 2, ... eighths of D."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as a line of branches.jsonl has it."""
        return {"multiple": self.multiple, "order": self.order, "state": self.state, "losses": list(self.losses)}

    @staticmethod
    def read(line: Mapping[str, Any]) -> "Branch":
        """Read that line."""
        return Branch(
            multiple=int(line["multiple"]),
            order=int(line["order"]),
            state=line["state"],
            losses=tuple(float(loss) for loss in line["losses"]),
        )


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a batch has shown, over the orders of the data."""

    multiple: int
    batch: int
    loss: float
    """Held-out, after D samples, mean over orders; NaN if it diverged."""
    gap: float
    """Above the least of the smaller batches; NaN for the first, infinite if it diverged in an order."""
    excess: float
    """Mean share of samples more than D; infinite if it did not get there in an order."""
    excesses: tuple[float, ...]
    diverged: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the branches say."""

    batch: int
    samples: int
    """D."""
    tolerance: float
    tried: tuple[Tried, ...]
    no_cost: int
    """The multiple up to which the batch grows at no cost."""
    no_cost_interval: tuple[int, int]
    """The multiples up to which it surely does, and may."""
    growth: Growth | None
    """None where it cannot be fitted: fewer than three branches reached the loss."""
    falls: bool
    """Whether the loss falls within D samples by more than it scatters; nothing can be told if not."""

    @property
    def tried_all(self) -> bool:
        """Whether the largest batch was still at no cost: the answer is then at least that."""
        return self.no_cost == self.tried[-1].multiple

    def batch_at(self, more: float) -> tuple[float, tuple[float, float]] | None:
        """Return the batch that takes a share more samples than now, and its interval; None without a fit."""
        if self.growth is None:
            return None

        def at(critical: float) -> float:
            return (1 + more) * self.batch + more * critical

        low, high = self.growth.critical_batch_interval
        return at(self.growth.critical_batch), (at(low), at(high))


def find(branches: Sequence[Branch], batch: int, samples: int, tolerance: float) -> Findings:
    """Say what the branches show.

    Args:
        branches: of every multiple and order, 1 among the multiples.
        batch: B, of multiple 1.
        samples: D.
        tolerance: of the gap.

    Raises:
        InputError: the branch at the run's own batch diverged, or one is missing.
    """
    by_place = {(branch.multiple, branch.order): branch for branch in branches}
    multiples = sorted({branch.multiple for branch in branches})
    orders = sorted({branch.order for branch in branches})
    missing = [place for place in ((k, order) for k in multiples for order in orders) if place not in by_place]
    if missing or 1 not in multiples:
        raise InputError(f"the branch {missing[0] if missing else (1, 0)} (multiple, order) is missing")
    own = [by_place[1, order] for order in orders]
    if any(branch.state == "diverged" for branch in own):
        raise InputError("the branch at the run's own batch and rate diverged: from here nothing can be told")
    targets = [_falling(branch.losses)[EVALUATIONS - 1] for branch in own]
    at_end = np.array([[_loss_at_end(by_place[k, order]) for order in orders] for k in multiples])
    excesses = [
        [_excess(by_place[k, order], target) if k > 1 else 0.0 for order, target in zip(orders, targets, strict=True)]
        for k in multiples
    ]
    gaps, uncertain = _gaps(at_end)
    tried = [
        Tried(
            multiple=k,
            batch=k * batch,
            loss=float(at_end[row].mean()),
            gap=gaps[row],
            excess=float(np.mean(excesses[row])),
            excesses=tuple(excesses[row]),
            diverged=sum(by_place[k, order].state == "diverged" for order in orders),
        )
        for row, k in enumerate(multiples)
    ]
    return Findings(
        batch=batch,
        samples=samples,
        tolerance=tolerance,
        tried=tuple(tried),
        no_cost=_up_to(multiples, gaps, tolerance),
        no_cost_interval=(
            _up_to(multiples, [gap + more for gap, more in zip(gaps, uncertain, strict=True)], tolerance),
            _up_to(multiples, [gap - more for gap, more in zip(gaps, uncertain, strict=True)], tolerance),
        ),
        growth=_growth(tried, samples),
        falls=_falls(own),
    )


def _falling(losses: Sequence[float]) -> Array:
    return np.asarray(optimize.isotonic_regression(np.array(losses), increasing=False).x)


def _loss_at_end(branch: Branch) -> float:
    if branch.state == "diverged" or len(branch.losses) < EVALUATIONS:
        return math.nan
    return branch.losses[EVALUATIONS - 1]


def _excess(branch: Branch, target: float) -> float:
    """Return the share of samples more than D at which a branch reaches a loss; infinite if it does not."""
    if branch.state == "diverged" or not branch.losses:
        return math.inf
    falling = _falling(branch.losses)
    reached = np.flatnonzero(falling <= target)
    if not len(reached):
        return math.inf
    place = int(reached[0])
    eighths = place + 1.0
    if place and falling[place - 1] > falling[place]:
        eighths -= float((target - falling[place]) / (falling[place - 1] - falling[place]))
    return eighths / EVALUATIONS - 1


def _gaps(at_end: Array) -> tuple[list[float], list[float]]:
    """Return each batch's mean loss above the least of the smaller ones, and half of its interval."""
    orders, t = at_end.shape[1], math.nan
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(at_end).all(axis=1))
    # An order moves all batches alike: what is left is scatter, pooled over the batches.
    rest = at_end[finite] - at_end[finite].mean(axis=0, keepdims=True)
    rest = rest - rest.mean(axis=1, keepdims=True)
    freedom = (int(finite.sum()) - 1) * (orders - 1)
    error = math.inf
    if freedom > 0:
        t = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
        error = t * math.sqrt(2 * float((rest**2).sum()) / freedom / orders)
    gaps, uncertain = [math.nan], [0.0]
    for row in range(1, len(at_end)):
        smaller = at_end[:row][finite[:row]].mean(axis=1)
        gaps.append(float(at_end[row].mean() - smaller.min()) if finite[row] else math.inf)
        uncertain.append(error if finite[row] else 0.0)
    return gaps, uncertain


def _up_to(multiples: Sequence[int], gaps: Sequence[float], tolerance: float) -> int:
    found = multiples[0]
    for k, gap in zip(multiples[1:], gaps[1:], strict=True):
        if not gap <= tolerance:
            break
        found = k
    return found


def _growth(tried: Sequence[Tried], samples: int) -> Growth | None:
    points = [(one.batch, (1 + excess) * samples) for one in tried for excess in one.excesses]
    reached = [point for point in points if math.isfinite(point[1])]
    if len(reached) < 3 or len({batch for batch, _ in reached}) < 2:
        return None
    fitted = fit_growth(reached, LEVEL)
    return Growth(
        fitted.least_samples,
        fitted.samples_per_batch,
        fitted.critical_batch_interval,
        fitted.level,
        fitted.points,
        left_out=len(points) - len(reached),
    )


def _falls(own: Sequence[Branch]) -> bool:
    """Return whether the loss falls from the first eighth to the last by more than it goes up and down on the way."""
    losses = np.array([branch.losses for branch in own])
    mean = losses.mean(axis=0)
    return bool(mean[0] - mean[-1] > 2 * np.abs(mean - _falling(mean)).max())
