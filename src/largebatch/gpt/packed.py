"""Packed sequences: all documents in one stream, cut into pieces of equal length.

    stream      document 0, end, document 1, end, ...
    sample i    tokens [i * L, i * L + L] of the stream: L inputs, and each one's successor as its target

Nothing is padded and nothing is repeated but the token that is the last target of one sample and the first input of the
next; what is left at the end of the stream, less than L + 1 tokens, is not used. The stream is never made: a sample is
read from the shards where its documents lie.
"""

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from largebatch.text.shards import DocumentStore, Shard

Integers = NDArray[np.int64]


class PackedSequences:
    """A map-style data set of sequences of L + 1 tokens, asked by (epoch, index). Picklable, for worker processes."""

    def __init__(self, store: DocumentStore, end_id: int, sequence_length: int, limit: int | None = None) -> None:
        """Cut the stream of a store.

        Args:
            store: the documents.
            end_id: the token after each of them.
            sequence_length: L.
            limit: keep at most so many sequences, spread evenly over the stream.
        """
        self._shards: Sequence[Shard] = store.shards
        self._end_id, self._length = end_id, sequence_length
        # How many tokens of the stream there are up to and including each shard.
        self._ends: list[int] = []
        total = 0
        for shard in self._shards:
            total += len(shard.tokens) + len(shard.document_starts) - 1
            self._ends.append(total)
        self._whole = max(0, total - 1) // sequence_length
        self._count = self._whole if limit is None else min(limit, self._whole)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample: tuple[int, int]) -> Integers:
        """Return the tokens of one (epoch, index), int64 [L + 1]; they are the same in every epoch."""
        index = sample[1]
        if not 0 <= index < self._count:
            raise IndexError(f"sequence {index} of {self._count}")
        first = index * self._whole // self._count * self._length
        return self._read(first, first + self._length + 1)

    def _read(self, first: int, end: int) -> Integers:
        """Return tokens [first, end) of the stream."""
        parts = []
        place = bisect.bisect_right(self._ends, first)
        while first < end:
            begins = self._ends[place - 1] if place else 0
            here = min(end, self._ends[place])
            parts.append(_part(self._shards[place], self._end_id, first - begins, here - begins))
            first, place = here, place + 1
        return np.concatenate(parts)


def _part(shard: Shard, end_id: int, first: int, end: int) -> Integers:
    """Return tokens [first, end) of the stream of one shard."""
    # Document d and the token after it end at this place of the stream.
    ends = shard.sentence_starts[shard.document_starts[1:]] + np.arange(1, len(shard.document_starts))
    document = int(np.searchsorted(ends, first, side="right"))
    parts = []
    while first < end:
        last = int(ends[document])
        text = shard.tokens[first - document : min(end, last - 1) - document]
        parts.append(text.astype(np.int64))
        if end >= last:
            parts.append(np.array([end_id], np.int64))
        first, document = last, document + 1
    return np.concatenate(parts)
