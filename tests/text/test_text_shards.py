"""The prepared corpus on disk: what is written is read, and what is damaged is refused in one sentence."""

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from largebatch.errors import InputError
from largebatch.text.shards import (
    MANIFEST,
    PreparedCorpus,
    SpecialIds,
    token_dtype,
    write_array,
    write_manifest,
    write_shard,
)

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
FIRST = [[[5, 6], [7]], [[8, 9, 9]]]
SECOND = [[[10]], [[11, 5], [6], [6, 6, 6]], [[7, 8]]]
HELD_OUT = [[[5], [11]]]


def write(folder: Path, vocabulary_size: int = 12) -> Path:
    """Write a corpus of two training shards, with a gap between their numbers, and one held-out shard."""
    folder.mkdir()
    write_shard(folder, "train", 0, FIRST, vocabulary_size=vocabulary_size)
    write_shard(folder, "train", 7, SECOND, vocabulary_size=vocabulary_size)
    write_shard(folder, "held_out", 7, HELD_OUT, vocabulary_size=vocabulary_size)
    write_manifest(folder, vocabulary_size=vocabulary_size, special_ids=SPECIAL, source="made", options={"seed": 3})
    return folder


def read(corpus: PreparedCorpus) -> list[list[list[int]]]:
    """Return all training documents."""
    store = corpus.train
    return [[sentence.tolist() for sentence in store.document(n)] for n in range(store.documents)]


def resident_bytes(folder: Path) -> int:
    """Return how much of the files in a folder this process has mapped and in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_a_corpus_that_is_completed_does_not_stay_in_memory(tmp_path: Path) -> None:
    tokens = [[[5] * 1_000_000]]
    for number in range(4):
        write_shard(tmp_path, "train", number, tokens, vocabulary_size=12)
    write_manifest(tmp_path, vocabulary_size=12, special_ids=SPECIAL)
    assert resident_bytes(tmp_path) < 2_000_000, "of 8 MB"
    corpus = PreparedCorpus.open(tmp_path)
    assert sum(int(shard.tokens.sum()) for shard in corpus.train.shards) == 20_000_000
    assert resident_bytes(tmp_path) > 7_000_000, "what was read through the maps stays: the measure sees it"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    corpus = PreparedCorpus.open(write(tmp_path / "corpus"))
    assert read(corpus) == FIRST + SECOND
    assert [s.tolist() for s in corpus.held_out.document(0)] == HELD_OUT[0]
    train = corpus.train
    assert (train.documents, train.sentences, train.tokens) == (5, 8, 15)
    assert [train.locate(n) for n in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert corpus.special_ids == SPECIAL
    assert corpus.vocabulary_size == 12
    assert corpus.token_counts().tolist() == [0, 0, 0, 0, 0, 2, 5, 2, 2, 2, 1, 1]
    assert corpus.manifest["counts"]["train"] == {"documents": 5, "sentences": 8, "tokens": 15}
    assert (corpus.manifest["source"], corpus.manifest["options"]) == ("made", {"seed": 3})
    corpus.verify()


@pytest.mark.parametrize("document", [-1, 5])
def test_documents_that_are_not_there(tmp_path: Path, document: int) -> None:
    with pytest.raises(IndexError):
        PreparedCorpus.open(write(tmp_path / "corpus")).train.locate(document)


def test_arrays_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus")
    tokens, sentences, documents = (
        np.load(folder / f"train-00007.{name}.npy") for name in ("tokens", "sentences", "documents")
    )
    assert (tokens.dtype, sentences.dtype, documents.dtype) == (np.uint16, np.int64, np.int64)
    assert tokens.tolist() == [10, 11, 5, 6, 6, 6, 6, 7, 8]
    assert sentences.tolist() == [0, 1, 3, 4, 7, 9]
    assert documents.tolist() == [0, 1, 4, 5]
    assert np.load(folder / "train-token-counts.npy").dtype == np.int64


def test_ids_above_16_bits_are_kept(tmp_path: Path) -> None:
    assert token_dtype(65_536) is np.uint16
    assert token_dtype(65_537) is np.uint32
    write_shard(tmp_path, "train", 0, [[[65_535]]])
    write_shard(tmp_path, "train", 1, [[[65_536, 80_000]]], vocabulary_size=80_001)
    assert np.load(tmp_path / "train-00001.tokens.npy").tolist() == [65_536, 80_000]
    with pytest.raises(ValueError, match="65536"):
        write_shard(tmp_path, "train", 2, [[[65_536]]])


@pytest.mark.parametrize("documents", [[], [[]], [[[]]], [[[1], []]], [[[1]], []], [[[-1]]]])
def test_empty_documents_and_sentences_are_not_written(tmp_path: Path, documents: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError):
        write_shard(tmp_path, "train", 0, documents)


@pytest.mark.parametrize("array", [np.arange(5, dtype=np.uint16), np.arange(3), np.zeros(0, np.int64)])
def test_arrays_have_the_bytes_of_np_save(tmp_path: Path, array: np.ndarray) -> None:
    expected = io.BytesIO()
    np.save(expected, array)
    write_array(tmp_path / "array.npy", array)
    assert (tmp_path / "array.npy").read_bytes() == expected.getvalue()


def test_equal_corpora_have_equal_bytes_wherever_they_are(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_a_corpus_travels_to_data_workers_as_names_only(tmp_path: Path) -> None:
    corpus = PreparedCorpus.open(write(tmp_path / "corpus"))
    assert read(pickle.loads(pickle.dumps(corpus))) == FIRST + SECOND
    write_shard(tmp_path / "corpus", "train", 0, [[[5] * 100_000]])
    write_manifest(tmp_path / "corpus", vocabulary_size=12, special_ids=SPECIAL)
    assert len(pickle.dumps(PreparedCorpus.open(tmp_path / "corpus").train)) < 2000


def test_a_folder_written_anew_is_read_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus")
    before = PreparedCorpus.open(folder)
    assert read(before)[0] == FIRST[0]
    shutil.rmtree(folder)
    folder.mkdir()
    write_shard(folder, "train", 0, [[[11, 11], [11]]], vocabulary_size=12)
    write_manifest(folder, vocabulary_size=12, special_ids=SPECIAL)
    assert read(PreparedCorpus.open(folder)) == [[[11, 11], [11]]]
    assert read(before)[0] == FIRST[0]  # what was mapped stays as it was


_MANY = """
import resource, sys
from pathlib import Path
from largebatch.text import shards
if sys.argv[2] == "all":
    shards._mapped = __import__("functools").cache(shards._mapped.__wrapped__)
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
corpus = shards.PreparedCorpus.open(Path(sys.argv[1]))
for turn in range(2):
    assert [corpus.train.document(n)[0].tolist() for n in range(corpus.train.documents)] == [[5, 6]] * 210
"""


@pytest.mark.parametrize("maps", ["bounded", "all"])
def test_a_corpus_may_have_more_files_than_a_process_may_open(tmp_path: Path, maps: str) -> None:
    for number in range(210):
        write_shard(tmp_path, "train", number, [[[5, 6]]])
    write_manifest(tmp_path, vocabulary_size=12, special_ids=SPECIAL)
    told = subprocess.run([sys.executable, "-c", _MANY, str(tmp_path), maps], capture_output=True, check=False)
    assert (told.returncode == 0) == (maps == "bounded"), told.stderr


def _edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


def _replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


TOKENS = "train-00000.tokens.npy"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda folder: (folder / MANIFEST).unlink(), "it has no manifest.json"),
        (_replace(MANIFEST, b"{"), "is not valid JSON"),
        (_replace(MANIFEST, b"[]"), "has format version None, this release reads 1"),
        (_edit(lambda m: m.update(format_version=2)), "has format version 2, this release reads 1"),
        (_edit(lambda m: m.pop("counts")), r"lacks or misspells a field \('counts'\)"),
        (_edit(lambda m: m["special_ids"].pop("mask")), "lacks or misspells a field"),
        (_edit(lambda m: m["counts"]["train"].update(tokens=16)), "counts other documents, sentences or tokens"),
        (_edit(lambda m: m.update(vocabulary_size="12")), "counts other documents"),
        (lambda folder: (folder / TOKENS).unlink(), "train-00000.tokens.npy is missing"),
        (lambda folder: (folder / "train-token-counts.npy").unlink(), "train-token-counts.npy is missing"),
        (_replace(TOKENS, b"torn"), "has 4 bytes where the manifest gives 140"),
        (_replace(TOKENS, b"x" * 140), "holds a damaged array"),
    ],
)
def test_a_damaged_corpus_is_refused_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write(tmp_path / "corpus")
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        PreparedCorpus.open(folder)
    assert "\n" not in str(caught.value)


def test_verify_finds_a_change_that_keeps_the_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus")
    content = bytearray((folder / TOKENS).read_bytes())
    content[-1] ^= 1
    (folder / TOKENS).write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000\.tokens\.npy differs"):
        PreparedCorpus.open(folder).verify()


def test_a_corpus_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        PreparedCorpus.open(write(tmp_path / "corpus")).tokenizer()
