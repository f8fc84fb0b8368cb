"""Tiny corpora for the tests of BERT: one with a real tokenizer, one in which every token occurs once."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.text.shards import DocumentStore, Shard, SpecialIds, write_manifest, write_shard

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
WORDS = 60
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(WORDS)), "##s", "##ing", "##ly"]


def write_tokenizer(folder: Path, pieces: list[str] = PIECES) -> None:
    """Write the three tokenizer files of a prepared corpus for a vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer

    tokenizer = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def random_documents(documents: int, seed: int, size: int = len(PIECES)) -> list[list[list[int]]]:
    """Return documents of 1 to 12 sentences of 1 to 20 tokens; low ids are frequent, as words are in text."""
    generator = np.random.default_rng(seed)
    usable = size - 5
    shares = 1 / np.arange(1, usable + 1)
    return [
        [
            (5 + generator.choice(usable, int(generator.integers(1, 21)), p=shares / shares.sum())).tolist()
            for _ in range(int(generator.integers(1, 13)))
        ]
        for _ in range(documents)
    ]


def write_corpus(folder: Path, *, train: int = 150, held_out: int = 30, seed: int = 0, **manifest: Any) -> Path:
    """Write a complete prepared corpus of random documents and return its folder."""
    folder.mkdir()
    documents = random_documents(train, seed)
    write_shard(folder, "train", 0, documents[: train // 2])
    write_shard(folder, "train", 2, documents[train // 2 :])
    if held_out:
        write_shard(folder, "held_out", 0, random_documents(held_out, seed + 1))
    write_tokenizer(folder)
    write_manifest(folder, vocabulary_size=len(PIECES), special_ids=SPECIAL, **manifest)
    return folder


def write_store(folder: Path, *shards: list[list[list[int]]]) -> DocumentStore:
    """Write training shards, numbered with gaps, and open them."""
    folder.mkdir(exist_ok=True)
    for number, documents in enumerate(shards):
        write_shard(folder, "train", 2 * number, documents, vocabulary_size=1 << 22)
    return DocumentStore([Shard.open(folder, "train", 2 * number) for number in range(len(shards))])


def numbered_documents(lengths: list[list[int]], first: int = 10) -> list[list[list[int]]]:
    """Return documents with sentences of the given lengths in which the tokens count up: each occurs once."""
    result = []
    for sentences in lengths:
        document = []
        for length in sentences:
            document.append(list(range(first, first + length)))
            first += length
        result.append(document)
    return result
