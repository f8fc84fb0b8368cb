"""Masked sentence pairs as a data set, and as batches of tensors.

The data set hands out NumPy rows, all built at once for a microbatch; ``collate`` makes the tensors that
``bert.model.PretrainingModel`` takes. Positions of predicted tokens come flattened, row * L + position, so that the
model gathers exactly the tokens that it must project onto the vocabulary.

How many tokens are predicted differs from pair to pair. By default they are joined without gaps, [M], which is
fastest on a CPU: the projection and its softmax are a good part of a small model, and unused slots would take their
share of both. With ``fixed_shapes`` each pair has the same number of slots, the unused ones labelled ``IGNORED``:
shapes are then equal from batch to batch, for CUDA graphs and compilers that want them so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.bert.masking import IGNORED, Integers, Masking
from largebatch.bert.pairs import SentencePairs, sample_keys
from largebatch.bert.shapes import filling

_MASKS = 13  # the stream number that keeps masks apart from all other draws


class MaskedPair(NamedTuple):
    """One sample: [CLS] A [SEP] B [SEP], padded to the stage's sequence length L, with P slots for predictions."""

    tokens: Integers
    """As the model sees them, masks in place, [L]."""
    first_length: int
    """Tokens of A."""
    second_length: int
    """Tokens of B."""
    is_random: bool
    """True where B is from another document."""
    positions: Integers
    """Predicted positions, ascending, then unused slots, [P]."""
    labels: Integers
    """What stood there, ``IGNORED`` in unused slots, [P]."""


class MaskedPairs:
    """A map-style data set of masked pairs, asked by (epoch, index). Picklable, for worker processes."""

    def __init__(self, pairs: SentencePairs, masking: Masking, limit: int | None = None) -> None:
        """Join pairs and masking; ``limit`` keeps at most so many pairs, spread evenly over the split."""
        self.pairs, self.masking = pairs, masking
        self._length = len(pairs) if limit is None else min(limit, len(pairs))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, sample: tuple[int, int]) -> MaskedPair:
        """Return the pair of one (epoch, index)."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> list[MaskedPair]:
        """Return the pairs of many (epoch, index), built together; each is the same as if asked for alone."""
        epochs, indices = np.array(samples, np.int64).T
        if len(indices) and not 0 <= indices.min() <= indices.max() < self._length:
            raise IndexError(f"samples {indices.min()} to {indices.max()} of {self._length}")
        if self._length < len(self.pairs):
            indices = indices * len(self.pairs) // self._length
        batch = self.pairs.read(epochs, indices)
        places = np.arange(batch.tokens.shape[1])
        first, second = batch.first_lengths[:, None], batch.second_lengths[:, None]
        in_first = (places >= 1) & (places < 1 + first)
        in_second = (places >= 2 + first) & (places < 2 + first + second)
        keys = sample_keys(self.pairs.seed, _MASKS, epochs, indices)
        tokens, positions, labels = self.masking.apply(batch.tokens, in_first | in_second, keys)
        columns = (
            tokens,
            batch.first_lengths.tolist(),
            batch.second_lengths.tolist(),
            batch.is_random.tolist(),
            positions,
            labels,
        )
        return [MaskedPair(*row) for row in zip(*columns, strict=True)]


def collate(samples: Sequence[MaskedPair], *, fixed_shapes: bool = False) -> dict[str, Tensor]:
    """Return the tensors of one microbatch of B pairs.

    Returns:
        ``input_ids`` int64 [B, L]; ``token_type_ids`` int64 [B, L], 1 for B and its [SEP]; ``attention_mask`` bool
        [B, L], True up to the last [SEP]; ``masked_positions`` int64 [M], row * L + position; ``masked_labels``
        int64 [M]; ``next_sentence_labels`` int64 [B], 1 where B is from another document. M is the number of
        predicted tokens, rounded up by at most a sixteenth with slots labelled ``IGNORED``; B * P with
        ``fixed_shapes``.
    """
    tokens, first, second, is_random, positions, labels = zip(*samples, strict=True)
    input_ids = np.stack(tokens)
    first_end = np.array(first, np.int64)[:, None] + 2
    end = first_end + np.array(second, np.int64)[:, None] + 1
    rows, length = input_ids.shape
    places = np.arange(length)
    attention = places < end
    flat = np.stack(positions) + length * np.arange(rows)[:, None]
    targets = np.stack(labels)
    if fixed_shapes:
        flat, targets = flat.reshape(-1), targets.reshape(-1)
    else:
        used = targets != IGNORED
        unused = filling(int(used.sum()))
        flat = np.concatenate([flat[used], np.zeros(unused, np.int64)])
        targets = np.concatenate([targets[used], np.full(unused, IGNORED, np.int64)])
    arrays = {
        "input_ids": input_ids,
        "token_type_ids": (attention & (places >= first_end)).astype(np.int64),
        "attention_mask": attention,
        "masked_positions": flat,
        "masked_labels": targets,
        "next_sentence_labels": np.array(is_random, np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
