"""The gradient noise scale: exact identities, no bias, intervals that hold what they say."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from largebatch.noise_scale import (
    NoiseEstimate,
    NoiseScale,
    RunningNoise,
    from_parts,
    from_two_batches,
    of_steps,
    over_steps,
)

Array = NDArray[np.float64]


def test_two_batches_are_solved_exactly() -> None:
    square, trace = 3.0, 40.0
    found = from_two_batches(4, square + trace / 4, 64, square + trace / 64)
    assert found.gradient_square == pytest.approx(square, rel=1e-12)
    assert found.covariance_trace == pytest.approx(trace, rel=1e-12)
    assert found.scale == pytest.approx(trace / square, rel=1e-12)


def test_parts_of_one_size_are_two_batches() -> None:
    parts = np.random.default_rng(0).normal(size=(8, 5)) + 0.3  # mean gradients of 8 parts of 6 samples
    small, large = float(np.mean(np.sum(parts**2, axis=1))), float(np.sum(parts.mean(axis=0) ** 2))
    wanted = from_two_batches(6, small, 48, large)
    found = from_parts(48, 8 * 6**2, float(np.sum((parts / 8) ** 2)), large)
    assert found.gradient_square == pytest.approx(wanted.gradient_square, rel=1e-12)
    assert found.covariance_trace == pytest.approx(wanted.covariance_trace, rel=1e-12)


SIZES = (32, 32, 7, 1)


def drawn(steps: int, seed: int, mean: Array, scales: Array, sizes: Sequence[int] = SIZES) -> list[list[NoiseEstimate]]:
    """Return, step by step, the estimates of each of two layers of a gradient with known mean and covariance."""
    generator = np.random.default_rng(seed)
    total, squared = sum(sizes), sum(size**2 for size in sizes)
    found = []
    for _ in range(steps):
        parts = np.stack(
            [size / total * (mean + scales * generator.normal(size=len(mean)) / math.sqrt(size)) for size in sizes]
        )
        layers = (slice(0, 3), slice(3, None))
        found.append(
            [
                from_parts(total, squared, float(np.sum(parts[:, at] ** 2)), float(np.sum(parts[:, at].sum(0) ** 2)))
                for at in layers
            ]
        )
    return found


MEAN = np.array([0.4, -0.2, 0.1, 0.3, 0.0])
SCALES = np.array([1.0, 2.0, 0.5, 3.0, 1.0])


def test_neither_mean_has_a_bias_and_layers_add_up() -> None:
    steps = drawn(20_000, 1, MEAN, SCALES)
    for layer, at in enumerate((slice(0, 3), slice(3, None))):
        square = np.array([step[layer].gradient_square for step in steps])
        trace = np.array([step[layer].covariance_trace for step in steps])
        for values, wanted in ((square, np.sum(MEAN[at] ** 2)), (trace, np.sum(SCALES[at] ** 2))):
            assert abs(values.mean() - wanted) < 4 * values.std() / math.sqrt(len(steps))
    whole = over_steps([first + second for first, second in steps])
    assert whole.scale == pytest.approx(np.sum(SCALES**2) / np.sum(MEAN**2), rel=0.1)


def _divided_first(steps: Sequence[NoiseEstimate]) -> float:
    return float(np.mean([step.covariance_trace / step.gradient_square for step in steps]))


def _parts_of_one_size(steps: int) -> float:
    """Forget that parts differ in size: q is taken for 1 / parts."""
    generator = np.random.default_rng(5)
    total, estimates = sum(SIZES), []
    for _ in range(steps):
        parts = [n / total * (MEAN + SCALES * generator.normal(size=5) / math.sqrt(n)) for n in SIZES]
        square = float(np.sum(np.sum(parts, axis=0) ** 2))
        estimates.append(from_parts(total, total**2 / len(SIZES), float(np.sum(np.square(parts))), square))
    return over_steps(estimates).scale


def test_wrong_variants_would_be_seen() -> None:
    wanted = np.sum(SCALES**2) / np.sum(MEAN**2)
    steps = [first + second for first, second in drawn(3000, 2, MEAN, SCALES)]
    assert over_steps(steps).scale == pytest.approx(wanted, rel=0.15)
    assert _divided_first(steps) != pytest.approx(wanted, rel=0.3)
    assert _parts_of_one_size(3000) != pytest.approx(wanted, rel=0.3)


def covered(interval: Callable[[list[NoiseEstimate]], tuple[float, float]], repetitions: int, count: int = 60) -> float:
    wanted = np.sum(SCALES**2) / np.sum(MEAN**2)
    inside = 0
    for repetition in range(repetitions):
        steps = [first + second for first, second in drawn(count, 1000 + repetition, MEAN, SCALES)]
        low, high = interval(steps)
        inside += low <= wanted <= high
    return inside / repetitions


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.925 <= covered(lambda steps: over_steps(steps).interval, 1000) <= 0.975
    assert 0.925 <= covered(lambda steps: over_steps(steps).interval, 1000, 8) <= 0.985, "and of few steps"

    def of_trace_alone(steps: list[NoiseEstimate]) -> tuple[float, float]:
        found = over_steps(steps)
        trace = np.array([step.covariance_trace for step in steps])
        error = 1.96 * trace.std() / math.sqrt(len(steps)) / found.mean.gradient_square
        return found.scale - error, found.scale + error

    assert covered(of_trace_alone, 300) < 0.9, "the scatter of |g|^2 left out would be seen"


def test_where_no_gradient_is_seen_there_is_no_upper_bound() -> None:
    steps = [first + second for first, second in drawn(40, 3, np.zeros(5), SCALES)]
    found = over_steps(steps)
    assert found.interval[1] == math.inf
    assert 0 < found.interval[0] < math.inf
    assert "no upper bound" in str(found)
    assert NoiseEstimate(-1.0, 2.0).scale == math.inf
    assert NoiseEstimate(1.0, -2.0).scale == 0
    assert "beyond what these steps can tell" in str(NoiseScale(NoiseEstimate(-1, 1), (3.0, math.inf), 0.95, 5))


def test_steps_without_any_scatter_leave_no_interval() -> None:
    found = over_steps([NoiseEstimate(2.0, 10.0)] * 4)
    assert found.scale == 5
    assert found.interval == pytest.approx((5, 5))
    assert str(found) == "noise scale 5 samples (95%: 5 to 5; 4 steps)"


def test_running_averages_are_exact_from_the_first_step_on() -> None:
    running = RunningNoise(half_life=2)
    assert running.add(NoiseEstimate(1, 8)) == NoiseEstimate(1, 8)
    running.add(NoiseEstimate(3, 0))
    found = running.add(NoiseEstimate(2, 4))
    weights = np.array([0.5, 2**-0.5, 1.0])
    assert found.gradient_square == pytest.approx(weights @ [1, 3, 2] / weights.sum())
    assert found.covariance_trace == pytest.approx(weights @ [8, 0, 4] / weights.sum())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: from_two_batches(8, 1.0, 8, 1.0), "the batches are 8 and 8"),
        (lambda: from_two_batches(0, 1.0, 8, 1.0), "the batches are 0 and 8"),
        (lambda: from_parts(8, 64, 1.0, 1.0), "a step needs two parts at least"),
        (lambda: from_parts(8, 0, 1.0, 1.0), "add up to 0"),
        (lambda: over_steps([NoiseEstimate(1, 1)] * 2), "estimates of 2 steps"),
        (lambda: over_steps([NoiseEstimate(1, 1)] * 9, level=1.0), "level is 1.0"),
        (lambda: RunningNoise(0), "half_life is 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        wrong()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    sound = [NoiseEstimate(1.0, 2.0)] * 4
    for one in (NoiseEstimate(wrong, 1.0), NoiseEstimate(1.0, wrong)):
        with pytest.raises(ValueError, match="not finite"):
            over_steps([*sound, one])
    with pytest.raises(ValueError, match="allowed are finite ones"):
        from_two_batches(1, wrong, 2, 1.0)


def test_steps_that_were_not_measured_are_left_out() -> None:
    nan = float("nan")
    assert of_steps([1.0, nan, 3.0, 4.0], [5.0, 6.0, nan, 8.0]) == [NoiseEstimate(1.0, 5.0), NoiseEstimate(4.0, 8.0)]
