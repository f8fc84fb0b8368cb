"""The bounds hold on problems with proven constants, and wrong constants and rates are caught."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from largebatch.advise import bounds
from largebatch.advise.bounds import Constants, Span
from largebatch.advise.laboratory import (
    RULES,
    Array,
    Problems,
    RuleName,
    bound,
    designed_problems,
    own_lr,
    random_problems,
    run,
    slopes,
)

PROBLEMS = random_problems(100, 0)


def held_against(problems: Problems, rule: RuleName, steps: int, *, coupled: bool = True) -> tuple[Array, Array]:
    """Return what was measured and the bound, of each problem, at the rule's own rate and b = T."""
    constants = problems.constants(steps, coupled=coupled)
    lrs = np.array([own_lr(rule, of, steps, problems.phi) for of in constants])
    limits = [bound(rule, of, steps, steps, lr, problems.phi) for of, lr in zip(constants, lrs.tolist(), strict=True)]
    return run(problems, rule, steps, steps, lrs).measured, np.array(limits)


@pytest.mark.parametrize("rule", RULES)
def test_no_measured_point_lies_above_its_bound(rule: RuleName) -> None:
    for steps in (4, 64):
        measured, limits = held_against(PROBLEMS, rule, steps)
        assert len(measured) == 100
        assert (measured <= limits).all()


def hessian(of: Problems, number: int, x: Array) -> Array:
    w, a = of.directions[number], of.amplitudes[number]
    return (w * (a * np.cos((x - of.centres[number]) @ w.T))[:, None]).T @ w


def test_the_constants_are_proven_ones() -> None:
    generator = np.random.default_rng(1)
    few = random_problems(12, 5)
    owner = np.repeat(np.arange(len(few.sizes)), few.sizes)
    curvatures = few.curvatures()
    for number in range(len(few)):
        for _ in range(5):
            x = few.centres[number] + generator.normal(size=len(owner))
            bounded = np.diag(curvatures[number][owner]) - hessian(few, number, x)
            assert np.linalg.eigvalsh(bounded).min() >= -1e-9
    x = few.starts[:, None, :] + 0.1
    step = 1e-6 * generator.normal(size=x.shape)
    found = few.values(x + step) - few.values(x - step)
    np.testing.assert_allclose(found, 2 * (few.gradients(x) * step).sum(axis=2), rtol=1e-4, atol=1e-13)
    largest = np.array([of.largest_gradient for of in few.constants(1)])
    assert (np.abs(few.gradients(x)).max(axis=(1, 2)) <= largest).all()


def aligned() -> Problems:
    """All layers pull at one term: each alone is flat beside what they are together."""
    return Problems(
        amplitudes=np.ones((1, 1)),
        directions=np.ones((1, 1, 8)),
        centres=np.zeros((1, 8)),
        starts=np.full((1, 8), 0.01),
        deviations=np.zeros((1, 8)),
        sizes=(1,) * 8,
        phi=Span(),
    )


@pytest.mark.parametrize("rule", ["lars", "lamb-sign"])
def test_curvatures_of_the_diagonal_blocks_alone_would_be_caught(rule: RuleName) -> None:
    measured, limits = held_against(aligned(), rule, 64)
    assert 0.7 * limits < measured <= limits, "the bound is nearly reached"
    measured, limits = held_against(aligned(), rule, 64, coupled=False)
    assert measured > 2 * limits


def test_half_of_the_distance_would_be_caught() -> None:
    """On a long slope D / (eta T) is all there is: a constant of one half there is wrong."""
    slope = replace(aligned(), directions=np.full((1, 1, 8), 1e-3), starts=np.full((1, 8), 250.0))
    (of,) = slope.constants(64)
    lr = 16.0
    measured = run(slope, "lars", 64, 64, np.array([lr])).measured
    assert measured <= bounds.lars_bound(of, 64, 64, lr)
    assert measured > bounds.lars_bound(replace(of, gap=of.gap / 2), 64, 64, lr)


POWERS: dict[RuleName, float] = {"sgd": -1.0, "lars": -0.5, "lamb-sign": -0.5, "lamb": -0.5}


def slope_of(rule: RuleName, *, falling: bool = True) -> float:
    few, found, lengths = random_problems(30, 2), [], (256, 1024)
    for steps in lengths:
        constants = few.constants(steps)
        lrs = np.array([own_lr(rule, of, steps if falling else 64, few.phi) for of in constants])
        found.append(run(few, rule, steps, steps, lrs, repetitions=2).measured)
    return slopes(lengths, np.array(found)).mean


@pytest.mark.parametrize("rule", RULES)
def test_measures_fall_with_the_power_of_the_theory(rule: RuleName) -> None:
    slope = slope_of(rule)
    if rule == "lamb":  # bounded from above only, and on the way to it
        assert -0.75 < slope < POWERS[rule]
    else:
        assert slope == pytest.approx(POWERS[rule], abs=0.06)


def test_a_rate_that_does_not_fall_with_the_steps_would_be_caught() -> None:
    assert slope_of("lars", falling=False) > POWERS["lars"] + 0.2


def test_designed_problems_have_the_curvatures_and_gradients_that_were_asked_for() -> None:
    few = designed_problems(3, 0, curvature_spread=100, gradient_spread=16, noise=2)
    curvatures = few.curvatures()
    assert curvatures.max(axis=1) == pytest.approx([1.0] * 3)
    assert curvatures.min(axis=1) == pytest.approx([0.01] * 3)
    gradients = few.gradients(few.starts[:, None, :])[:, 0]
    norms = np.sqrt(np.add.reduceat(gradients**2, few.edges, axis=1))
    assert norms.max(axis=1) == pytest.approx([1.0] * 3)
    assert norms.min(axis=1) == pytest.approx([1 / 16] * 3)
    (of, *_) = few.constants(1)
    assert of.deviations == pytest.approx([2 * math.sqrt((norms[0] ** 2).mean())] * 8)


def test_the_bound_tells_where_layerwise_rules_should_win() -> None:
    def ratio(curvatures: tuple[float, ...], norms: tuple[float, ...], deviations: tuple[float, ...]) -> float:
        of = Constants(
            gap=1.0, curvatures=curvatures, deviations=deviations, coordinate_deviations=deviations, sizes=(4,) * 4
        )
        return bounds.lars_over_sgd(of, norms, 100, 1e9)

    quiet = (1e-6,) * 4
    assert ratio((1.0, 1e-3, 1e-3, 1e-3), (1.0,) * 4, quiet) < 0.3, "one layer is curved, all have gradients"
    assert ratio((1.0,) * 4, (1.0, 1e-3, 1e-3, 1e-3), quiet) > 3, "all are curved, one has a gradient"
    assert ratio((1.0,) * 4, (1.0,) * 4, quiet) == pytest.approx(1.0, rel=1e-4)


def test_densities_lie_between_one_layer_and_all_alike() -> None:
    assert bounds.density([1.0, 0, 0, 0]) == 0.25
    assert bounds.density([2.0] * 4) == 1
    assert bounds.density([0.0] * 4) == 1
    of = Constants(gap=1, curvatures=(1, 0), deviations=(1, 1), coordinate_deviations=(1, 1), sizes=(2, 2))
    assert bounds.densities(of, [1, 1]) == bounds.Density(gradient=1, curvature=0.5, deviation=1)


ALONE = Constants(gap=1.0, curvatures=(1.0,), deviations=(1.0,), coordinate_deviations=(1.0,), sizes=(1,))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"curvatures": (1.0, 2.0)}, r"of \[1, 2\] layers"),
        ({"deviations": (-1.0,)}, "deviations are"),
        ({"gap": 0.0}, r"gap is 0\.0"),
        ({"curvatures": (0.0,)}, "one is above 0"),
    ],
)
def test_constants_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(ALONE, **changes)


def test_rates_and_spans_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr is 1\.1"):
        bounds.sgd_bound(ALONE, 10, 1, 1.1)
    with pytest.raises(ValueError, match="beta2 is 1"):
        bounds.lamb_bound(ALONE, 10, 1, 0.1, 1.0)
    with pytest.raises(ValueError, match="batch is 0"):
        bounds.lars_bound(ALONE, 10, 0, 0.1)
    with pytest.raises(ValueError, match="there are 2 gradient norms"):
        bounds.lars_over_sgd(ALONE, [1.0, 2.0], 10, 1)
    with pytest.raises(ValueError, match=r"phi lies between 2\.0 and 1\.0"):
        Span(low=2.0)
