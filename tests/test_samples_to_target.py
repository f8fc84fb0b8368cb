"""Samples to a target, and the critical batch."""

import math

import numpy as np
import pytest

from largebatch.errors import InputError
from largebatch.samples_to_target import fit_growth, samples_to_target

MLPERF = (
    (256, 2.55e6),
    (1536, 2.78e6),
    (4608, 2.80e6),
    (6144, 3.32e6),
    (8192, 4.19e6),
    (12288, 4.47e6),
    (16384, 5.50e6),
)
"""Samples to the target of MLPerf's BERT with LAMB, by batch."""


def test_the_first_evaluation_at_the_target_counts() -> None:
    curve = [(100, 0.5), (200, math.nan), (300, 0.8), (400, 0.7), (500, 0.9)]
    assert samples_to_target(curve, 0.8) == 300
    assert samples_to_target(curve, 0.95) is None
    assert samples_to_target(curve, 0.6, higher_is_better=False) == 100
    assert samples_to_target([], 0.5) is None


def test_the_critical_batch_of_published_runs() -> None:
    """Fitted by absolute instead of relative squares it is some 12,700."""
    found = fit_growth(MLPERF)
    assert found.critical_batch == pytest.approx(13_700, rel=0.01)
    low, high = found.critical_batch_interval
    assert low < 12_700 < high
    assert found.samples(13_697) == pytest.approx(2 * found.least_samples, rel=0.001)


@pytest.mark.parametrize("critical", [16.0, 300.0])
def test_points_on_the_curve_give_it_back(critical: float) -> None:
    found = fit_growth([(batch, 1000 * (1 + batch / critical)) for batch in (8, 32, 128, 512)])
    assert found.critical_batch == pytest.approx(critical, rel=1e-4)
    assert found.least_samples == pytest.approx(1000, rel=1e-4)
    assert found.critical_batch_interval == pytest.approx((critical, critical), rel=1e-3)


def test_the_interval_holds_the_truth_as_often_as_stated() -> None:
    rng, held, narrow, repetitions = np.random.default_rng(0), 0, 0, 300
    batches = np.array([32, 32, 128, 128, 512, 512, 2048, 2048])
    for _ in range(repetitions):
        samples = 1000 * (1 + batches / 256) * np.exp(0.2 * rng.standard_normal(len(batches)))
        found = fit_growth(list(zip(batches.tolist(), samples.tolist(), strict=True)))
        low, high = found.critical_batch_interval
        held += low <= 256 <= high
        # Half as wide in the logarithm, as with the error taken for half of what it is.
        best = found.critical_batch
        narrow += math.sqrt(low * best) <= 256 <= math.sqrt(high * best)
    limit = 4 * math.sqrt(0.05 * 0.95 / repetitions)
    assert abs(held / repetitions - 0.95) < limit
    assert narrow / repetitions < 0.95 - limit


def test_samples_that_do_not_grow_have_no_upper_bound() -> None:
    found = fit_growth([(1, 5.0), (2, 5.1), (4, 4.9), (8, 5.0)])
    assert found.critical_batch == math.inf
    assert found.critical_batch_interval[1] == math.inf
    assert found.critical_batch_interval[0] > 8
    assert found.samples(100) == pytest.approx(5.0, rel=0.01)
    assert "do not grow with the batch in 4 runs: the critical batch is 63 or more (95%)" in str(found)


def test_samples_that_grow_as_the_batch_have_no_lower_bound() -> None:
    found = fit_growth([(1, 1.0), (2, 2.1), (4, 4.3), (8, 8.6)])
    assert found.critical_batch == 0
    assert found.critical_batch_interval[0] == 0
    assert found.samples(16) == pytest.approx(16.9, rel=0.03)
    assert "grow as the batch does" in str(found)


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(InputError, match="there are 2 runs at 2 batches, allowed are 3 runs or more at 2 batches"):
        fit_growth([(1, 1.0), (2, 2.0)])
    with pytest.raises(InputError, match="there are 3 runs at 1 batches"):
        fit_growth([(1, 1.0), (1, 2.0), (1, 3.0)])
    with pytest.raises(InputError, match="allowed are finite numbers above 0"):
        fit_growth([(1, 1.0), (2, 0.0), (3, 1.0)])
    with pytest.raises(InputError, match="level is 2"):
        fit_growth(MLPERF, level=2)
