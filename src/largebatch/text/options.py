"""What can be asked of `prepare`: one field an option, its docstring the help of the command line."""

import math
from dataclasses import dataclass
from typing import Literal

from largebatch.errors import InputError
from largebatch.text.sentences import SentenceMode

PYDOCS = "pydocs"
HUGGING_FACE = "hf:"
LEAST_BYTE_PAIRS = 257
"""The smallest vocabulary of byte-level BPE: all bytes, and the end of a document."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a corpus is prepared; equal input and equal options give equal bytes."""

    source: str = PYDOCS
    """Where the text comes from: pydocs (the docstrings of the installed Python, NumPy and PyTorch, about 10 MB),
    a file or folder of .txt, .md or .jsonl (plain, .gz, .bz2, .xz or .zst), a pattern with *, any URL that fsspec
    opens (s3://, gs://, hf://, https://), or hf:NAME for a Hugging Face dataset by name or local path."""

    documents: Literal["auto", "blank-line", "file"] = "auto"
    """Where a document ends in text files: at a blank line, or with the file; auto takes a blank line for plain
    text and the file for Markdown. In JSON Lines and datasets each row is a document."""

    text_field: str = "text"
    """The field of JSON Lines, or the column of a dataset, that holds the text."""

    dataset_config: str | None = None
    """The configuration of a Hugging Face dataset, where it has several."""

    dataset_split: str = "train"
    """The split of a Hugging Face dataset to read; a held-out part is taken from it as from any source."""

    sentences: Literal["auto"] | SentenceMode = "auto"
    """How a document becomes sentences: line (one a line), split (each line is split by rule), paragraph (lines
    are joined up to a blank one, then split). auto is line for plain text and pydocs, paragraph for Markdown,
    split for JSON Lines and datasets."""

    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"
    """How text becomes tokens: wordpiece for BERT, byte-level bpe for GPT."""

    vocabulary: str | None = None
    """A vocab.txt (one WordPiece a line), a tokenizer.json, or a folder that holds one, to use; without it WordPiece
    is trained on the training part. For bpe a tokenizer.json, GPT-2's for example."""

    vocabulary_size: int = 8192
    """Entries of a trained vocabulary, special tokens included; a small corpus may give fewer."""

    vocabulary_megabytes: int = 256
    """Megabytes of text, from the start of the training part, that a vocabulary is trained on."""

    lowercase: bool = True
    """Whether letters are made small and accents dropped before encoding; a tokenizer.json brings its own rule,
    and False is refused for one that makes them small."""

    held_out_fraction: float = 0.02
    """Share of the documents that is kept from training, chosen by a hash of their text; 0 keeps none, otherwise
    at least one document is held out."""

    deduplicate_lines: bool | Literal["auto"] = "auto"
    """Whether only the first of equal lines is kept, so that no held-out line stands in the training part (about
    100 bytes of memory a line); letter case, where lowercase is set, and spaces do not tell lines apart. auto does
    so for pydocs only."""

    workers: int | None = None
    """Processes that encode; by default one for each core this process may use. The result does not depend on it."""

    seed: int = 0
    """Seed of the choice of the held-out documents."""

    def __post_init__(self) -> None:
        if not self.source.strip() or self.source == HUGGING_FACE:
            raise InputError(f"source is {self.source!r}: give pydocs, a path, a URL or hf:NAME")
        _choice("documents", self.documents, ("auto", "blank-line", "file"))
        _choice("sentences", self.sentences, ("auto", "line", "split", "paragraph"))
        _choice("tokenizer", self.tokenizer, ("wordpiece", "bpe"))
        _choice("deduplicate_lines", self.deduplicate_lines, (True, False, "auto"))
        if not (math.isfinite(self.held_out_fraction) and 0 <= self.held_out_fraction < 1):
            raise InputError(f"held_out_fraction is {self.held_out_fraction}: allowed are 0 up to, not including, 1")
        for name, least in (("vocabulary_size", 64), ("vocabulary_megabytes", 1), ("workers", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}: at least {least} is allowed")
        for name in ("vocabulary_size", "vocabulary_megabytes"):
            if self.vocabulary is not None and getattr(self, name) != getattr(PrepareOptions, name):
                raise InputError(
                    f"{name} is {getattr(self, name)}, but no vocabulary is trained: {self.vocabulary} is given"
                )
        if self.tokenizer == "bpe" and self.vocabulary_size < LEAST_BYTE_PAIRS:
            raise InputError(
                f"vocabulary_size is {self.vocabulary_size}: bpe needs {LEAST_BYTE_PAIRS} or more, one for each byte"
            )
        if self.seed >= 1 << 64:
            raise InputError(f"seed is {self.seed}: it must be below 2^64")


def _choice(name: str, given: object, allowed: tuple[object, ...]) -> None:
    if given not in allowed:
        raise InputError(f"{name} is {given!r}: allowed are {', '.join(map(str, allowed))}")
