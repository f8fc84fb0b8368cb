"""Byte-level BPE: any text comes back to the byte, the same vocabulary every time, and GPT-2's own way of joining."""

import json
from pathlib import Path
from typing import Any

import pytest
from text_corpora import as_text, asked, documents, folder_bytes, run_preparation
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from largebatch.errors import InputError
from largebatch.text import byte_pairs
from largebatch.text.documents import as_unit
from largebatch.text.held_out import HeldOut
from largebatch.text.options import LEAST_BYTE_PAIRS, PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.shards import DocumentStore, PreparedCorpus

MADE = [*documents(120), ["Größe: 𝒳² naïve\tcafé", "日本 語", "<|endoftext|> is text like any other"]]
BPE: dict[str, Any] = {"tokenizer": "bpe", "vocabulary_size": 400, "held_out_fraction": 0.1, "workers": 1}


def _prepared(folder: Path, made: list[list[str]] = MADE, **options: Any) -> PreparedCorpus:
    folder.mkdir(exist_ok=True)
    (folder / "made.txt").write_text(as_text(made), encoding="utf-8")
    return prepare(PrepareOptions(source=str(folder / "made.txt"), **asked(BPE, **options)), folder / "corpus")


def _texts(corpus: PreparedCorpus, store: DocumentStore) -> list[str]:
    tokenizer = corpus.tokenizer()
    return [
        tokenizer.decode([int(t) for s in store.document(n) for t in s], skip_special_tokens=False)
        for n in range(store.documents)
    ]


def test_no_pairs_are_learned_from_a_word_that_is_very_long(tmp_path: Path) -> None:
    long = "ab" * (byte_pairs.LONGEST_WORD // 2)
    run = f"été,{long}x,,日本"
    made = [["aé aé"], ["plain text"], [f"{run} end"], ["plain text again"]]
    corpus = _prepared(tmp_path, made, held_out_fraction=0.0)
    assert "abab" not in corpus.tokenizer().get_vocab()
    assert _texts(corpus, corpus.train) == [" ".join(document) for document in made]
    survey = byte_pairs.survey(as_unit(made, "made"), HeldOut(0, 0), lowercase=False).text.decode()
    assert survey.splitlines()[2] == "été, ,,日本 end"
    short = [*made[:2], [f"{run} end".replace(f"{long}x", long)], made[3]]
    assert long in byte_pairs.survey(as_unit(short, "made"), HeldOut(0, 0), lowercase=False).text.decode()
    assert "abab" in _prepared(tmp_path / "short", short, held_out_fraction=0.0).tokenizer().get_vocab()


def test_every_document_comes_back(tmp_path: Path) -> None:
    corpus = _prepared(tmp_path)
    found = _texts(corpus, corpus.train) + _texts(corpus, corpus.held_out)
    assert sorted(found) == sorted(" ".join(document) for document in MADE)
    assert corpus.vocabulary_size == 400
    every = [int(t) for store in (corpus.train, corpus.held_out) for s in store.shards for t in s.tokens]
    assert corpus.end_id not in every, "text that spells the special token is text"
    corpus.verify()


def test_sentences_are_encoded_as_the_joined_text(tmp_path: Path) -> None:
    corpus = _prepared(tmp_path)
    tokenizer = corpus.tokenizer()
    tokenizer.encode_special_tokens = True
    joined = sorted(tokenizer.encode(" ".join(document)).ids for document in MADE)
    found = sorted(
        [int(t) for s in store.document(n) for t in s]
        for store in (corpus.train, corpus.held_out)
        for n in range(store.documents)
    )
    assert found == joined
    wrong = sorted(tokenizer.encode("".join(document)).ids for document in MADE)
    assert found != wrong


def test_five_processes_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "made.txt").write_text(as_text(MADE), encoding="utf-8")
    for n in range(5):
        options = {"source": str(tmp_path / "made.txt"), **BPE, "workers": n % 3 + 1}
        status, output, errors = run_preparation(options, tmp_path / f"out-{n}", hash_seed=n + 1)
        assert status == 0, output + errors
    contents = [folder_bytes(tmp_path / f"out-{n}") for n in range(5)]
    assert all(content == contents[0] for content in contents)


def test_transformers_takes_the_tokenizer(tmp_path: Path) -> None:
    corpus = _prepared(tmp_path)
    theirs = AutoTokenizer.from_pretrained(corpus.folder)
    text = " ".join(MADE[3])
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == corpus.end_id
    assert not (corpus.folder / "vocab.txt").exists()


def test_a_given_vocabulary_is_used(tmp_path: Path) -> None:
    first = _prepared(tmp_path / "first")
    second = _prepared(tmp_path / "second", MADE[:40], vocabulary=str(first.folder))
    assert second.tokenizer().to_str() == first.tokenizer().to_str()
    assert second.manifest["options"]["tokenizer"] == "bpe"
    assert "vocabulary_size" not in second.manifest["options"]


def test_wordpiece_and_bpe_are_not_mixed_up(tmp_path: Path) -> None:
    corpus = _prepared(tmp_path / "bpe")
    with pytest.raises(InputError, match=r"byte-level BPE, which has no \[MASK\]"):
        _ = corpus.special_ids
    wordpiece = _prepared(tmp_path / "wordpiece", tokenizer="wordpiece")
    assert wordpiece.end_id == wordpiece.special_ids.sep
    assert "tokenizer" not in wordpiece.manifest["options"]
    with pytest.raises(InputError, match="is WordPiece, a byte-level BPE is needed"):
        _prepared(tmp_path / "third", vocabulary=str(wordpiece.folder))
    with pytest.raises(InputError, match="BERT needs"):
        _prepared(tmp_path / "fourth", tokenizer="wordpiece", vocabulary=str(corpus.folder))


def test_bad_vocabularies_are_refused(tmp_path: Path) -> None:
    words: Any = "words"
    with pytest.raises(InputError, match="bpe needs 257 or more"):
        PrepareOptions(tokenizer="bpe", vocabulary_size=256)
    with pytest.raises(InputError, match="tokenizer is 'words': allowed are wordpiece, bpe"):
        PrepareOptions(tokenizer=words)
    with pytest.raises(InputError, match="cannot be read"):
        byte_pairs.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        byte_pairs.load(tmp_path)
    state = json.loads(byte_pairs.empty().tokenizer_json)
    state["added_tokens"] = []
    del state["model"]["vocab"][byte_pairs.END]
    state["model"]["vocab"] = {token: n for n, token in enumerate(state["model"]["vocab"])}
    (tmp_path / "tokenizer.json").write_text(Tokenizer.from_str(json.dumps(state)).to_str(), encoding="utf-8")
    with pytest.raises(InputError, match=r"has no <\|endoftext\|>"):
        byte_pairs.load(tmp_path)


def test_a_text_too_short_for_merges_is_bytes(tmp_path: Path) -> None:
    corpus = _prepared(tmp_path, [["a b"], ["c"]], held_out_fraction=0.0)
    assert corpus.vocabulary_size == LEAST_BYTE_PAIRS
    assert sorted(_texts(corpus, corpus.train)) == ["a b", "c"]
