"""Which sample stands where: the order of data as a pure function, the only place where it meets ranks.

In a stage with global batch B the i-th sample of step s has position q = s*B + i. Over a data set of N samples it
belongs to epoch q // N and is sample P(q mod N), where P is a bijection of [0, N) keyed by (seed, stage, epoch).
A stage that goes on with the order of an earlier one has its key, and the samples before it are added to q.
Batches may straddle epochs. Nothing is stored and nothing is shuffled: any position can be asked for at once, in
constant memory, on any rank.

Microbatch j of a step holds its positions [j*b, (j+1)*b). Rank r of R runs the microbatches r, r + R, r + 2R, ...,
every rank the same number of them; the last ones may be smaller or empty. Where samples have lengths, a step's samples
are first put into the order of those: its microbatches are then of samples alike, and the step has the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch import counter_random
from largebatch.errors import InputError
from largebatch.train.task import SampleId

_ORDER = 1  # the stream number that keeps these draws apart from the tasks' own
_ROUNDS = 8


@dataclass(frozen=True)
class Permutation:
    """A keyed bijection of [0, size): an alternating Feistel network on the next power of two, with cycle-walking.

    The network permutes 2^k >= size values, k minimal; a value that lands outside is sent through again until it
    lands inside, fewer than two passes on average. Restricted to [0, size) this is a bijection, since each orbit of
    the network that meets the interval returns to it.
    """

    size: int
    key: int

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map each index to its image; the order and the multiplicity of the indices do not matter."""
        values = indices.astype(np.uint64)
        if self.size <= 1:
            return indices.copy()
        outside = np.ones(values.shape, dtype=bool)
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= np.uint64(self.size)
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width = (self.size - 1).bit_length()
        low_bits = np.uint64(width // 2)
        high_bits = np.uint64(width - width // 2)
        low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
        high_mask = (np.uint64(1) << high_bits) - np.uint64(1)
        high, low = values >> low_bits, values & low_mask
        for number in range(_ROUNDS):
            round_key = counter_random.key(self.key, number)
            # Each half round adds a function of one half to the other, so it undoes itself: a bijection.
            if number % 2 == 0:
                high = high ^ (counter_random.bits(round_key, low) & high_mask)
            else:
                low = low ^ (counter_random.bits(round_key, high) & low_mask)
        return (high << low_bits) | low


def check_batch(global_batch_samples: int, ranks: int) -> None:
    """Raise ``InputError`` if some rank would never have a sample."""
    if global_batch_samples < ranks:
        raise InputError(
            f"the global batch of {global_batch_samples} samples is smaller than the {ranks} ranks that share it"
        )


Lengths: TypeAlias = Callable[[Sequence[SampleId]], NDArray[np.int64]]
"""The length of each of some samples, such as its tokens, [samples]."""


@dataclass(frozen=True)
class Microbatch:
    """The samples of one microbatch and the position in the stage of its first one."""

    first_position: int
    samples: tuple[SampleId, ...]


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """The order of one stage's samples, and their share for each rank."""

    seed: int
    stage: int
    dataset_samples: int
    global_batch_samples: int
    samples_before: int = 0
    """Those that earlier stages have had of the same order."""

    def __post_init__(self) -> None:
        if self.dataset_samples < 1:
            raise InputError("the training data has no samples, at least one is needed")
        if self.global_batch_samples < 1:
            raise InputError(f"the global batch is {self.global_batch_samples} samples, allowed is 1 or more")

    def samples(self, positions: NDArray[np.int64]) -> list[SampleId]:
        """Return (epoch, index) for each position in the stage."""
        epochs, offsets = np.divmod(self.samples_before + positions, self.dataset_samples)
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            key = counter_random.key(self.seed, _ORDER, self.stage, int(epoch))
            here = epochs == epoch
            indices[here] = Permutation(self.dataset_samples, key)(offsets[here])
        return list(zip(epochs.tolist(), indices.tolist(), strict=True))

    def first_samples(self, step: int, number: int) -> list[SampleId]:
        """Return the first samples of step ``step`` of the stage, counted from 0."""
        return self.samples(step * self.global_batch_samples + np.arange(number, dtype=np.int64))

    def rounds(self, microbatch: int, ranks: int) -> int:
        """Return how many microbatches each rank runs in a step."""
        return -(-self.global_batch_samples // (microbatch * ranks))

    def microbatches(
        self, step: int, microbatch: int, rank: int, ranks: int, lengths: Lengths | None = None
    ) -> list[Microbatch]:
        """Return what one rank runs in step ``step``, counted from 0 in the stage.

        Every rank gets the same number of microbatches; only the last ones are short or empty. Where ``microbatch``
        exceeds a rank's share, B / ranks, some ranks have nothing to do: the cut into microbatches does not depend
        on the ranks, so that dropout, which is drawn for each microbatch, does not either.

        Args:
            step: of the stage.
            microbatch: samples in one.
            rank: this process's number.
            ranks: how many share the step.
            lengths: of samples, where they differ: those of the step are then cut in the order of their lengths, so
                that a microbatch has little padding. Which samples a step has does not change.

        Raises:
            InputError: if the batch has fewer samples than there are ranks.
        """
        batch = self.global_batch_samples
        check_batch(batch, ranks)
        rounds = self.rounds(microbatch, ranks)
        firsts = np.minimum(np.arange(rank, rounds * ranks, ranks, dtype=np.int64) * microbatch, batch)
        lasts = np.minimum(firsts + microbatch, batch)
        held = np.concatenate([np.arange(a, b) for a, b in zip(firsts, lasts, strict=True)])
        if lengths is None:
            samples = iter(self.samples(step * batch + held))
        else:
            every = self.samples(step * batch + np.arange(batch))
            by_length = np.argsort(lengths(every), kind="stable")
            samples = iter([every[place] for place in by_length[held]])
        return [
            Microbatch(step * batch + int(a), tuple(islice(samples, int(b - a))))
            for a, b in zip(firsts, lasts, strict=True)
        ]
