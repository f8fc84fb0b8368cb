"""Corpora that were prepared apart become one: the documents of all, in order, or a sentence that says why not."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_corpora import as_text, documents

from largebatch.cli import main
from largebatch.errors import InputError
from largebatch.text.join import join
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.shards import DocumentStore, PreparedCorpus

MADE = documents(240)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a vocabulary for all parts."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "made.txt").write_text(as_text(MADE), encoding="utf-8")
    prepare(PrepareOptions(source=str(folder / "made.txt"), vocabulary_size=300, workers=1), folder / "corpus")
    return str(folder / "corpus")


def _part(folder: Path, vocabulary: str, first: int, last: int, **options: Any) -> PreparedCorpus:
    folder.mkdir()
    (folder / "made.txt").write_text(as_text(MADE[first:last]), encoding="utf-8")
    asked = {"vocabulary": vocabulary, "held_out_fraction": 0.1, "workers": 1, **options}
    # Several shards a part.
    return prepare(PrepareOptions(source=str(folder / "made.txt"), **asked), folder / "corpus", shard_bytes=8_000)


@pytest.fixture
def parts(tmp_path: Path, vocabulary: str) -> list[Path]:
    """Three parts of unequal size."""
    bounds = [(0, 100), (100, 120), (120, 240)]
    return [_part(tmp_path / f"{first}", vocabulary, first, last).folder for first, last in bounds]


def _documents(store: DocumentStore) -> list[list[list[int]]]:
    return [[sentence.tolist() for sentence in store.document(number)] for number in range(store.documents)]


def test_the_whole_has_the_documents_of_all_parts_in_order(parts: list[Path], vocabulary: str, tmp_path: Path) -> None:
    opened = [PreparedCorpus.open(part) for part in parts]
    assert max(len(part.train.shards) for part in opened) > 2
    whole = join(parts, tmp_path / "whole")
    together = _part(tmp_path / "together", vocabulary, 0, 240)
    for split in ("train", "held_out"):
        in_order = [document for part in opened for document in _documents(getattr(part, split))]
        assert _documents(getattr(whole, split)) == in_order == _documents(getattr(together, split))
    assert np.array_equal(whole.token_counts(), sum(part.token_counts() for part in opened))
    assert whole.tokenizer().to_str() == opened[0].tokenizer().to_str()
    whole.verify()
    backwards = join(parts[::-1], tmp_path / "backwards")
    assert _documents(backwards.train) != _documents(whole.train)


def test_the_whole_stands_without_its_parts(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = join(parts, tmp_path / "whole")
    before = _documents(whole.train)

    def no_links(source: Any, to: Any) -> None:
        raise OSError("there are no links here")

    monkeypatch.setattr(os, "link", no_links)
    copied = join(parts, tmp_path / "copied")
    for part in parts:
        shutil.rmtree(part)
    assert _documents(PreparedCorpus.open(whole.folder).train) == before == _documents(copied.train)
    whole.verify()
    copied.verify()


def test_joined_again_it_is_taken_as_it_is(parts: list[Path], tmp_path: Path) -> None:
    join(parts, tmp_path / "whole")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").iterdir()}
    join(parts, tmp_path / "whole")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").iterdir()}
    with pytest.raises(InputError, match="holds other files"):
        join(parts[:2], tmp_path / "whole")


def test_what_an_interrupted_join_has_left_is_in_no_way(parts: list[Path], tmp_path: Path) -> None:
    left = tmp_path / "whole.partial"
    left.mkdir()
    (left / ".joining").touch()
    (left / "train-00000.tokens.npy").write_bytes(b"torn")
    join(parts, tmp_path / "whole").verify()
    assert not left.exists()
    other = tmp_path / "other.partial"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(InputError, match=r"other\.partial, where the corpus is to grow, holds other files"):
        join(parts, tmp_path / "other")
    assert (other / "mine.txt").exists()


def test_parts_that_were_not_prepared_alike_are_refused(parts: list[Path], vocabulary: str, tmp_path: Path) -> None:
    seed = _part(tmp_path / "seed", vocabulary, 0, 30, seed=5).folder
    with pytest.raises(InputError, match=r"was prepared with seed 5, .* with 0: parts of one corpus"):
        join([parts[0], seed], tmp_path / "whole")
    other = tmp_path / "own"
    other.mkdir()
    (other / "made.txt").write_text(as_text(MADE[:50]), encoding="utf-8")
    own = PrepareOptions(source=str(other / "made.txt"), vocabulary_size=200, held_out_fraction=0.1, workers=1)
    prepare(own, other / "corpus", shard_bytes=8_000)
    with pytest.raises(InputError, match="another vocabulary"):
        join([parts[0], other / "corpus"], tmp_path / "whole")
    alone = [_part(tmp_path / f"d{i}", vocabulary, i, i + 40, deduplicate_lines=True).folder for i in (0, 40)]
    with pytest.raises(InputError, match="cannot see the lines of other parts"):
        join(alone, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    assert not (tmp_path / "whole.partial").exists()


def test_parts_with_one_vocabulary_are_alike_wherever_it_lay(vocabulary: str, tmp_path: Path) -> None:
    first = Path(vocabulary)
    other = _part(tmp_path / "other", vocabulary, 0, 30, held_out_fraction=0.02).folder
    # Equal files by other names, as on another machine.
    shutil.copyfile(first / "vocab.txt", tmp_path / "same.txt")
    named = _part(tmp_path / "named", str(tmp_path / "same.txt"), 30, 60, held_out_fraction=0.02).folder
    for one, two in ((other, named), (named, other)):
        assert join([one, two], tmp_path / f"whole-{one.parent.name}").train.documents == 60 - 2
    copy = shutil.copytree(other, tmp_path / "copy")
    with pytest.raises(InputError, match=r"copy holds the documents of .*other/corpus: they would stand"):
        join([named, other, copy], tmp_path / "twice")


def test_a_damaged_part_is_named_and_nothing_is_left(parts: list[Path], tmp_path: Path) -> None:
    damaged = next(parts[1].glob("train-*.tokens.npy"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"{damaged.name} differs from its checksum"):
        join(parts, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    assert not (tmp_path / "whole.partial").exists()


def test_the_verb(parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(part) for part in parts]
    assert main(["join", *words, "--out", str(tmp_path / "whole")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"training: \d+ documents", told)
    for given, said in (
        (words, "--out is missing"),
        ([words[0], "--out", str(tmp_path / "x")], "two corpora or more, 1 was given"),
        ([words[0], words[0], "--out", str(tmp_path / "x")], "is given twice"),
        ([*words, "--uot", "x", "--out", str(tmp_path / "x")], "'--uot' was given"),
        ([words[0], "nowhere", "--out", str(tmp_path / "x")], "no prepared corpus at .*nowhere"),
    ):
        assert main(["join", *given]) == 2
        assert re.search(said, capsys.readouterr().err), said
    assert not (tmp_path / "x").exists()
