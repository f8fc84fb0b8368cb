"""One unit of text to token ids: the work of a worker process."""

from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

from largebatch.text.documents import Document, Unit, documents_of
from largebatch.text.held_out import HeldOut
from largebatch.text.shards import token_dtype
from largebatch.text.wordpiece import encoder

# An Encoding takes about a hundred bytes a token until its ids are copied out: few of them at a time.
_BATCH_CHARACTERS = 1 << 16


class Encoded(NamedTuple):
    """The documents of one split, without empty sentences and documents."""

    tokens: NDArray[Any]
    sentence_lengths: NDArray[np.int64]
    """Tokens in each sentence."""
    document_lengths: NDArray[np.int64]
    """Sentences in each document."""


class EncodedUnit(NamedTuple):
    """What became of a unit."""

    train: Encoded
    held_out: Encoded
    documents: int
    lowest_hash: int
    """The least h(x) of its documents (held_out.py); 2^64 if it has none."""


def encode_unit(unit: Unit, tokenizer_path: str, tokenizer_digest: str, held_out: HeldOut) -> EncodedUnit:
    """Encode the documents of a unit; raises InputError if its bytes are not what their format asks for."""
    tokenizer = _encoder(tokenizer_path, tokenizer_digest)
    train: list[Document] = []
    kept: list[Document] = []
    lowest = 1 << 64
    for document in documents_of(unit):
        hashed = held_out.hash(document)
        lowest = min(lowest, hashed)
        (kept if hashed < held_out.threshold else train).append(document)
    return EncodedUnit(encode(train, tokenizer), encode(kept, tokenizer), len(train) + len(kept), lowest)


def encode(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    """Encode documents without adding special tokens."""
    tokens: list[NDArray[Any]] = []
    lengths: list[int] = []
    dtype = token_dtype(tokenizer.get_vocab_size())
    batch: list[str] = []
    size = 0

    def flush() -> None:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        lengths.extend(map(len, ids))
        tokens.append(np.fromiter(chain.from_iterable(ids), dtype))

    # To byte-level BPE a space belongs to the word after it; WordPiece takes no notice of spaces.
    joint = " " if isinstance(tokenizer.model, BPE) else ""
    for document in documents:
        for number, sentence in enumerate(document):
            batch.append(joint + sentence if number else sentence)
            size += len(sentence)
            if size >= _BATCH_CHARACTERS:
                flush()
                batch, size = [], 0
    flush()
    sentence_lengths = np.array(lengths, np.int64)
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    filled = np.concatenate([np.zeros(1, np.int64), np.cumsum(sentence_lengths > 0, dtype=np.int64)])
    document_lengths = np.diff(filled[ends], prepend=0)
    return Encoded(
        np.concatenate(tokens),
        sentence_lengths[sentence_lengths > 0],
        document_lengths[document_lengths > 0],
    )


@lru_cache(maxsize=1)
def _encoder(path: str, digest: str) -> Tokenizer:
    """Load a tokenizer once a process; `digest` tells apart what stood at one path in turn."""
    return encoder(path)
