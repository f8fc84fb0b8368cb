"""From a source to a corpus on disk: what is in it, that it is reproducible, and what is refused."""

import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import zstandard
from text_corpora import as_text, asked, documents, folder_bytes, run_preparation

from largebatch.errors import InputError
from largebatch.text import wordpiece
from largebatch.text.held_out import HeldOut
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import Progress, prepare
from largebatch.text.shards import DocumentStore, PreparedCorpus

MADE = documents(120)
SMALL: dict[str, Any] = {"vocabulary_size": 300, "held_out_fraction": 0.1, "workers": 1}


def write(path: Path, made: list[list[str]] = MADE) -> str:
    """Write documents as plain text and return the path."""
    path.write_text(as_text(made), encoding="utf-8")
    return str(path)


def prepared(source: str, out: Path, **options: Any) -> PreparedCorpus:
    """Prepare with small options."""
    return prepare(PrepareOptions(source=source, **asked(SMALL, **options)), out)


def decoded(store: DocumentStore) -> list[list[list[int]]]:
    """Return the ids of all documents."""
    return [[sentence.tolist() for sentence in store.document(number)] for number in range(store.documents)]


def expected_ids(folder: Path, made: list[list[str]]) -> list[list[list[int]]]:
    """Encode documents one sentence at a time with the tokenizer in the folder."""
    tokenizer = wordpiece.encoder(folder / "tokenizer.json")
    return [[tokenizer.encode(line, add_special_tokens=False).ids for line in document] for document in made]


def test_every_document_stands_in_one_part_in_its_order(tmp_path: Path) -> None:
    corpus = prepared(write(tmp_path / "made.txt"), tmp_path / "out")
    rule = HeldOut.of_fraction(0, 0.1)
    train = [document for document in MADE if not rule.holds_out(document)]
    held_out = [document for document in MADE if rule.holds_out(document)]
    assert 3 < len(held_out) < 30
    assert decoded(corpus.train) == expected_ids(corpus.folder, train)
    assert decoded(corpus.held_out) == expected_ids(corpus.folder, held_out)
    ids = [token for document in decoded(corpus.train) for sentence in document for token in sentence]
    assert corpus.token_counts().tolist() == [ids.count(token) for token in range(corpus.vocabulary_size)]
    corpus.verify()


def test_the_manifest_says_what_was_asked_and_found(tmp_path: Path) -> None:
    source = write(tmp_path / "made.txt")
    manifest = prepared(source, tmp_path / "out").manifest
    assert manifest["source"] == source
    # Without a tokenizer the manifest is of WordPiece, as those were that were written before there was a choice.
    asked = {field.name for field in fields(PrepareOptions)} - {"source", "workers", "tokenizer"}
    assert set(manifest["options"]) == asked | {"shard_bytes"}
    assert manifest["input"]["bytes"] == (tmp_path / "made.txt").stat().st_size
    assert manifest["counts"]["train"]["documents"] + manifest["counts"]["held_out"]["documents"] == 120
    assert sorted(manifest["files"]) == sorted(
        p.name for p in (tmp_path / "out").iterdir() if p.name != "manifest.json"
    )
    assert not list(tmp_path.glob("*.partial"))
    assert str(tmp_path / "out") not in (tmp_path / "out" / "manifest.json").read_text()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "md"])
def test_all_formats_and_compressions_give_the_same_documents(tmp_path: Path, kind: str, compression: str) -> None:
    made = MADE[:12]
    folder = tmp_path / "source"
    folder.mkdir()
    if kind == "md":  # a file for each document, whose lines are paragraphs to be cut
        texts = {f"{number:02d}": "\n\n".join(document) for number, document in enumerate(made)}
    elif kind == "txt":
        texts = {"all": as_text(made)}
    else:
        texts = {"all": "".join(json.dumps({"text": "\n".join(document), "id": 1}) + "\n" for document in made)}
    for name, text in texts.items():
        (folder / f"{name}.{kind}{compression}").write_bytes(COMPRESS[compression](text.encode()))
    corpus = prepared(str(folder), tmp_path / "out")
    rule = HeldOut.of_fraction(0, 0.1)
    if not any(map(rule.holds_out, made)):
        rule = rule.with_lowest(min(map(rule.hash, made)))
    assert decoded(corpus.train) == expected_ids(corpus.folder, [d for d in made if not rule.holds_out(d)])
    assert decoded(corpus.held_out) == expected_ids(corpus.folder, [d for d in made if rule.holds_out(d)])


@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "json"])
def test_hugging_face_datasets_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))  # lock files go there
    rows = datasets.Dataset.from_dict({"body": ["\n".join(document) for document in MADE], "id": list(range(120))})
    source = f"hf:{tmp_path / 'data'}"
    if kind == "saved":
        rows.save_to_disk(str(tmp_path / "data"))
        source = source.removeprefix("hf:")  # recognised by itself
    elif kind == "saved splits":
        datasets.DatasetDict({"train": rows.select([0, 1]), "more": rows}).save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        write_rows = {"parquet": rows.to_parquet, "json": rows.to_json}[kind]
        write_rows(str(tmp_path / "data" / f"train.{kind}"))
    split = "more" if kind == "saved splits" else "train"
    corpus = prepared(source, tmp_path / "out", text_field="body", dataset_split=split)
    rule = HeldOut.of_fraction(0, 0.1)
    assert decoded(corpus.train) == expected_ids(corpus.folder, [d for d in MADE if not rule.holds_out(d)])
    assert corpus.manifest["input"] == {"rows": 120}
    for options, message in (
        ({"text_field": "nothing"}, "has no column 'nothing': it has body, id"),
        ({"text_field": "id"}, "row 0 of the dataset .*: the field 'id' holds int, not text"),
        ({"text_field": "body", "dataset_split": "other"}, "other"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(source, tmp_path / "bad", **{"dataset_split": split, **options})
        assert not list(tmp_path.glob("bad*"))


def test_neither_workers_nor_hash_seeds_nor_the_place_change_a_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "made.txt")
    found = []
    for number, workers in enumerate((1, 2, 3, 1, 2)):
        out = tmp_path / f"out{number}"
        options = {"source": source, **SMALL, "workers": workers}
        status, output, errors = run_preparation(options, out, hash_seed=number + 1, shard_bytes=4000)
        assert status == 0, output + errors
        found.append(folder_bytes(out))
    assert all(content == found[0] for content in found)
    assert "train-00004.tokens.npy" in found[0]
    whole = prepared(source, tmp_path / "whole")  # another cut into shards, the same documents
    cut = PreparedCorpus.open(tmp_path / "out0")
    assert decoded(cut.train) == decoded(whole.train)
    assert decoded(cut.held_out) == decoded(whole.held_out)


def test_the_seed_and_the_fraction_choose_the_held_out_part(tmp_path: Path) -> None:
    source = write(tmp_path / "made.txt")
    parts = {
        (seed, fraction): prepared(source, tmp_path / f"{seed}-{fraction}", seed=seed, held_out_fraction=fraction)
        for seed, fraction in ((0, 0.1), (1, 0.1), (0, 0.5), (0, 0.0))
    }
    assert decoded(parts[0, 0.1].held_out) != decoded(parts[1, 0.1].held_out)
    assert 40 < parts[0, 0.5].held_out.documents < 80
    assert parts[0, 0.0].held_out.documents == 0
    assert parts[0, 0.0].train.documents == 120


def test_equal_documents_stand_on_the_same_side(tmp_path: Path) -> None:
    corpus = prepared(write(tmp_path / "made.txt", MADE + MADE + MADE), tmp_path / "out", held_out_fraction=0.3)
    train, held_out = ({str(document) for document in decoded(s)} for s in (corpus.train, corpus.held_out))
    assert train.isdisjoint(held_out)
    assert corpus.train.documents + corpus.held_out.documents == 360


def test_a_small_corpus_holds_out_the_document_of_the_lowest_hash(tmp_path: Path) -> None:
    made = MADE[:5]
    rule = HeldOut.of_fraction(0, 1e-9)
    assert not any(map(rule.holds_out, made))
    corpus = prepared(write(tmp_path / "made.txt", made), tmp_path / "out", held_out_fraction=1e-9)
    assert decoded(corpus.held_out) == expected_ids(corpus.folder, [min(made, key=rule.hash)])
    assert corpus.train.documents == 4


def test_repeated_lines_go_where_that_was_asked_for(tmp_path: Path) -> None:
    repeated = [["Same line.", "One."], ["same  LINE .", "Two."], ["Same line."], ["Öne.", "Three."], ["Four.", "Two."]]
    source = write(tmp_path / "made.txt", repeated * 2)
    kept = prepared(source, tmp_path / "kept", held_out_fraction=0.0, deduplicate_lines=True)
    assert decoded(kept.train) == expected_ids(kept.folder, [["Same line.", "One."], ["Two."], ["Three."], ["Four."]])
    cased = prepared(source, tmp_path / "cased", held_out_fraction=0.0, deduplicate_lines=True, lowercase=False)
    assert cased.train.sentences == 7
    everything = prepared(source, tmp_path / "everything", held_out_fraction=0.0)
    assert everything.train.sentences == 18


def test_the_vocabulary_is_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    rule = HeldOut.of_fraction(0, 0.1)
    held_out = next(document for document in MADE if rule.holds_out(document))
    mark = [[*document, "ææææ ææææ."] if document is held_out else document for document in MADE]
    seed = next(s for s in range(100) if HeldOut.of_fraction(s, 0.1).holds_out(mark[MADE.index(held_out)]))
    corpus = prepared(write(tmp_path / "made.txt", mark), tmp_path / "out", seed=seed)
    assert "æ" not in (corpus.folder / "vocab.txt").read_text(encoding="utf-8")
    other = next(s for s in range(100) if not HeldOut.of_fraction(s, 0.1).holds_out(mark[MADE.index(held_out)]))
    corpus = prepared(str(tmp_path / "made.txt"), tmp_path / "other", seed=other)
    assert "æ" in (corpus.folder / "vocab.txt").read_text(encoding="utf-8")


def test_a_given_vocabulary_is_used(tmp_path: Path) -> None:
    first = prepared(write(tmp_path / "made.txt"), tmp_path / "first")
    for name in ("vocab.txt", "tokenizer.json"):
        again = prepared(str(tmp_path / "made.txt"), tmp_path / name, vocabulary=str(first.folder / name))
        assert decoded(again.train) == decoded(first.train)
        assert again.manifest["options"]["vocabulary"]["name"] == name
        assert "vocabulary_size" not in again.manifest["options"]


def test_progress_is_told_and_ends_at_the_total(tmp_path: Path) -> None:
    told: list[Progress] = []
    options = PrepareOptions(source=write(tmp_path / "made.txt"), **SMALL)
    prepare(options, tmp_path / "out", progress=told.append, shard_bytes=4000)
    size = (tmp_path / "made.txt").stat().st_size
    for phase in ("vocabulary", "encoding"):
        steps = [step for step in told if step.phase == phase]
        assert [step.read_bytes for step in steps] == sorted(step.read_bytes for step in steps)
        assert steps[-1].read_bytes == steps[-1].total_bytes == size
    told.clear()
    prepare(options, tmp_path / "out", progress=told.append, shard_bytes=4000)
    assert [step.phase for step in told] == ["reused"]


def test_a_folder_that_holds_the_same_is_used_again_whatever_the_workers(tmp_path: Path) -> None:
    source = write(tmp_path / "made.txt")
    prepared(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    prepared(source, tmp_path / "out", workers=2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "made.txt")
    prepared(source, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    other = write(tmp_path / "other.txt")
    vocabulary = str(tmp_path / "out" / "vocab.txt")
    for path, options, message in (
        (source, {"vocabulary_size": 301}, "holds a corpus prepared with vocabulary_size 300, not 301"),
        (source, {"seed": 1}, "prepared with seed 0, not 1"),
        (source, {"vocabulary": vocabulary}, "prepared with vocabulary None, not vocab.txt"),
        (source, {"tokenizer": "bpe"}, "prepared with tokenizer wordpiece, not bpe"),
        (other, {}, "prepared with source .*made.txt, not .*other.txt"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            prepared(path, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"made\.txt is a file: choose a new"):
        prepared(other, Path(source))
    changed = Path(source).read_text().replace("a", "o", 1)  # the size stays
    Path(source).write_text(changed)
    with pytest.raises(InputError, match="prepared from another state of"):
        prepared(source, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", None, {}, "there is no file or folder"),
        ("a.txt", b"", {}, r"a\.txt holds no text"),
        ("a.txt", b" \n\n\t\n", {}, r"a\.txt holds no text"),
        ("a.jsonl", b'{"text": ""}\n', {}, r"a\.jsonl holds no text"),
        ("a.txt", b"PK\3\4\0\0binary", {}, r"a\.txt is binary, not text: byte 4 is 0"),
        ("a.txt", "ä\n\n".encode() * 9 + b"\xff\n", {}, r"a\.txt is not valid UTF-8: byte 36 is 0xff"),
        ("a.txt.gz", gzip.compress(b"one\n\ntwo\n", mtime=0)[:-9], {}, r"a\.txt\.gz cannot be read"),
        ("a.csv", b"a,b\n", {}, r"a\.csv ends in \.csv: known are \.jsonl, \.markdown, \.md"),
        ("a.txt", b"one document\n", {}, "is one document, of which no part can be held out"),
        ("a.txt", b"same\n\nsame\n\nsame\n", {}, r"a\.txt has 3 documents, none of which is left for training"),
        ("a.jsonl", b'{"body": "x"}\n', {}, "has no field 'text'"),
        ("a.txt", b"a\n\nb\n", {"vocabulary": "nothing.txt"}, "the vocabulary nothing.txt cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes | None, options: dict[str, Any], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        prepared(str(tmp_path / name), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if content is not None else [])


def test_an_unknown_suffix_is_read_as_text_on_demand(tmp_path: Path) -> None:
    corpus = prepared(write(tmp_path / "made.raw"), tmp_path / "out", documents="blank-line")
    assert corpus.train.documents + corpus.held_out.documents == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": " "}, "give pydocs, a path, a URL or hf:NAME"),
        ({"source": "hf:"}, "give pydocs, a path, a URL or hf:NAME"),
        ({"documents": "line"}, "documents is 'line': allowed are auto, blank-line, file"),
        ({"sentences": "nltk"}, "sentences is 'nltk': allowed are auto, line, split, paragraph"),
        ({"deduplicate_lines": "yes"}, "deduplicate_lines is 'yes': allowed are True, False, auto"),
        ({"held_out_fraction": 1.0}, "held_out_fraction is 1.0: allowed are 0 up to"),
        ({"held_out_fraction": float("nan")}, "held_out_fraction is nan"),
        ({"vocabulary_size": 63}, "vocabulary_size is 63: at least 64"),
        ({"vocabulary": "v.txt", "vocabulary_size": 500}, "500, but no vocabulary is trained: v.txt is given"),
        ({"vocabulary": "v.txt", "vocabulary_megabytes": 5}, "vocabulary_megabytes is 5, but no vocabulary is trained"),
        ({"workers": 0}, "workers is 0: at least 1"),
        ({"seed": -1}, "seed is -1: at least 0"),
        ({"seed": 1 << 64}, r"it must be below 2\^64"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrepareOptions(**options)


@pytest.mark.parametrize("place", ["file", "files", "partial", "below a file"])
def test_a_place_that_is_taken_is_refused(tmp_path: Path, place: str) -> None:
    source = write(tmp_path / "made.txt")
    out = tmp_path / "out"
    if place == "file":
        out.write_text("mine")
    elif place == "files":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif place == "partial":
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    else:
        (tmp_path / "taken").write_text("mine")
        out = tmp_path / "taken" / "out"
    before = folder_bytes(tmp_path)
    with pytest.raises(InputError) as caught:
        prepared(source, out)
    assert "\n" not in str(caught.value)
    assert folder_bytes(tmp_path) == before


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prepared(write(tmp_path / "made.txt"), tmp_path / "out" / ".." / "out").train.documents > 90
