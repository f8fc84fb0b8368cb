"""Sentence pairs against a plain reading of the algorithm, one sentence and one token at a time."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bert_corpora import SPECIAL, numbered_documents, write_store

from largebatch import counter_random
from largebatch.bert import pairs as module
from largebatch.bert.pairs import PairBatch, PairIndex, SentencePairs, tokens_from_front, truncated_lengths
from largebatch.errors import InputError
from largebatch.text.shards import DocumentStore

LENGTH = 24
PLACES = LENGTH - 3
SEED = 11


def random_lengths(documents: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, longest + 1, generator.integers(1, 15)).tolist() for _ in range(documents)]


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    """120 documents in three shards; tokens count up, so a token says which sentence and document it is from."""
    lengths = random_lengths(120)
    lengths[3], lengths[4], lengths[5] = [70], [1], [50, 60, 2]  # longer than a pair, shortest, both
    documents = numbered_documents(lengths)
    return write_store(tmp_path / "store", documents[:50], documents[50:51], documents[51:])


def sentence_pairs(store: DocumentStore, short_sequence_probability: float = 0.1) -> SentencePairs:
    return SentencePairs(
        store,
        SPECIAL,
        sequence_length=LENGTH,
        seed=SEED,
        short_sequence_probability=short_sequence_probability,
    )


def read(pairs: SentencePairs, samples: list[int] | np.ndarray | None = None, epoch: int = 0) -> PairBatch:
    chosen = np.arange(len(pairs)) if samples is None else np.asarray(samples)
    return pairs.read(np.full(len(chosen), epoch), chosen)


def parts(batch: PairBatch) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of A and B of every row, after checking the frame around them."""
    result = []
    for row, a, b in zip(batch.tokens.tolist(), batch.first_lengths, batch.second_lengths, strict=True):
        assert row[0] == SPECIAL.cls
        assert row[1 + a] == row[2 + a + b] == SPECIAL.sep
        assert row[3 + a + b :] == [SPECIAL.pad] * (LENGTH - 3 - a - b)
        result.append((row[1 : 1 + a], row[2 + a : 2 + a + b]))
    return result


Row = tuple[int, int, int, int]  # document, first token of A, tokens of A, tokens of B or -target


def chunks_of_one_document(
    document: list[list[int]], number: int, rule: str, short_probability: float = 0.1
) -> list[Row]:
    """Return the index rows of one document by the published loop; ``rule`` names a way to get it wrong."""
    key = int(counter_random.keys(counter_random.key(SEED, module._INDEX, LENGTH), [number])[0])

    def draw(counter: int) -> float:
        return float(counter_random.uniform(key, counter))

    target = PLACES
    if draw(0) < short_probability:
        target = 2 + int(draw(1) * (PLACES - 1 - (rule == "short target excludes the longest")))
    rows, at, chunk, start = [], 0, [], 0
    while at < len(document):
        chunk.append(document[at])
        held = sum(len(sentence) for sentence in chunk)
        full = held > target if rule == "chunk fills beyond the target" else held >= target
        if full or at == len(document) - 1:
            split = 1 if len(chunk) == 1 else 1 + int(draw(2 + 2 * start) * (len(chunk) - 1))
            if rule == "first sentence alone":
                split = 1
            first = [token for sentence in chunk[:split] for token in sentence]
            random = len(chunk) == 1 or draw(3 + 2 * start) < (0.3 if rule == "three in ten" else 0.5)
            rest = sum(len(sentence) for sentence in chunk[split:])
            rows.append((number, first[0], len(first), -target if random else rest))
            if random and rule != "nothing is put back":
                at -= len(chunk) - split
            chunk, start = [], at + 1
        at += 1
    return rows


def rows_by_the_loop(store: DocumentStore, rule: str) -> list[Row]:
    numbers = range(store.documents)
    documents = [[s.tolist() for s in store.document(number)] for number in numbers]
    return [row for number in numbers for row in chunks_of_one_document(documents[number], number, rule)]


def rows_of_index(store: DocumentStore, index: PairIndex) -> list[Row]:
    rows = []
    for document, place, first, second in zip(
        index.documents.tolist(),
        index.first_tokens.tolist(),
        index.first_lengths.tolist(),
        index.second_lengths.tolist(),
        strict=True,
    ):
        shard, _ = store.locate(document)
        rows.append((document, int(store.shards[shard].tokens[place]), first, second))
    return rows


def test_index_equals_the_published_loop(store: DocumentStore) -> None:
    assert rows_of_index(store, sentence_pairs(store).index) == rows_by_the_loop(store, "published")


@pytest.mark.parametrize(
    "rule",
    [
        "chunk fills beyond the target",
        "short target excludes the longest",
        "first sentence alone",
        "three in ten",
        "nothing is put back",
    ],
)
def test_wrong_loops_give_another_index(store: DocumentStore, rule: str) -> None:
    assert rows_of_index(store, sentence_pairs(store).index) != rows_by_the_loop(store, rule)


def test_index_does_not_depend_on_blocks_or_shards(
    store: DocumentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sentence_pairs(store).index
    monkeypatch.setattr(module, "_BLOCK_SENTENCES", 5)
    in_blocks = sentence_pairs(store).index
    documents = [[s.tolist() for s in store.document(number)] for number in range(store.documents)]
    one_shard = write_store(tmp_path / "one", documents)
    for column in ("documents", "first_lengths", "second_lengths", "first_tokens"):
        np.testing.assert_array_equal(getattr(whole, column), getattr(in_blocks, column))
    assert rows_of_index(store, whole) == rows_of_index(one_shard, sentence_pairs(one_shard).index)


def test_pairs_of_a_document_depend_on_nothing_but_it(store: DocumentStore, tmp_path: Path) -> None:
    documents = [[s.tolist() for s in store.document(number)] for number in range(store.documents)]
    changed = [documents[0], [[9, 9]], *documents[2:]]
    rows = rows_of_index(store, sentence_pairs(store).index)
    other = write_store(tmp_path / "changed", changed)
    others = rows_of_index(other, sentence_pairs(other).index)
    assert [row for row in rows if row[0] != 1] == [row for row in others if row[0] != 1]


def test_index_is_compact_and_changes_with_seed_and_length(store: DocumentStore) -> None:
    index = sentence_pairs(store).index
    assert sum(column.nbytes for column in vars(index).values()) == 20 * len(index)
    other_seed = PairIndex.build(store, sequence_length=LENGTH, seed=SEED + 1)
    other_length = PairIndex.build(store, sequence_length=2 * LENGTH, seed=SEED)
    assert rows_of_index(store, other_seed) != rows_of_index(store, index)
    assert len(other_length) < len(index)


def test_every_sentence_is_in_a_pair(store: DocumentStore) -> None:
    """A and actual B together cover every document from its first to its last token, without a gap or overlap."""
    rows = rows_of_index(store, sentence_pairs(store).index)
    covered = [token for _, first, a, b in rows for token in range(first, first + a + max(b, 0))]
    assert covered == list(range(10, 10 + store.tokens))


def test_actual_next_follows_and_random_next_is_another_document(store: DocumentStore) -> None:
    pairs = sentence_pairs(store)
    document_of = {
        int(token): number
        for number in range(store.documents)
        for sentence in store.document(number)
        for token in sentence
    }
    first_of_sentence = {int(sentence[0]) for number in range(store.documents) for sentence in store.document(number)}
    seen = {True: 0, False: 0}
    for epoch in range(3):
        batch = read(pairs, epoch=epoch)
        index = pairs.index
        for row, (a, b) in enumerate(parts(batch)):
            random = bool(batch.is_random[row])
            seen[random] += 1
            documents_a, documents_b = {document_of[t] for t in a}, {document_of[t] for t in b}
            assert documents_a == {index.documents[row]}
            assert len(documents_b) == 1
            assert (documents_b != documents_a) == random
            for part in (a, b):  # nothing is lost inside a part
                assert part == list(range(part[0], part[0] + len(part)))
            whole = index.first_lengths[row] + index.second_lengths[row]
            if not random and whole <= PLACES:
                assert b[0] == a[-1] + 1
                assert len(a) + len(b) == whole
            if random and len(a) + len(b) < PLACES:  # nothing was cut
                assert b[0] in first_of_sentence
                assert b[-1] + 1 in first_of_sentence or b[-1] == 9 + store.tokens
    assert min(seen.values()) > 300


def test_random_continuation_holds_what_the_target_leaves(store: DocumentStore) -> None:
    """B has at least target - |A| tokens unless its document ends, and would not without its last sentence."""
    pairs = sentence_pairs(store, short_sequence_probability=1.0)
    batch = read(pairs)
    sentence_length = {
        int(sentence[0]): len(sentence) for number in range(store.documents) for sentence in store.document(number)
    }
    last_tokens = {int(store.document(number)[-1][-1]) for number in range(store.documents)}
    checked = ended = 0
    for row, (a, b) in enumerate(parts(batch)):
        if not batch.is_random[row] or len(a) + len(b) >= PLACES:
            continue
        wanted = -int(pairs.index.second_lengths[row]) - len(a)
        last = max(start for start in sentence_length if start <= b[-1])
        assert len(b) >= wanted or b[-1] in last_tokens
        assert len(b) - sentence_length[last] < wanted or b[0] == last
        checked += 1
        ended += b[-1] in last_tokens
    assert checked > 100
    assert 0 < ended < checked


def test_labels_are_half_and_half_where_there_is_a_choice(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[5] * 40 for _ in range(400)]))
    pairs = sentence_pairs(store, short_sequence_probability=0.0)  # a short target may leave no choice either
    # The last chunk of a document may be a single sentence, which leaves no choice: take those that begin before.
    inside = pairs.index.first_tokens % 200 < 195
    random = read(pairs).is_random[inside]
    spread = 5 * np.sqrt(0.25 / len(random))
    assert len(random) > 2000
    assert abs(random.mean() - 0.5) < spread
    assert abs(0.45 - 0.5) > spread  # a coin that falls 45 in 100 would be noticed


def test_single_sentences_always_get_a_random_next(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[7], [30], [2], [25]]))
    pairs = sentence_pairs(store, short_sequence_probability=0.0)
    assert len(pairs) == 4
    assert read(pairs).is_random.all()


def test_short_targets_are_one_in_ten_and_uniform(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[1]] * 6000))
    targets = -sentence_pairs(store).index.second_lengths
    short = targets < PLACES
    # A short target may also be PLACES: of PLACES - 1 values one is not seen as short.
    expected = 0.1 * (PLACES - 2) / (PLACES - 1)
    assert abs(short.mean() - expected) < 5 * np.sqrt(0.1 / 6000)
    counts = np.bincount(targets[short], minlength=PLACES)[2:PLACES]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 2.5 * len(counts)
    assert counts.min() > 0
    assert not (-sentence_pairs(store, short_sequence_probability=0.0).index.second_lengths < PLACES).any()


def test_other_document_is_uniform_over_the_others(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[1]] * 5))
    pairs = sentence_pairs(store)
    epochs = np.arange(4000)
    batch = pairs.read(epochs, np.full(4000, 2))
    counts = np.bincount(batch.tokens[:, 3] - 10, minlength=5)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3, 4]] - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_random_start_is_uniform_over_the_sentences(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[30], [30] * 4]))
    pairs = sentence_pairs(store)
    batch = pairs.read(np.arange(4000), np.zeros(4000, np.int64))
    starts = np.bincount((batch.tokens[np.arange(4000), 2 + batch.first_lengths] - 40) // 30, minlength=4)
    assert np.abs(starts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_a_sample_is_the_same_in_any_batch(store: DocumentStore) -> None:
    pairs = sentence_pairs(store)
    generator = np.random.default_rng(3)
    samples, epochs = generator.integers(0, len(pairs), 60), generator.integers(0, 4, 60)
    together = pairs.read(epochs, samples)
    shuffled = generator.permutation(60)
    mixed = pairs.read(epochs[shuffled], samples[shuffled])
    np.testing.assert_array_equal(mixed.tokens, together.tokens[shuffled])
    for row in range(60):
        alone = pairs.read(epochs[row : row + 1], samples[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    copied = pickle.loads(pickle.dumps(pairs)).read(epochs, samples)
    np.testing.assert_array_equal(copied.tokens, together.tokens)


def test_epochs_change_random_continuations_and_cuts_but_not_the_pairs(store: DocumentStore) -> None:
    pairs = sentence_pairs(store)
    one, two = read(pairs, epoch=0), read(pairs, epoch=1)
    np.testing.assert_array_equal(one.is_random, two.is_random)
    same = (one.tokens == two.tokens).all(axis=1)
    lengths = pairs.index.first_lengths + pairs.index.second_lengths
    assert same[~one.is_random & (lengths <= PLACES)].all()
    assert same[one.is_random].mean() < 0.2
    assert not same[~one.is_random & (lengths > PLACES + 10)].all()


def truncated_by_the_loop(first: int, second: int, longest: int, tie: Callable[[int, int], bool]) -> tuple[int, int]:
    while first + second > longest:
        if tie(first, second):
            first -= 1
        else:
            second -= 1
    return first, second


@pytest.mark.parametrize("longest", [2, 3, 9, 10])
def test_truncation_equals_the_published_loop(longest: int) -> None:
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(1, 25), np.arange(1, 25)))
    ours = [column.tolist() for column in truncated_lengths(first, second, longest)]
    sizes = list(zip(first.tolist(), second.tolist(), strict=True))
    published = [truncated_by_the_loop(a, b, longest, lambda a, b: a > b) for a, b in sizes]
    a_loses_ties = [truncated_by_the_loop(a, b, longest, lambda a, b: a >= b) for a, b in sizes]
    assert list(zip(*ours, strict=True)) == published
    # Where the places are even in number the last tie leaves no trace, so the wrong rule shows only at odd ones.
    assert (published != a_loses_ties) == bool(longest % 2)


def check_coins(front: np.ndarray, dropped: np.ndarray) -> None:
    """Assert mean and variance of Binomial(dropped, 1/2) within five standard errors."""
    assert (front >= 0).all()
    assert (front <= dropped).all()
    assert (front[dropped == 0] == 0).all()
    deviation = (front - dropped / 2)[dropped > 0] / np.sqrt(dropped[dropped > 0] / 4)
    count = len(deviation)
    assert abs(deviation.mean()) < 5 / np.sqrt(count)
    assert abs((deviation**2).mean() - 1) < 5 * np.sqrt(2 / count)


def test_either_end_loses_tokens_by_the_toss_of_a_coin() -> None:
    dropped = np.tile(np.array([0, 1, 2, 7, 63, 64, 65, 200]), 500)
    keys = counter_random.keys(5, np.arange(len(dropped)))
    front = tokens_from_front(keys, 2, dropped)
    check_coins(front, dropped)
    correlation = np.corrcoef(front - dropped / 2, tokens_from_front(keys, 3, dropped) - dropped / 2)[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(dropped))
    # Alone a row gets the same coins as beside a longer one.
    assert tokens_from_front(keys[3:4], 2, dropped[3:4])[0] == front[3]
    for wrong in (
        np.zeros_like(dropped),
        dropped,
        dropped // 2,
        (dropped * counter_random.uniform(keys, 1)).astype(int),
    ):
        with pytest.raises(AssertionError):
            check_coins(wrong, dropped)


def test_long_sentences_lose_tokens_at_both_ends(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbered_documents([[70], [70]]))
    pairs = sentence_pairs(store)
    batch = pairs.read(np.arange(200), np.zeros(200, np.int64))
    assert (batch.first_lengths == (PLACES + 1) // 2).all()
    assert (batch.second_lengths == PLACES // 2).all()
    front = batch.tokens[:, 1] - 10
    check_coins(front, np.full(200, 70 - (PLACES + 1) // 2))


@pytest.mark.parametrize("documents", [0, 1])
def test_too_few_documents_are_refused(tmp_path: Path, documents: int) -> None:
    store = write_store(tmp_path / "s", *([numbered_documents([[5, 5]])] * documents))
    with pytest.raises(InputError, match=f"holds {documents} of the 2 or more documents"):
        sentence_pairs(store)
