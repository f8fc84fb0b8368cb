"""Sizes of a run: tables of numbers, and the rounding mistakes that they catch."""

import math
from fractions import Fraction

import numpy as np
import pytest

from largebatch import batch

TOTAL_STEPS = [  # samples, batch, T
    (512_000_000, 512, 1_000_000),
    (512_000_000, 1_024, 500_000),
    (512_000_000, 2_048, 250_000),
    (512_000_000, 4_096, 125_000),
    (512_000_000, 8_192, 62_500),
    (512_000_000, 16_384, 31_250),
    (512_000_000, 32_768, 15_625),
    (512_000_000, 65_536, 7_813),
    (0, 512, 0),
    (1, 512, 1),
    (512, 512, 1),
    (513, 512, 2),
    (10**18 + 1, 10**9, 10**9 + 1),  # a float quotient would lose the last sample
]


@pytest.mark.parametrize(("samples", "size", "steps"), TOTAL_STEPS)
def test_steps_for_samples(samples: int, size: int, steps: int) -> None:
    assert batch.steps_for_samples(samples, size) == steps
    assert batch.samples_for_steps(steps, size) >= samples
    assert steps == 0 or batch.samples_for_steps(steps - 1, size) < samples


@pytest.mark.parametrize(
    "wrong",
    [lambda s, b: s // b, lambda s, b: round(s / b), lambda s, b: math.ceil(s / b), lambda s, b: s // b + 1],
    ids=["floor", "nearest", "ceiling of a float", "one too many"],
)
def test_the_table_of_steps_catches_wrong_rounding(wrong) -> None:
    assert [wrong(samples, size) for samples, size, _ in TOTAL_STEPS] != [steps for _, _, steps in TOTAL_STEPS]


@pytest.mark.parametrize(
    ("microbatch", "accumulation", "ranks", "expected"), [(32, 1, 1, 32), (32, 4, 8, 1_024), (64, 2, 256, 32_768)]
)
def test_global_batch(microbatch: int, accumulation: int, ranks: int, expected: int) -> None:
    assert batch.global_batch(microbatch, accumulation, ranks) == expected
    assert batch.accumulation_for(expected, microbatch, ranks) == accumulation


@pytest.mark.parametrize(
    ("size", "microbatch", "ranks", "expected"),
    [(128, 32, 1, 4), (128, 32, 3, 2), (129, 32, 2, 3), (100, 32, 1, 4), (2, 512, 2, 1), (7, 3, 2, 2)],
)
def test_accumulation_covers_the_batch_on_every_rank(size: int, microbatch: int, ranks: int, expected: int) -> None:
    assert batch.accumulation_for(size, microbatch, ranks) == expected
    assert microbatch * expected * ranks >= size > microbatch * (expected - 1) * ranks


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_samples is 3, but must be at least the 4 ranks"):
        batch.accumulation_for(3, 1, 4)


@pytest.mark.parametrize(
    ("epochs", "dataset", "size", "samples", "steps"),
    [
        (90, 1_281_167, 32_768, 115_305_030, 3_519),
        (90, 1_281_167, 512, 115_305_030, 225_206),
        (0.1, 30, 1, 3, 3),  # 0.1 as a binary fraction is a little more than 1/10
        (0.9, 10, 2, 9, 5),
        (Fraction(1, 3), 10, 2, 4, 2),
        (np.float64(2.5), 4, 3, 10, 4),
        (0, 10, 2, 0, 0),
    ],
)
def test_epochs(epochs: float, dataset: int, size: int, samples: int, steps: int) -> None:
    assert batch.samples_for_epochs(epochs, dataset) == samples
    assert batch.steps_for_epochs(epochs, dataset, size) == steps


def test_epochs_through_a_float_would_be_wrong() -> None:
    assert math.ceil(Fraction(0.1) * 30) == 4  # the mistake that exact_fraction avoids
    assert batch.exact_fraction("x", 0.1) == Fraction(1, 10)


def test_epochs_for_samples_is_exact() -> None:
    assert batch.epochs_for_samples(7, 3) == Fraction(7, 3)
    assert batch.epochs_for_samples(512_000_000, 512_000_000) == 1


def test_tokens() -> None:
    assert batch.tokens_for_samples(65_536, 128) == 8_388_608
    assert batch.samples_for_tokens(8_388_608, 128) == 65_536
    assert batch.samples_for_tokens(8_388_609, 128) == 65_537
    assert batch.samples_for_tokens(0, 128) == 0


@pytest.mark.parametrize(
    ("value", "expected"), [(Fraction(1, 2), 1), (Fraction(5, 2), 3), (Fraction(49, 100), 0), (Fraction(3), 3)]
)
def test_round_half_up(value: Fraction, expected: int) -> None:
    assert batch.round_half_up(value) == expected


def test_numpy_integers_count_as_whole_numbers() -> None:
    steps = batch.steps_for_samples(np.int64(100), np.int32(32))  # type: ignore[arg-type]
    assert steps == 4
    assert type(steps) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8", None, float("nan"), np.float64(8)])
@pytest.mark.parametrize(
    "call",
    [
        lambda v: batch.global_batch(v, 1, 1),
        lambda v: batch.global_batch(1, v, 1),
        lambda v: batch.global_batch(1, 1, v),
        lambda v: batch.accumulation_for(v, 1, 1),
        lambda v: batch.accumulation_for(8, v, 1),
        lambda v: batch.accumulation_for(8, 1, v),
        lambda v: batch.steps_for_samples(1, v),
        lambda v: batch.samples_for_steps(1, v),
        lambda v: batch.samples_for_epochs(1, v),
        lambda v: batch.samples_for_tokens(1, v),
        lambda v: batch.tokens_for_samples(1, v),
        lambda v: batch.epochs_for_samples(1, v),
    ],
)
def test_what_is_no_size_is_refused(call, value: object) -> None:
    with pytest.raises(ValueError, match=r"is .*, but must be a whole number of at least 1"):
        call(value)


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), True, "1", None, Fraction(-1, 2)])
def test_what_is_no_number_of_epochs_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"epochs is .*, but must be a"):
        batch.samples_for_epochs(value, 10)  # type: ignore[arg-type]
