"""Sentence pairs for next-sentence prediction, chosen as BERT's authors chose them (Devlin et al., NAACL 2019).

For each document, with M = sequence_length - 3 places beside [CLS] and the two [SEP]::

    target <- M, or with probability 0.1 an integer uniform on [2, M]          once per document
    s <- first sentence
    while sentences are left:
        chunk <- sentences s, s + 1, ... until they hold target tokens or the document ends
        A <- the first a sentences of the chunk, a uniform on [1, n - 1] (a = 1 for a chunk of n = 1)
        if n = 1, or with probability 1/2:
            B <- another document, from a random sentence of it on, until it holds target - |A| tokens or ends,
                 one sentence at least;                      s <- s + a        the rest of the chunk is put back
        else:
            B <- the rest of the chunk;                      s <- s + n
        while |A| + |B| > M: drop the first or the last token, by the toss of a coin, of the longer (B if equal)

Two kinds of random numbers are kept apart. Target, a, and the kind of B depend on (seed, document, s), so the number
of pairs and what A is stay the same through a run: that is the ``PairIndex``. Which other document, where in it, and
which end loses tokens depend on (seed, epoch, sample), so random continuations and truncations are fresh each epoch.

How it is made fast: whatever sentence s a chunk may start at, its end, its a, its kind of B and therefore the next s
follow from s alone. So they are computed for all sentences at once, and the loop above shrinks to following the
pointers s -> next s. The last pointer of a document leads to the first sentence of the next.

One deviation: the original draws the other document up to ten times in the hope that it is another one; here it is
uniform over the other documents, and a split of fewer than two documents is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch import counter_random
from largebatch.errors import InputError
from largebatch.text.shards import DocumentStore, Shard, SpecialIds

SPECIAL_PLACES = 3  # [CLS] A [SEP] B [SEP]
SHORTEST_SEQUENCE = SPECIAL_PLACES + 2  # A and B of one token each
_INDEX, _DRAW = 11, 12  # stream numbers: they keep these draws apart from each other and from all others
_BLOCK_SENTENCES = 1 << 18  # sentences indexed at once: a bound on memory, without influence on the result

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PairIndex:
    """Where the pairs of one split begin: 20 bytes each, beside the 2 or 4 bytes of each of its tokens on disk."""

    documents: NDArray[np.uint32]
    """Document of A, by its number in the split."""
    first_tokens: Integers
    """Place of A's first token in the document's shard. An actual continuation B follows A without a gap."""
    first_lengths: NDArray[np.int32]
    """Tokens of A before truncation."""
    second_lengths: NDArray[np.int32]
    """Tokens of an actual continuation B before truncation; -target for a B to be drawn from another document."""

    def __len__(self) -> int:
        return len(self.documents)

    @classmethod
    def build(
        cls, store: DocumentStore, *, sequence_length: int, seed: int, short_sequence_probability: float = 0.1
    ) -> "PairIndex":
        """Run through all documents once.

        Args:
            store: the documents of one split.
            sequence_length: tokens of a pair with its special tokens, at least 5.
            seed: of the run. A document's pairs depend on it, the document's number and its sentences.
            short_sequence_probability: how often a document gets a shorter target.

        Raises:
            InputError: if there are fewer than two documents, so that no B can be from another.
        """
        assert sequence_length >= SHORTEST_SEQUENCE
        if store.documents < 2:
            raise InputError(
                f"a part of the corpus holds {store.documents} of the 2 or more documents that next-sentence "
                "prediction needs, to draw sentences from another one"
            )
        key = counter_random.key(seed, _INDEX, sequence_length)
        parts = []
        for shard, first_document, block in _blocks(store):
            document_keys = counter_random.keys(key, first_document + np.arange(len(block) - 1))
            targets = _targets(document_keys, sequence_length - SPECIAL_PLACES, short_sequence_probability)
            parts.append(_index_block(shard, first_document, block, document_keys, targets))
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _blocks(store: DocumentStore) -> Iterator[tuple[Shard, int, Integers]]:
    """Yield (shard, number in the split of the first document, document starts [D + 1]) of runs of documents."""
    documents_before = 0
    for shard in store.shards:
        starts = shard.document_starts
        documents = len(starts) - 1
        first = 0
        while first < documents:
            last = int(np.searchsorted(starts, starts[first] + _BLOCK_SENTENCES, side="right")) - 1
            last = min(max(last, first + 1), documents)
            yield shard, documents_before + first, starts[first : last + 1]
            first = last
        documents_before += documents


def _targets(document_keys: NDArray[np.uint64], longest: int, short_probability: float) -> Integers:
    short = counter_random.uniform(document_keys, 0) < short_probability
    return np.where(short, 2 + counter_random.integers(document_keys, 1, longest - 1), longest)


def _index_block(
    shard: Shard, first_document: int, block: Integers, document_keys: NDArray[np.uint64], targets: Integers
) -> tuple[NDArray[np.uint32], Integers, NDArray[np.int32], NDArray[np.int32]]:
    """Return the columns of the index for the documents whose sentences begin at ``block``."""
    first, end = int(block[0]), int(block[-1])
    tokens = np.asarray(shard.sentence_starts[first : end + 1])  # places of sentence bounds, ascending
    starts = block - first
    document = np.repeat(np.arange(len(starts) - 1), np.diff(starts))  # of each sentence
    sentence = np.arange(end - first)
    counter = 2 + 2 * (sentence - starts[document])  # 0 and 1 went into the target
    key, target = document_keys[document], targets[document]

    chunk_end = np.minimum(np.searchsorted(tokens, tokens[:-1] + target), starts[document + 1])
    chunk = chunk_end - sentence
    several = chunk > 1
    split = sentence + 1 + np.where(several, counter_random.integers(key, counter, chunk - 1), 0)
    random = ~several | (counter_random.uniform(key, counter + 1) < 0.5)
    following = np.where(random, split, chunk_end).tolist()

    visited, at = [], 0
    while at < len(following):
        visited.append(at)
        at = following[at]
    taken = np.array(visited)
    split_place = tokens[split[taken]]
    second = np.where(random[taken], -target[taken], tokens[chunk_end[taken]] - split_place)
    return (
        (first_document + document[taken]).astype(np.uint32),
        tokens[taken],
        (split_place - tokens[taken]).astype(np.int32),
        second.astype(np.int32),
    )


def sample_keys(seed: int, stream: int, epochs: Integers, samples: Integers) -> NDArray[np.uint64]:
    """Return a random key for each (epoch, sample), both [B]: the same whatever else stands in the batch."""
    keys = np.empty(len(samples), np.uint64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        keys[here] = counter_random.keys(counter_random.key(seed, stream, int(epoch)), samples[here])
    return keys


@dataclass(frozen=True)
class PairBatch:
    """Pairs with their special tokens, padded to one length; B rows."""

    tokens: Integers
    """[CLS] A [SEP] B [SEP], then padding, [B, sequence_length]."""
    first_lengths: Integers
    """Tokens of A, [B]."""
    second_lengths: Integers
    """Tokens of B, [B]."""
    is_random: NDArray[np.bool_]
    """True where B is from another document, [B]."""


class SentencePairs:
    """The pairs of one split, read from its memory-mapped shards. Picklable: only names and the index travel."""

    def __init__(
        self,
        store: DocumentStore,
        special: SpecialIds,
        *,
        sequence_length: int,
        seed: int,
        short_sequence_probability: float = 0.1,
    ) -> None:
        """Index the documents; arguments and errors are those of ``PairIndex.build``."""
        self.store, self.special = store, special
        self.sequence_length, self.seed = sequence_length, seed
        self.index = PairIndex.build(
            store,
            sequence_length=sequence_length,
            seed=seed,
            short_sequence_probability=short_sequence_probability,
        )

    def __len__(self) -> int:
        return len(self.index)

    def read(self, epochs: Integers, samples: Integers) -> PairBatch:
        """Return one pair for each (epoch, sample), both [B]."""
        keys = sample_keys(self.seed, _DRAW, epochs, samples)
        arrays = _OpenArrays(self.store)
        documents = self.index.documents[samples].astype(np.int64)
        first, first_length = self.index.first_tokens[samples], self.index.first_lengths[samples].astype(np.int64)
        second, second_length = first + first_length, self.index.second_lengths[samples].astype(np.int64)

        is_random = second_length < 0
        drawn = np.flatnonzero(is_random)
        others = counter_random.integers(keys, 0, self.store.documents - 1)
        others += others >= documents  # steps over A's own document: uniform over all others
        others = np.where(is_random, others, documents)
        wanted = np.maximum(-second_length - first_length, 1)  # target - |A|, and one sentence at least
        for row, fraction in zip(drawn.tolist(), counter_random.uniform(keys[drawn], 1).tolist(), strict=True):
            second[row], second_length[row] = arrays.stretch(int(others[row]), fraction, int(wanted[row]))

        longest = self.sequence_length - SPECIAL_PLACES
        kept_first, kept_second = truncated_lengths(first_length, second_length, longest)
        first += tokens_from_front(keys, 2, first_length - kept_first)
        second += tokens_from_front(keys, 3, second_length - kept_second)

        tokens = np.full((len(samples), self.sequence_length), self.special.pad, np.int64)
        rows = np.arange(len(samples))
        tokens[:, 0] = self.special.cls
        tokens[rows, 1 + kept_first] = self.special.sep
        tokens[rows, 2 + kept_first + kept_second] = self.special.sep
        columns = (documents, first, kept_first, others, second, kept_second)
        spans = zip(tokens, *(column.tolist() for column in columns), strict=True)
        for row, document, a, a_length, other, b, b_length in spans:
            row[1 : 1 + a_length] = arrays.of(document)[a : a + a_length]
            row[2 + a_length : 2 + a_length + b_length] = arrays.of(other)[b : b + b_length]
        return PairBatch(tokens, kept_first, kept_second, is_random)


class _OpenArrays:
    """The arrays that one batch reads, each looked up once; held any longer they would use up file descriptors."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._tokens: dict[int, NDArray[np.unsignedinteger]] = {}
        self._bounds: dict[int, tuple[Integers, Integers]] = {}

    def of(self, document: int) -> NDArray[np.unsignedinteger]:
        """Return the tokens of a document's shard."""
        shard, _ = self._store.locate(document)
        if shard not in self._tokens:
            self._tokens[shard] = self._store.shards[shard].tokens
        return self._tokens[shard]

    def stretch(self, document: int, fraction: float, wanted: int) -> tuple[int, int]:
        """Return (place in the shard, tokens) of the sentences from a random one on that hold ``wanted`` tokens.

        They are fewer where the document ends before. ``fraction`` in [0, 1) chooses the sentence.
        """
        shard, local = self._store.locate(document)
        if shard not in self._bounds:
            found = self._store.shards[shard]
            self._bounds[shard] = (found.sentence_starts, found.document_starts)
        sentences, documents = self._bounds[shard]
        begin, end = documents[local : local + 2].tolist()
        begin += int(fraction * (end - begin))
        bounds = sentences[begin : min(end, begin + wanted) + 1]  # no sentence is empty: these hold enough
        last = min(int(bounds.searchsorted(bounds[0] + wanted)), len(bounds) - 1)
        return int(bounds[0]), int(bounds[last] - bounds[0])


def truncated_lengths(first: Integers, second: Integers, longest: int) -> tuple[Integers, Integers]:
    """Return the lengths that are left when the longer of two loses tokens, B if equal, until both fit.

    The longer shrinks to the other's length or to what that leaves. From equal lengths on they take turns, B
    first, down to ceil(longest / 2) and floor(longest / 2). So A keeps min(a, max(ceil(M/2), M - b)), and B alike.
    """
    half = longest // 2
    return (
        np.minimum(first, np.maximum(longest - half, longest - second)),
        np.minimum(second, np.maximum(half, longest - first)),
    )


def tokens_from_front(keys: NDArray[np.uint64], stream: int, dropped: Integers) -> Integers:
    """Return how many of the dropped tokens leave at the front, by the toss of a coin each: Binomial(dropped, 1/2).

    Where the tokens leave does not depend on when, so only the number of heads matters. ``keys`` and ``dropped``
    are [B]; the two parts of a pair use different streams, 2 and 3.
    """
    front = np.zeros(len(dropped), np.int64)
    rows = np.flatnonzero(dropped)
    if len(rows):
        words = -(-int(dropped[rows].max()) // 64)
        coins = counter_random.bits(keys[rows, None], stream + 2 * np.arange(words)).astype("<u8", copy=False)
        tossed = np.unpackbits(coins.view(np.uint8), axis=1)
        tossed[np.arange(64 * words) >= dropped[rows, None]] = 0
        front[rows] = tossed.sum(axis=1)
    return front
