"""Counter-based random numbers: bijective mixing, keys that tell their words apart, uniform draws."""

import numpy as np
import pytest

from largebatch.counter_random import bits, integers, key, keys, mix, uniform

DRAWS = 200_000


def test_published_values_of_the_mixer() -> None:
    # SplitMix64 from seed 0: the first three outputs, as every implementation of it gives them.
    steps = (np.arange(1, 4, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    assert [int(word) for word in mix(steps)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_mixing_is_one_to_one() -> None:
    assert len(np.unique(mix(np.arange(DRAWS, dtype=np.uint64)))) == DRAWS


def test_keys_depend_on_order_number_and_every_word() -> None:
    found = {key(1, 2, 3), key(3, 2, 1), key(1, 2), key(1, 2, 3, 0), key(1, 2, 4), key(), key(0), key(-1), key(0, 0)}
    assert len(found) == 9


def test_keys_of_many_words_differ_and_repeat() -> None:
    many = keys(key(5), np.arange(1000))
    assert len(np.unique(many)) == 1000
    assert np.array_equal(many[:10], keys(key(5), np.arange(10)))


def test_scalar_and_array_counters_agree() -> None:
    assert bits(key(1), 7) == bits(key(1), np.arange(10))[7]
    assert uniform(keys(key(1), [3, 4])[:, None], np.arange(5)).shape == (2, 5)


def _uniform_enough(draws: np.ndarray) -> bool:
    """Mean and each of ten bins within five standard errors."""
    spread = np.sqrt(0.1 * 0.9 * len(draws))
    bins = np.histogram(draws, bins=10, range=(0, 1))[0]
    return abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(draws)) and bool(
        (abs(bins - len(draws) / 10) < 5 * spread).all()
    )


def test_draws_are_uniform_and_the_check_can_fail() -> None:
    draws = uniform(key(9), np.arange(DRAWS))
    assert _uniform_enough(draws)
    assert 0 <= draws.min() < draws.max() < 1
    assert not _uniform_enough(draws**1.03)


def test_neighbouring_keys_are_uncorrelated() -> None:
    left, right = uniform(key(1), np.arange(DRAWS)), uniform(key(2), np.arange(DRAWS))
    assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(DRAWS)
    assert abs(np.corrcoef(left[1:], left[:-1])[0, 1]) < 5 / np.sqrt(DRAWS)


@pytest.mark.parametrize("high", [1, 2, 3, 10, 2**40])
def test_integers_stay_below_and_reach_both_ends(high: int) -> None:
    drawn = integers(key(3), np.arange(DRAWS), high)
    assert drawn.min() >= 0
    assert drawn.max() < high
    if high <= 10:
        assert set(drawn.tolist()) == set(range(high))
