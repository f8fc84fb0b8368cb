"""The prepared corpus on disk: what is in the folder, how it is read, and how it is written.

A folder is complete when it holds ``manifest.json``, which is written last. Beside it lie the tokenizer
(``tokenizer.json``, ``tokenizer_config.json``, ``vocab.txt``), ``train-token-counts.npy`` (int64
[vocabulary_size]) and, for each split and shard, three arrays::

    train-00000.tokens.npy      uint16 (uint32 above 65,536 entries) [T]  token ids, no special tokens inside
    train-00000.sentences.npy   int64 [S + 1]  sentence s is tokens[sentences[s] : sentences[s + 1]]
    train-00000.documents.npy   int64 [D + 1]  document d is sentences documents[d] to documents[d + 1]

Shard numbers ascend, with gaps where a shard would be empty; a document never straddles two shards, and no
document and no sentence is empty. Nothing in the folder depends on when or where it was made.
"""

import bisect
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from largebatch.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKEN_COUNTS = "train-token-counts.npy"
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
_ARRAYS = ("tokens", "sentences", "documents")
SHARD_FILE = re.compile(r"(?P<split>train|held_out)-(?P<number>\d{5,})\.(?P<array>tokens|sentences|documents)\.npy")
"""The name of a file of a shard."""
# An open memory map holds a file descriptor: most systems allow a process 1,024, a corpus may need more.
_OPEN_MAPS = 512


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """The ids of the five special tokens of BERT."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, kw_only=True)
class EndId:
    """The id of the one special token of byte-level BPE, which ends a document."""

    end: int


@lru_cache(maxsize=_OPEN_MAPS)
def _mapped(path: Path, identity: tuple[int, int, int]) -> NDArray[Any]:
    """Map a file and keep it mapped while it is in use; `identity` tells apart what stood there in turn."""
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain view: slicing np.memmap itself is slow


@dataclass(frozen=True)
class Shard:
    """The documents of one shard, as read-only memory-mapped arrays. Cheap to pickle: only names travel."""

    paths: tuple[Path, Path, Path]
    """Files of the tokens, the sentences and the documents."""
    identities: tuple[tuple[int, int, int], ...]
    """Inode, bytes and time of change of each, as they were when the corpus was opened."""

    @classmethod
    def open(cls, folder: Path, split: Split, number: int) -> "Shard":
        """Find the three files of a shard; raises FileNotFoundError if one is missing."""
        tokens, sentences, documents = (folder / name for name in shard_names(split, number))
        paths = (tokens, sentences, documents)
        stats = [path.stat() for path in paths]
        return cls(paths, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))

    @property
    def tokens(self) -> NDArray[Any]:
        """Token ids of all sentences one after another, uint16 or uint32 [T]."""
        return _mapped(self.paths[0], self.identities[0])

    @property
    def sentence_starts(self) -> NDArray[np.int64]:
        """Where each sentence starts in `tokens`, and the end of the last, int64 [S + 1]."""
        return _mapped(self.paths[1], self.identities[1])

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """Index of each document's first sentence, and the number of sentences, int64 [D + 1]."""
        return _mapped(self.paths[2], self.identities[2])

    def document(self, local_document: int) -> list[NDArray[Any]]:
        """Return the sentences of one document of this shard, each an array of token ids."""
        first, end = self.document_starts[local_document : local_document + 2].tolist()
        starts = self.sentence_starts[first : end + 1].tolist()
        tokens = self.tokens
        return [tokens[a:b] for a, b in itertools.pairwise(starts)]


class DocumentStore:
    """All documents of one split, numbered from 0 through the shards in ascending order. Picklable."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._ends: list[int] = []  # number of documents in the shards up to and including this one
        self.documents = self.sentences = self.tokens = 0
        for shard in self.shards:
            self.documents += len(shard.document_starts) - 1
            self.sentences += len(shard.sentence_starts) - 1
            self.tokens += len(shard.tokens)
            self._ends.append(self.documents)

    def locate(self, document: int) -> tuple[int, int]:
        """Return (index into `shards`, number of the document inside that shard); raises IndexError."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        shard = bisect.bisect_right(self._ends, document)
        return shard, document - (self._ends[shard - 1] if shard else 0)

    def document(self, document: int) -> list[NDArray[Any]]:
        """Return the sentences of a document, each an array of token ids; raises IndexError."""
        shard, local_document = self.locate(document)
        return self.shards[shard].document(local_document)


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus, opened for reading. Picklable, so that data workers can share it."""

    folder: Path
    manifest: dict[str, Any]
    train: DocumentStore
    held_out: DocumentStore

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedCorpus":
        """Open a folder made by `largebatch prepare`.

        Checks that the manifest can be read, that every file it names is there with the size it gives, and
        that the arrays agree with its counts; `verify` checks the contents too. Raises InputError.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            for name, record in manifest["files"].items():
                size = (folder / name).stat().st_size
                if size != record["bytes"]:
                    raise InputError(
                        f"{folder / name} has {size} bytes where the manifest gives {record['bytes']}: "
                        "the corpus is damaged; remove the folder and prepare it again"
                    )
            stores = {split: DocumentStore(_shards(folder, split, manifest["files"])) for split in SPLITS}
            counts = {split: _counts(store) for split, store in stores.items()}
            agree = counts == manifest["counts"] and isinstance(manifest["vocabulary_size"], int)
            special_ids(manifest)
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename} is missing from the prepared corpus: remove {folder} and prepare it again"
            ) from None
        except InputError:
            raise
        except ValueError as error:  # NumPy cannot read an array
            raise InputError(f"{folder} holds a damaged array ({error})") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / MANIFEST} lacks or misspells a field ({error})") from None
        if not agree:
            raise InputError(f"{folder / MANIFEST} counts other documents, sentences or tokens than its shards")
        return cls(folder, manifest, stores["train"], stores["held_out"])

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, special tokens included."""
        return self.manifest["vocabulary_size"]

    @property
    def special_ids(self) -> SpecialIds:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]; raises InputError for a corpus of byte-level BPE."""
        found = special_ids(self.manifest)
        if isinstance(found, EndId):
            raise InputError(
                f"{self.folder} was prepared with byte-level BPE, which has no [MASK]; BERT needs a corpus that was "
                "prepared with the tokenizer wordpiece"
            )
        return found

    @property
    def end_id(self) -> int:
        """The id that stands between documents: that of <|endoftext|>, or of [SEP] where the tokens are WordPiece."""
        found = special_ids(self.manifest)
        return found.end if isinstance(found, EndId) else found.sep

    def fingerprint(self) -> str:
        """Return the SHA-256 of the manifest, which holds the checksums of all files."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    def token_counts(self) -> NDArray[np.int64]:
        """Return how often each token occurs in the training part, int64 [vocabulary_size]."""
        return np.load(self.folder / TOKEN_COUNTS)

    def tokenizer(self) -> "Tokenizer":
        """Load the tokenizer; raises InputError if the corpus was written without one."""
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path} is missing: this corpus was written without a tokenizer")
        return Tokenizer.from_file(str(path))

    def verify(self) -> None:
        """Compare every file with its checksum; raises InputError naming the first that differs."""
        for name, record in self.manifest["files"].items():
            if file_record(self.folder / name) != record:
                raise InputError(f"{self.folder / name} differs from its checksum in the manifest")


def shard_names(split: Split, number: int) -> list[str]:
    """Return the names of a shard's three files: tokens, sentences, documents."""
    return [f"{split}-{number:05d}.{array}.npy" for array in _ARRAYS]


def token_dtype(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest of the two token types that holds every id."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def write_shard(
    folder: Path,
    split: Split,
    number: int,
    documents: Sequence[Sequence[Sequence[int]]],
    *,
    vocabulary_size: int = 1 << 16,
) -> None:
    """Write documents (sequences of sentences, which are sequences of token ids) as one shard.

    The default vocabulary size gives uint16. Raises ValueError for an empty document or sentence and for ids
    outside [0, vocabulary_size).
    """
    sentences = [sentence for document in documents for sentence in document]
    tokens = np.array([token for sentence in sentences for token in sentence], dtype=np.int64)
    write_arrays(
        folder,
        split,
        number,
        tokens,
        np.array([len(sentence) for sentence in sentences], dtype=np.int64),
        np.array([len(document) for document in documents], dtype=np.int64),
        vocabulary_size=vocabulary_size,
    )


def write_arrays(
    folder: Path,
    split: Split,
    number: int,
    tokens: NDArray[Any],
    sentence_lengths: NDArray[np.int64],
    document_lengths: NDArray[np.int64],
    *,
    vocabulary_size: int,
) -> None:
    """Write one shard from its tokens, the tokens in each sentence and the sentences in each document.

    The files are synced to disk. Raises ValueError as `write_shard` does.
    """
    if len(document_lengths) == 0 or document_lengths.min() < 1 or sentence_lengths.min() < 1:
        raise ValueError("a shard needs a document, a document a sentence, and a sentence a token")
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        raise ValueError(f"token ids must lie in [0, {vocabulary_size})")
    arrays = (
        tokens.astype(token_dtype(vocabulary_size), copy=False),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sentence_lengths, dtype=np.int64)]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(document_lengths, dtype=np.int64)]),
    )
    for name, array in zip(shard_names(split, number), arrays, strict=True):
        write_array(folder / name, array)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write one .npy file, with the bytes of `np.save`, and sync it to disk."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        # np.save would do, but on a full disk it raises an OSError without the number that says so.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with Unix line ends and sync it to disk."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_manifest(
    folder: Path,
    *,
    vocabulary_size: int,
    special_ids: SpecialIds | EndId,
    source: str = "",
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete a folder of shards: write the token counts, then the manifest, and return it.

    Counts and checksums are taken from the files that lie in `folder`, hidden ones and folders left aside.
    `options` is whatever else was asked for, `facts` are further fields that say what was found; both must
    hold JSON values only.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    names = [name for name in files if not name.startswith(".") and name not in (MANIFEST, TOKEN_COUNTS)]
    stores = {split: DocumentStore(_shards(folder, split, names)) for split in SPLITS}
    token_counts = np.zeros(vocabulary_size, np.int64)
    for shard in stores["train"].shards:
        # Read, not mapped: what is mapped stays so, and the pages of a whole corpus would count as this process's.
        token_counts += np.bincount(np.load(shard.paths[0]), minlength=vocabulary_size)
    write_array(folder / TOKEN_COUNTS, token_counts)
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "options": dict(options or {}),
        **dict(facts or {}),
        "vocabulary_size": vocabulary_size,
        "special_ids": dict(vars(special_ids)),
        "counts": {split: _counts(store) for split, store in stores.items()},
        "files": {name: file_record(folder / name) for name in sorted([*names, TOKEN_COUNTS])},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared corpus; raises InputError where there is none of this format."""
    if not folder.is_dir():
        raise InputError(f"no prepared corpus at {folder}: there is no such folder (`largebatch prepare` makes one)")
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a prepared corpus: it has no {MANIFEST}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    return manifest


def file_record(path: Path) -> dict[str, Any]:
    """Return {"bytes", "sha256"} of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _shards(folder: Path, split: Split, names: Any) -> list[Shard]:
    """Open the shards of a split whose token files are among `names`, in ascending order."""
    prefix, suffix = f"{split}-", ".tokens.npy"
    numbers = sorted(
        int(name[len(prefix) : -len(suffix)]) for name in names if name.startswith(prefix) and name.endswith(suffix)
    )
    return [Shard.open(folder, split, number) for number in numbers]


def special_ids(manifest: Mapping[str, Any]) -> SpecialIds | EndId:
    """Return the special ids of a manifest; raises TypeError for other names."""
    ids = manifest["special_ids"]
    return EndId(**ids) if set(ids) == {"end"} else SpecialIds(**ids)


def _counts(store: DocumentStore) -> dict[str, int]:
    return {"documents": store.documents, "sentences": store.sentences, "tokens": store.tokens}
