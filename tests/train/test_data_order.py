"""The order of data: a bijection for each epoch, the same for any ranks and microbatches."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from largebatch import counter_random
from largebatch.errors import InputError
from largebatch.train.data_order import DataOrder, Permutation

Shuffle = Callable[[int, int, np.ndarray], np.ndarray]


def _is_bijection(shuffle: Shuffle, size: int) -> bool:
    images = shuffle(size, 7, np.arange(size))
    return sorted(images.tolist()) == list(range(size))


def _ours(size: int, key: int, indices: np.ndarray) -> np.ndarray:
    return Permutation(size, key)(indices)


def _hash_modulo(size: int, key: int, indices: np.ndarray) -> np.ndarray:
    return (counter_random.bits(key, indices) % np.uint64(size)).astype(np.int64)


def _clipped(size: int, key: int, indices: np.ndarray) -> np.ndarray:
    power = 1 << (size - 1).bit_length()
    return np.minimum(Permutation(power, key)(indices), size - 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    assert _is_bijection(_ours, size)


@pytest.mark.parametrize("wrong", [_hash_modulo, _clipped])
def test_the_check_catches_shuffles_that_repeat_samples(wrong: Shuffle) -> None:
    assert not _is_bijection(wrong, 1000)


def test_permutation_looks_random() -> None:
    size = 20_000
    images = Permutation(size, 3)(np.arange(size))
    # The correlation of a random permutation with the identity has a standard deviation of 1/sqrt(size).
    assert abs(np.corrcoef(images, np.arange(size))[0, 1]) < 5 / np.sqrt(size)
    assert (images == np.arange(size)).sum() < 10  # a random permutation has one fixed point on average
    assert not np.array_equal(images, Permutation(size, 4)(np.arange(size)))


def _order(samples: int = 41, batch: int = 10, seed: int = 0, stage: int = 0) -> DataOrder:
    return DataOrder(seed=seed, stage=stage, dataset_samples=samples, global_batch_samples=batch)


def test_each_epoch_holds_each_sample_once_though_batches_straddle_it() -> None:
    order = _order(samples=41, batch=10)
    seen = [sample for step in range(41) for sample in order.first_samples(step, 10)]
    assert len(set(seen)) == 410
    assert {sample for sample in seen if sample[0] == 3} == {(3, index) for index in range(41)}


def test_epochs_stages_and_seeds_are_ordered_differently() -> None:
    def indices(order: DataOrder, epoch: int) -> list[int]:
        return [index for _, index in order.samples(np.arange(41) + 41 * epoch)]

    orders = [indices(_order(), 0), indices(_order(), 1), indices(_order(stage=1), 0), indices(_order(seed=1), 0)]
    assert len({tuple(order) for order in orders}) == 4


@given(
    batch=st.integers(1, 60),
    microbatch=st.integers(1, 70),
    ranks=st.integers(1, 9),
    step=st.integers(0, 50),
)
@settings(max_examples=200, deadline=None)
def test_ranks_and_microbatches_only_divide_what_one_process_reads(
    batch: int, microbatch: int, ranks: int, step: int
) -> None:
    order = _order(batch=batch)
    if batch < ranks:
        with pytest.raises(InputError, match="smaller than the"):
            order.microbatches(step, microbatch, 0, ranks)
        return
    shares = [order.microbatches(step, microbatch, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "every rank runs the same number of microbatches"
    in_turn = [shares[number % ranks][number // ranks] for number in range(ranks * len(shares[0]))]
    assert [sample for micro in in_turn for sample in micro.samples] == order.first_samples(step, batch)
    assert all(len(micro.samples) <= microbatch for micro in in_turn)
    for micro in in_turn:
        for offset, sample in enumerate(micro.samples):
            assert order.samples(np.array([micro.first_position + offset])) == [sample]


def test_the_cut_into_microbatches_does_not_depend_on_the_ranks() -> None:
    firsts = {
        ranks: sorted(
            micro.first_position
            for rank in range(ranks)
            for micro in _order(batch=6).microbatches(0, 4, rank, ranks)
            if micro.samples
        )
        for ranks in (1, 2, 3)
    }
    assert firsts == {1: [0, 4], 2: [0, 4], 3: [0, 4]}


@given(batch=st.integers(2, 60), microbatch=st.integers(1, 20), ranks=st.integers(1, 4), step=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_samples_of_a_length_are_together_and_a_step_has_the_same(
    batch: int, microbatch: int, ranks: int, step: int
) -> None:
    def lengths(samples: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        return np.array([(7 * index + 3 * epoch) % 13 for epoch, index in samples])

    order = _order(batch=max(batch, ranks))
    shares = [order.microbatches(step, microbatch, rank, ranks, lengths) for rank in range(ranks)]
    plain = [order.microbatches(step, microbatch, rank, ranks) for rank in range(ranks)]
    cut = [[(m.first_position, len(m.samples)) for m in share] for share in shares]
    assert cut == [[(m.first_position, len(m.samples)) for m in share] for share in plain]
    in_turn = [share[number] for number in range(len(shares[0])) for share in shares]
    samples = [sample for micro in in_turn for sample in micro.samples]
    assert sorted(samples) == sorted(order.first_samples(step, order.global_batch_samples))
    assert (np.diff(lengths(samples)) >= 0).all()
    first = order.first_samples(step, order.global_batch_samples)
    assert samples == sorted(first, key=lambda sample: lengths([sample])[0]), "those of a length in their order"


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        _order(samples=0)
