"""Packed sequences are the stream of all documents, cut: nothing lost, nothing repeated, nothing padded."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.gpt.packed import PackedSequences
from largebatch.text.shards import DocumentStore, Shard, write_shard

END = 9
Documents = list[list[list[int]]]


def _documents(counts: list[list[int]], start: int) -> Documents:
    """Return documents of sentences of so many tokens, tokens being counted on."""
    tokens = iter(range(start, 10**6))
    return [[[10 + next(tokens) % 5000 for _ in range(4)][: max(1, n)] for n in document] for document in counts]


def _store(folder: Path, shards: list[Documents]) -> DocumentStore:
    folder.mkdir(exist_ok=True)
    for number, documents in enumerate(shards):
        write_shard(folder, "train", 2 * number, documents)
    return DocumentStore([Shard.open(folder, "train", 2 * number) for number in range(len(shards))])


def _stream(shards: list[Documents]) -> list[int]:
    return [token for documents in shards for document in documents for s in [*document, [END]] for token in s]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(
        st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    length=st.integers(1, 12),
)
def test_sequences_are_the_stream(
    tmp_path_factory: pytest.TempPathFactory, counts: list[list[list[int]]], length: int
) -> None:
    shards = [_documents(documents, 100 * number) for number, documents in enumerate(counts)]
    packed = PackedSequences(_store(tmp_path_factory.mktemp("store"), shards), END, length)
    stream = _stream(shards)
    assert len(packed) == (len(stream) - 1) // length
    for index in range(len(packed)):
        assert packed[3, index].tolist() == stream[index * length : (index + 1) * length + 1]
    with pytest.raises(IndexError):
        packed[0, len(packed)]


def test_a_limit_spreads_over_the_stream(tmp_path: Path) -> None:
    shards = [_documents([[4, 4, 4]] * 10, 0)]
    store = _store(tmp_path / "store", shards)
    every, some = PackedSequences(store, END, 3), PackedSequences(store, END, 3, limit=7)
    assert len(every) == 43
    assert len(some) == 7
    assert [some[0, i].tolist() for i in range(7)] == [every[0, i * 43 // 7].tolist() for i in range(7)]
    assert len(PackedSequences(store, END, 3, limit=1000)) == 43


def test_too_little_text_is_no_sequence(tmp_path: Path) -> None:
    store = _store(tmp_path / "store", [[[[11, 12]]]])  # with its end, three tokens
    assert len(PackedSequences(store, END, 2)) == 1
    assert len(PackedSequences(store, END, 3)) == 0
    assert len(PackedSequences(DocumentStore([]), END, 3)) == 0


def test_workers_can_take_it(tmp_path: Path) -> None:
    packed = PackedSequences(_store(tmp_path / "store", [_documents([[4, 2], [3]], 0)]), END, 4)
    again = pickle.loads(pickle.dumps(packed))
    assert np.array_equal(again[0, 1], packed[0, 1])
