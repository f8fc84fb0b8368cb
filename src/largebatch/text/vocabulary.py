"""A vocabulary, whatever its kind: a tokenizer that is ready to be written, and what is known about it."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from largebatch.text.shards import EndId, SpecialIds, write_text


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer, ready to be written, and what is known about it."""

    tokenizer_json: str
    entries: list[str]
    """Tokens by id."""
    config: dict[str, Any]
    """What tokenizer_config.json will hold."""
    special_ids: SpecialIds | EndId
    """Ids of BERT's five special tokens, or of the one that ends a document."""

    @property
    def digest(self) -> str:
        """SHA-256 of tokenizer.json."""
        return hashlib.sha256(self.tokenizer_json.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, of WordPiece, vocab.txt."""
        write_text(folder / "tokenizer.json", self.tokenizer_json)
        write_text(folder / "tokenizer_config.json", json.dumps(self.config, indent=2) + "\n")
        if isinstance(self.special_ids, SpecialIds):
            write_text(folder / "vocab.txt", "".join(f"{entry}\n" for entry in self.entries))


def copy_tokenizer(folder: Path, to: Path) -> None:
    """Copy those files of a tokenizer that a folder, a corpus or a model of Hugging Face's format, has."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


class Survey(NamedTuple):
    """What training needs to know of a unit before it starts."""

    text: bytes
    """The sentences of the training part, one a line."""
    characters: dict[str, int]
    """How often each character occurs after normalisation."""
    inner: set[str]
    """Those that occur inside a word, not only at its beginning."""
