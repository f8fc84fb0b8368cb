"""The folder in which a corpus grows: `OUT.partial` until it is complete, then renamed to `OUT`.

A finished shard leaves a record in `.work`: the checksums of the text it came from and of its own files. A later
run takes a shard over only if the options are the same (one key over all of them), the text that belongs there
is the same, and its files still have their checksums; so an interrupted and repeated run ends in the same bytes
as one that was never interrupted. The folder is locked while a process works in it.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.text.encoding import Encoded, EncodedUnit
from largebatch.text.shards import (
    MANIFEST,
    SHARD_FILE,
    TOKEN_COUNTS,
    Split,
    file_record,
    shard_names,
    write_arrays,
    write_manifest,
    write_text,
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
_WORK = ".work"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(InputError):
    """The disk is full, or may not be written to. What was finished before is kept and taken over later."""


class Stale(Exception):
    """A finished shard came from other text than what is read now."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard."""

    units: list[str]
    """Checksums of the text of its units."""
    train_documents: int
    held_out_documents: int
    """Documents of each split, empty ones left out."""
    documents: int
    """Documents read."""
    lowest_hash: int
    """The least of their hashes (held_out.py)."""
    files: dict[str, dict[str, Any]]
    """Bytes and checksum by file name."""


class Partial:
    """The unfinished folder, entered with `with`.

    At the end of the block it is kept for a later run, unless the input was at fault before a shard was finished:
    then it is removed.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out.with_name(out.name + ".partial")
        self.work = self.folder / _WORK
        self._lock: int | None = None

    def __enter__(self) -> "Partial":
        with writing(self.folder):
            if self.folder.exists() and not self._is_ours():
                raise InputError(f"{self.folder}, where the corpus is to grow, holds other files: remove it first")
            self.work.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        refused = kind is not None and issubclass(kind, InputError) and not issubclass(kind, NotWritten)
        if refused and not any(self.work.glob("shard-*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def begin(self, key: str) -> None:
        """Keep what earlier runs finished under the same key, and nothing else."""
        path = self.work / "key"
        if not path.is_file() or path.read_text(encoding="utf-8") != key:
            self.clear()
            with writing(path):
                write_text(path, key)

    def clear(self) -> None:
        """Remove all shards and their records."""
        for path in [*self.work.glob("shard-*.json"), *self.folder.iterdir()]:
            if path.parent == self.work or SHARD_FILE.fullmatch(path.name):
                path.unlink()

    def recorded(self, number: int) -> ShardRecord | None:
        """Return the record of a shard if it is finished and its files are what the record says."""
        try:
            record = ShardRecord(**json.loads(self._record_path(number).read_text(encoding="utf-8")))
            whole = all(file_record(self.folder / name) == known for name, known in record.files.items())
        except (OSError, ValueError, TypeError):  # missing, or torn by a crash
            return None
        return record if whole else None

    def store(self, number: int, units: list[str], encoded: Sequence[EncodedUnit], vocabulary_size: int) -> ShardRecord:
        """Write the files of a shard and then its record."""
        splits: dict[Split, list[Encoded]] = {
            "train": [unit.train for unit in encoded],
            "held_out": [unit.held_out for unit in encoded],
        }
        documents: dict[str, int] = {}
        files: dict[str, dict[str, Any]] = {}
        with writing(self.folder):
            self._record_path(number).unlink(missing_ok=True)
            for split, parts in splits.items():
                tokens, sentences, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                documents[split] = len(lengths)
                if len(lengths):
                    size = vocabulary_size
                    write_arrays(self.folder, split, number, tokens, sentences, lengths, vocabulary_size=size)
                    files |= {name: file_record(self.folder / name) for name in shard_names(split, number)}
            record = ShardRecord(
                units=units,
                train_documents=documents["train"],
                held_out_documents=documents["held_out"],
                documents=sum(unit.documents for unit in encoded),
                lowest_hash=min(unit.lowest_hash for unit in encoded),
                files=files,
            )
            write_text(self._record_path(number), json.dumps(asdict(record)))
        return record

    def publish(self, shard_files: set[str], **manifest: Any) -> None:
        """Write the manifest over the given shards and rename the folder to its final name."""
        with writing(self._out):
            for path in self.folder.iterdir():
                if path.name not in shard_files and path.name not in (*_TOKENIZER_FILES, _WORK):
                    path.unlink()
            write_manifest(self.folder, **manifest)
            shutil.rmtree(self.work)
            rename_whole(self.folder, self._out)

    def _record_path(self, number: int) -> Path:
        return self.work / f"shard-{number:05d}.json"

    def _is_ours(self) -> bool:
        if not self.folder.is_dir():
            return False
        known = {*_TOKENIZER_FILES, MANIFEST, TOKEN_COUNTS, _WORK}
        return all(path.name in known or SHARD_FILE.fullmatch(path.name) for path in self.folder.iterdir())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing at `path` into one sentence."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
        raise NotWritten(
            f"cannot write {error.filename or path}: {reason}; what is finished is kept, and the same command "
            "goes on from there"
        ) from None


def _locked(folder: Path) -> int | None:
    """Lock a folder until the process ends; raises InputError if another process works in it."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where two runs at once are for the user to avoid
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        same = False
    if not same:
        os.close(handle)
        raise InputError(f"another process is preparing {folder}: wait for it or choose another folder")
    return handle


def rename_whole(folder: Path, out: Path) -> None:
    """Give a finished folder its name, which an empty one may have had, and make both last."""
    _sync(folder)
    if out.is_dir():
        out.rmdir()  # empty, or it would not have come so far
    folder.rename(out)
    _sync(out.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder last, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
