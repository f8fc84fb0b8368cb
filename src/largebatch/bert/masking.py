"""Masked language modelling: which tokens are predicted, and what stands in their place (Devlin et al., NAACL 2019).

Of the n tokens of a pair, special tokens aside, k = min(most, max(1, round(fraction * n))) are predicted, chosen
uniformly. Each of them is replaced, independently, by [MASK] with probability 0.8, by a token uniform over the whole
vocabulary with 0.1, and left as it is with 0.1.

With whole words, the words are taken in random order, a word being a piece and the ``##`` pieces after it in the same
part of the pair. A word with more pieces than are still free is passed over, and the next is tried. Where none fits,
the first k pieces of the first word in that order are predicted, since a pair without a target would teach nothing.

Every draw depends on (the sample's key, the position) alone, so a sample is masked alike in any batch, at any row and
under any padding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch import counter_random

IGNORED = -100
"""Label of an unused slot: cross-entropy's own default for "no target"."""

_MASKED, _MASKED_OR_RANDOM = 0.8, 0.9
# Draws at counter = purpose * 2^32 + position: no purpose meets another, and no position runs into the next purpose.
_ORDER, _ACTION, _TOKEN = (np.uint64(purpose << 32) for purpose in range(3))

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The rule: how many tokens, and what replaces them."""

    mask_id: int
    vocabulary_size: int
    max_predictions: int
    """Most predicted tokens in a pair."""
    fraction: float = 0.15
    """Share of the tokens that are predicted, special tokens aside."""
    continuations: Booleans | None = None
    """[vocabulary_size], True for pieces that go on with the word before: masks whole words. None masks pieces."""

    def predictions(self, tokens: Integers) -> Integers:
        """Return k for pairs of so many tokens; round is to the nearest, to the even one at a tie."""
        rounded = np.rint(self.fraction * tokens).astype(np.int64)
        return np.minimum(self.max_predictions, np.maximum(1, rounded))

    def apply(
        self, tokens: Integers, candidates: Booleans, keys: NDArray[np.uint64]
    ) -> tuple[Integers, Integers, Integers]:
        """Choose and replace tokens.

        Args:
            tokens: [B, L].
            candidates: [B, L], True where a token may be predicted: neither a special token nor padding.
            keys: [B], a random key for each sample.

        Returns:
            the tokens as the model sees them [B, L]; the positions of the predicted tokens, ascending, [B, P]; and
            what the tokens were [B, P]. P is the k of a row of L candidates; unused slots hold position 0 and label
            ``IGNORED``.
        """
        length = tokens.shape[1]
        available = candidates.sum(axis=1)
        wanted = np.minimum(self.predictions(available), available)
        slots = int(self.predictions(np.array(length)))
        places = np.arange(length, dtype=np.uint64)
        ranks = counter_random.bits(keys[:, None], _ORDER + places)
        if self.continuations is None:
            ranks[~candidates] = np.iinfo(np.uint64).max
            chosen = np.argsort(ranks, axis=1)[:, :slots]
            taken = np.arange(chosen.shape[1]) < wanted[:, None]
        else:
            chosen, taken = _whole_words(self._word_starts(tokens, candidates), candidates, ranks, wanted)
        positions = np.sort(np.where(taken, chosen, length), axis=1)[:, :slots]
        used = positions < length
        positions[~used] = 0

        labels = np.take_along_axis(tokens, positions, axis=1)
        counters = positions.astype(np.uint64)
        action = counter_random.uniform(keys[:, None], _ACTION + counters)
        random = counter_random.integers(keys[:, None], _TOKEN + counters, self.vocabulary_size)
        replaced = np.where(action < _MASKED, self.mask_id, np.where(action < _MASKED_OR_RANDOM, random, labels))
        rows, columns = np.nonzero(used)
        seen = tokens.copy()
        seen[rows, positions[rows, columns]] = replaced[rows, columns]
        labels[~used] = IGNORED
        return seen, positions, labels

    def _word_starts(self, tokens: Integers, candidates: Booleans) -> Booleans:
        """Return True where a word begins: at a piece without ``##`` and at the first one of each part."""
        assert self.continuations is not None
        starts = candidates & ~self.continuations[tokens]
        starts[:, 1:] |= candidates[:, 1:] & ~candidates[:, :-1]
        starts[:, 0] |= candidates[:, 0]
        return starts


def _whole_words(
    starts: Booleans, candidates: Booleans, ranks: NDArray[np.uint64], wanted: Integers
) -> tuple[Integers, Booleans]:
    """Return positions [B, L] with the words in random order, and which of them are taken, [B, L].

    A word has the rank of its first piece. The sort is stable, so its pieces stay together and in order.
    """
    columns = np.arange(starts.shape[1])
    heads = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    word_ranks = np.take_along_axis(ranks, heads, axis=1)
    word_ranks[~candidates] = np.iinfo(np.uint64).max
    order = np.argsort(word_ranks, axis=1, kind="stable")

    begins = np.take_along_axis(starts, order, axis=1)
    available = candidates.sum(axis=1)[:, None]
    # A word ends where the next begins, or where the candidates end: the least such column to the right.
    ends = np.where(begins, columns, available)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    sizes = np.concatenate([ends[:, 1:], available], axis=1) - columns

    fits = np.zeros_like(starts)
    free = wanted.copy()
    for column in columns:  # whether a word fits depends on those before it; all rows go in step
        fits[:, column] = begins[:, column] & (sizes[:, column] <= free)
        free -= np.where(fits[:, column], sizes[:, column], 0)
        if not free.any():
            break
    own_head = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    taken = np.take_along_axis(fits, own_head, axis=1) & (columns < available)
    nothing_fits = ~taken.any(axis=1, keepdims=True)
    return order, np.where(nothing_fits, columns < wanted[:, None], taken)
