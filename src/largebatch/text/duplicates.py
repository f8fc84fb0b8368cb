"""Repeated lines: of equal ones only the first in the corpus is kept.

Lines are equal here where WordPiece could not tell them apart: after BERT's normaliser and without spaces.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b

from tokenizers.normalizers import BertNormalizer

from largebatch.text.documents import Document, Unit, as_unit, documents_of
from largebatch.text.processes import WorkerPool


def without_repeated_lines(
    units: Iterable[tuple[int, Unit]], pool: WorkerPool, *, lowercase: bool
) -> Iterator[tuple[int, Unit]]:
    """Pass units on without the lines that stood in them or in an earlier one already.

    Keeps 64 bits of a hash for each line: of a thousand million different lines, one is expected to be lost with
    a probability of 3 %, and none to be kept twice.
    """
    seen: set[int] = set()
    tasks = (((read, unit), (unit, lowercase)) for read, unit in units)
    for (read, unit), keyed in pool.map(keyed_documents, tasks):
        assert keyed is not None
        kept: list[Document] = []
        for document, keys in zip(*keyed, strict=True):
            lines = []
            for line, key in zip(document, keys, strict=True):
                if key not in seen:
                    seen.add(key)
                    lines.append(line)
            if lines:
                kept.append(lines)
        if kept:
            yield read, as_unit(kept, unit[0].shown)


def keyed_documents(unit: Unit, lowercase: bool) -> tuple[list[Document], list[list[int]]]:
    """Return the documents of a unit and, for each of their lines, 64 bits that equal lines share."""
    documents = documents_of(unit)
    return documents, [[_key(line, lowercase) for line in document] for document in documents]


def _key(line: str, lowercase: bool) -> int:
    bare = "".join(_normalizer(lowercase).normalize_str(line).split())
    return int.from_bytes(blake2b(bare.encode(), digest_size=8).digest(), "little")


@lru_cache
def _normalizer(lowercase: bool) -> BertNormalizer:
    return BertNormalizer(lowercase=lowercase)
