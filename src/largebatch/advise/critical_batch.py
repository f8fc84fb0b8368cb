"""How far the batch can grow from one place of a training: what branches at larger batches have shown.

From a checkpoint, training branches: at k times the batch B, with the rate sqrt(k) eta, on so many samples as the
branch at k = 1 has, and half as many more, with several orders of the data. Losses are held-out ones, the mean over
orders; that at k = 1 after D samples is to be reached. Then

    gap(k)    = loss of branch k after D samples, less the least of the smaller batches
    excess(k) = samples that branch k takes to the loss to be reached, over D, less 1

The batch grows **at no cost** up to the largest k such that it and all smaller ones have a gap within the tolerance,
0.01 as in arXiv 2505.23971. Samples to the loss follow E(B) = E_min (1 + B / B_crit), arXiv 1812.06162, of which B_crit
is fitted by least squares in log E, E(B_0) being D; a branch that does not get there counts as far as the fit lets it
take less than it had. E(B) = (1 + s) D gives the batch that takes a share s more.

A loss is made to fall by isotonic regression before it is asked where it reaches another. Orders are averaged before:
where each is asked by itself, the branches that do not get there would be left out, and those that do are the lucky
ones. Intervals are by bootstrap: what is left of each loss when the means of its batch and of its order are taken away
is drawn again, a whole branch at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from largebatch.errors import InputError
from largebatch.samples_to_target import Growth

EVALUATIONS = 8
"""Of the branch at k = 1, at equal distances; the others have half as many more."""
MOST = 1.5
"""Times D, the samples of the other branches."""
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
        """Read that line; ValueError, KeyError or TypeError if it is none."""
        multiple, order, state = int(line["multiple"]), int(line["order"]), line["state"]
        losses = tuple(float(loss) for loss in line["losses"])
        wanted = EVALUATIONS if multiple == 1 else round(MOST * EVALUATIONS)
        if multiple < 1 or order < 0 or state not in ("complete", "diverged") or not all(map(math.isfinite, losses)):
            raise ValueError("a field has a value that no branch has")
        if state == "complete" and len(losses) != wanted:
            raise ValueError(f"a branch has {wanted} losses")
        return Branch(multiple=multiple, order=order, state=state, losses=losses)


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
    """Share of samples more than D; infinite if it does not get there with half as many more."""
    excesses: tuple[float, ...]
    """The same of each order by itself."""
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
    """None where no branch but the run's own reaches the loss."""
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


def find(branches: Sequence[Branch], batch: int, samples: int, tolerance: float, *, repetitions: int = 300) -> Findings:
    """Say what the branches show.

    Args:
        branches: of every multiple and order, 1 among the multiples.
        batch: B, of multiple 1.
        samples: D.
        tolerance: of the gap.
        repetitions: of the bootstrap.

    Raises:
        InputError: the branch at the run's own batch diverged, or one is missing.
    """
    by_place = {(branch.multiple, branch.order): branch for branch in branches}
    multiples = sorted({branch.multiple for branch in branches})
    orders = sorted({branch.order for branch in branches})
    if any(branch.state == "diverged" for branch in branches if branch.multiple == 1):
        raise InputError("the branch at the run's own batch and rate diverged: from here nothing can be told")
    missing = [place for place in ((k, order) for k in multiples for order in orders) if place not in by_place]
    if missing or 1 not in multiples:
        raise InputError(f"the branch {missing[0] if missing else (1, 0)} (multiple, order) is missing")
    diverged = {k: sum(by_place[k, order].state == "diverged" for order in orders) for k in multiples}
    sound = [k for k in multiples if not diverged[k]]
    losses = {k: np.array([by_place[k, order].losses for order in orders]) for k in sound}
    means = {k: losses[k].mean(axis=0) for k in sound}
    seen = _Shown.by(means, multiples, batch, tolerance)
    drawn = [
        _Shown.by(again, multiples, batch, tolerance) for again in _drawn_again(losses, repetitions if sound[1:] else 0)
    ]
    tried = [
        Tried(
            multiple=k,
            batch=k * batch,
            loss=float(means[k][EVALUATIONS - 1]) if k in means else math.nan,
            gap=seen.gaps[k],
            excess=seen.excesses[k],
            excesses=tuple(_excess(one, own) for one, own in zip(losses[k], losses[1], strict=True))
            if k in losses
            else (math.inf,) * len(orders),
            diverged=diverged[k],
        )
        for k in multiples
    ]
    return Findings(
        batch=batch,
        samples=samples,
        tolerance=tolerance,
        tried=tuple(tried),
        no_cost=seen.no_cost,
        no_cost_interval=_middle([one.no_cost for one in drawn]) if drawn else (1, sound[-1]),
        growth=_growth(seen, drawn, batch, samples),
        falls=_falls(means[1]),
    )


@dataclass(frozen=True)
class _Shown:
    """What mean losses come to."""

    gaps: dict[int, float]
    excesses: dict[int, float]
    no_cost: int
    critical_batch: float
    """NaN where no branch reaches the loss."""

    @staticmethod
    def by(means: Mapping[int, Array], multiples: Sequence[int], batch: int, tolerance: float) -> "_Shown":
        """Ask them; batches without any diverged."""
        gaps, excesses, least = {1: math.nan}, {1: 0.0}, math.inf
        no_cost, goes_on = 1, True
        for k in multiples:
            end = float(means[k][EVALUATIONS - 1]) if k in means else math.inf
            if k > 1:
                gaps[k] = end - least
                excesses[k] = _excess(means[k], means[1]) if k in means else math.inf
                goes_on = goes_on and gaps[k] <= tolerance
                no_cost = k if goes_on else no_cost
            least = min(least, end)
        return _Shown(gaps, excesses, no_cost, _critical_batch(excesses, batch))


def _falling(losses: Array) -> Array:
    return np.asarray(optimize.isotonic_regression(losses, increasing=False).x)


def _excess(losses: Array, own: Array) -> float:
    """Return the share of samples more than D at which a branch reaches the run's own loss; infinite if it does not."""
    if losses is own:
        return 0.0
    target, falling = float(_falling(own)[EVALUATIONS - 1]), _falling(losses)
    reached = np.flatnonzero(falling <= target)
    if not len(reached):
        return math.inf
    place = int(reached[0])
    eighths = place + 1.0
    if place and falling[place - 1] > falling[place]:
        eighths -= float((target - falling[place]) / (falling[place - 1] - falling[place]))
    return eighths / EVALUATIONS - 1


def _critical_batch(excesses: Mapping[int, float], batch: int) -> float:
    """Fit (1 + k B / B_crit) / (1 + B / B_crit) to 1 + excess, by least squares of logarithms.

    Of a branch that did not get there only that it takes more than it had is known.
    """
    told = {
        k: math.log1p(excess) if math.isfinite(excess) else math.log(MOST) for k, excess in excesses.items() if k > 1
    }
    reached = [k for k in told if math.isfinite(excesses[k])]
    if not reached:
        return math.nan
    largest = max(told)

    def squares(log_share: float) -> float:
        share, total = math.exp(log_share), 0.0  # B / B_crit
        for k, logarithm in told.items():
            short = logarithm - math.log((1 + k * share) / (1 + share))
            total += short**2 if k in reached else max(short, 0.0) ** 2
        return total

    low, high = math.log(1e-4 / largest), math.log(1e4)
    grid = np.linspace(low, high, 200)
    at = int(np.argmin([squares(place) for place in grid]))
    if at == 0:
        return math.inf
    found: Any = optimize.minimize_scalar(
        squares, bounds=(grid[at - 1], grid[min(at + 1, len(grid) - 1)]), method="bounded"
    )
    return batch / math.exp(float(found.x))


def _drawn_again(losses: Mapping[int, Array], repetitions: int) -> list[dict[int, Array]]:
    """Return mean losses as other orders would have made them; none where one order tells no scatter."""
    orders = len(losses[1])
    if orders < 2:
        return []
    means = {k: one.mean(axis=0) for k, one in losses.items()}
    rest = {k: one - means[k] for k, one in losses.items()}
    longest = max(rest.values(), key=lambda one: one.shape[1]).shape[1]
    for place in range(longest):  # what an order does to all of its branches is no scatter between them
        having = [one for one in rest.values() if one.shape[1] > place]
        common = np.mean([one[:, place] for one in having], axis=0)
        for one in having:
            one[:, place] -= common
    count = len(rest)
    grown = math.sqrt(count / max(count - 1, 1) * orders / (orders - 1))
    pool = [grown * row for one in rest.values() for row in one]
    generator = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        again = {}
        for k, mean in means.items():
            fitting = [row for row in pool if len(row) >= len(mean)]
            chosen = generator.integers(len(fitting), size=orders)
            again[k] = mean + np.mean([fitting[place][: len(mean)] for place in chosen], axis=0)
        found.append(again)
    return found


def _middle(values: Sequence[int]) -> tuple[int, int]:
    """Return between which the middle 95 % lie."""
    ordered = sorted(values)
    cut = int(len(ordered) * (1 - LEVEL) / 2)
    return ordered[cut], ordered[-1 - cut]


def _growth(seen: _Shown, drawn: Sequence[_Shown], batch: int, samples: int) -> Growth | None:
    critical = seen.critical_batch
    if math.isnan(critical):
        return None
    again = np.array([batch / one.critical_batch for one in drawn if not math.isnan(one.critical_batch)])
    interval = (0.0, math.inf)
    if len(again):
        high, low = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()  # of B / B_crit
        interval = (batch / low if low else math.inf, batch / high if high else math.inf)
    share = batch / critical
    reached = [k for k, excess in seen.excesses.items() if math.isfinite(excess)]
    return Growth(
        least_samples=samples / (1 + share),
        samples_per_batch=samples / (1 + share) / critical,
        critical_batch_interval=interval,
        level=LEVEL,
        points=len(reached),
        left_out=len(seen.excesses) - len(reached),
        points_are="batches",
    )


def _falls(mean: Array) -> bool:
    """Return whether a loss falls from the first eighth to the last by more than it goes up and down on the way."""
    return bool(mean[0] - mean[-1] > 2 * np.abs(mean - _falling(mean)).max())
