"""What branches say of the batch: on curves whose critical batch is known, and where nothing can be told."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from largebatch.advise.critical_batch import EVALUATIONS, Branch, Findings, find
from largebatch.errors import InputError

BATCH, SAMPLES, CRITICAL = 64, 8192, 512
MULTIPLES = (1, 2, 4, 8)


def curve(
    batch: int, critical: float, scatter: float, generator: np.random.Generator, *, own: bool
) -> tuple[float, ...]:
    """Return held-out losses that depend on samples / (1 + B / B_crit), as theory has it."""
    samples = SAMPLES * np.arange(1, EVALUATIONS + 1 + (0 if own else EVALUATIONS // 2)) / EVALUATIONS
    losses = 3 + 2 * (1 + 4 * samples / SAMPLES / (1 + batch / critical)) ** -0.5
    return tuple((losses + scatter * generator.normal(size=len(losses))).tolist())


def branches(
    critical: float = CRITICAL,
    *,
    scatter: float = 1e-3,
    seed: int = 0,
    orders: int = 2,
    multiples: Sequence[int] = MULTIPLES,
) -> list[Branch]:
    generator = np.random.default_rng(seed)
    return [
        Branch(
            multiple=k,
            order=order,
            state="complete",
            losses=curve(k * BATCH, critical, scatter, generator, own=k == 1),
        )
        for order in range(orders)
        for k in multiples
    ]


def found(held: list[Branch], tolerance: float = 0.01) -> Findings:
    return find(held, BATCH, SAMPLES, tolerance)


def test_the_critical_batch_is_found_within_a_factor_of_one_and_a_half() -> None:
    ratios = []
    for seed in range(60):
        growth = found(branches(scatter=4e-3, seed=seed)).growth
        assert growth is not None
        ratios.append(growth.critical_batch / CRITICAL)
    inside = [1 / 1.5 <= ratio <= 1.5 for ratio in ratios]
    assert np.mean(inside) >= 0.95
    assert np.median(ratios) == pytest.approx(1, rel=0.15)


def test_the_batch_with_a_fifth_more_samples_follows_from_it() -> None:
    told = found(branches(scatter=0.0))
    more = told.batch_at(0.2)
    assert more is not None
    assert more[0] == pytest.approx(1.2 * BATCH + 0.2 * CRITICAL, rel=0.05)
    assert told.growth is not None
    assert told.growth.left_out == 1, "at eight times the batch the loss is not reached"
    excess = {one.multiple: one.excess for one in told.tried}
    assert excess[2] == pytest.approx((1 + 2 / 8) / (1 + 1 / 8) - 1, abs=0.01)
    assert excess[4] == pytest.approx((1 + 4 / 8) / (1 + 1 / 8) - 1, abs=0.01)
    assert math.isinf(excess[8])


def test_a_batch_that_did_not_get_there_bounds_the_answer() -> None:
    """Little is lost at two and four times the batch, and eight times it does not come to the loss at all."""
    held = branches(critical=1e5, scatter=0.0)
    slow = curve(8 * BATCH, 200, 0.0, np.random.default_rng(0), own=False)
    held = [b if b.multiple < 8 else Branch(multiple=8, order=b.order, state="complete", losses=slow) for b in held]
    more = found(held).batch_at(0.2)
    assert more is not None
    assert more[0] < 8 * BATCH
    assert found(branches(critical=1e5, scatter=0.0)).batch_at(0.2) is not None


def test_the_batch_grows_until_a_loss_is_above_the_tolerance() -> None:
    end = {k: curve(k * BATCH, CRITICAL, 0.0, np.random.default_rng(0), own=False)[EVALUATIONS - 1] for k in MULTIPLES}
    gaps = [end[k] - end[1] for k in MULTIPLES[1:]]
    assert found(branches(scatter=0.0), tolerance=(gaps[0] + gaps[1]) / 2).no_cost == 2
    assert found(branches(scatter=0.0), tolerance=(gaps[1] + gaps[2]) / 2).no_cost == 4
    assert found(branches(scatter=0.0), tolerance=gaps[2] * 1.01).tried_all
    assert found(branches(scatter=0.0), tolerance=gaps[0] * 0.9).no_cost == 1


def test_the_interval_of_the_free_batch_widens_with_the_scatter() -> None:
    quiet = found(branches(scatter=1e-4), tolerance=0.06).no_cost_interval
    loud = found(branches(scatter=0.05), tolerance=0.06).no_cost_interval
    assert quiet[0] == quiet[1] == 2
    assert loud[0] < quiet[0]
    assert loud[1] > quiet[1]
    assert found(branches(orders=1, scatter=1e-4), tolerance=0.06).no_cost_interval == (1, 8), (
        "one order tells no scatter"
    )


def test_a_branch_that_diverges_is_no_answer() -> None:
    held = [
        branch
        if branch.multiple < 4 or branch.order
        else Branch(multiple=branch.multiple, order=0, state="diverged", losses=())
        for branch in branches(scatter=0.0)
    ]
    told = found(held, tolerance=1.0)
    assert [one.diverged for one in told.tried] == [0, 0, 1, 1]
    assert told.no_cost == 2
    assert told.no_cost_interval == (2, 2)
    own = [Branch(multiple=1, order=0, state="diverged", losses=()), *branches()[1:]]
    with pytest.raises(InputError, match="the run's own batch and rate diverged"):
        found(own)


def test_a_loss_that_does_not_fall_tells_nothing() -> None:
    flat = [
        Branch(
            multiple=b.multiple,
            order=b.order,
            state="complete",
            losses=tuple(3 + 0.1 * math.sin(7 * i) for i in range(12)),
        )
        for b in branches()
    ]
    assert not found(flat).falls
    assert found(branches()).falls


def test_a_single_rise_on_the_way_moves_little() -> None:
    held = branches(scatter=0.0)
    place = next(i for i, b in enumerate(held) if b.multiple == 2)
    bumped = list(held[place].losses)
    bumped[5] += 0.02
    held[place] = Branch(multiple=2, order=0, state="complete", losses=tuple(bumped))
    assert found(held).tried[1].excesses[0] == pytest.approx(
        found(branches(scatter=0.0)).tried[1].excesses[0], abs=0.05
    )


def test_a_branch_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"the branch \(8, 1\) \(multiple, order\) is missing"):
        found(branches()[:-1])


def test_a_branch_is_read_as_it_was_written() -> None:
    (branch, *_) = branches()
    assert Branch.read(branch.as_dict()) == branch
