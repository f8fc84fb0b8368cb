"""metrics.jsonl: what happened, one JSON object a line, in the order in which it happened.

Numbers are written so that reading them back gives the same bits. A line is complete or, after a crash, torn and
last; a torn last line is ignored. A checkpoint remembers how many bytes the ledger had, and a resume cuts it there.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from largebatch.errors import InputError


class Ledger:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Open the ledger, keeping its first ``keep_bytes`` bytes.

        The rest is cut away by writing the kept part aside and renaming it, so that no crash can lose it.

        Raises:
            InputError: if the file is shorter than what is to be kept, or would be cut inside a line.
        """
        self.path = path
        held = path.read_bytes() if path.exists() else b""
        if len(held) < keep_bytes or (keep_bytes and held[keep_bytes - 1 : keep_bytes] != b"\n"):
            raise InputError(
                f"{path} was changed: the checkpoint refers to its first {keep_bytes} bytes, which are no whole lines"
            )
        if len(held) != keep_bytes or not path.exists():
            aside = path.with_name(path.name + ".partial")
            with aside.open("wb") as file:
                file.write(held[:keep_bytes])
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line; raises InputError where that cannot be done, as `sync` does."""
        with self._writing():
            self._file.write(json.dumps(_strict({"kind": kind, **fields}), allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> int:
        """Force everything to the disk and return the length in bytes."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.path.stat().st_size

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _strict(value: Any) -> Any:
    """Replace numbers that JSON does not know, NaN and the infinities, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    return value


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a ledger as dictionaries; a torn last line is left out.

    Raises:
        InputError: if a line that is not the last is no JSON object.
    """
    for _, record in numbered_lines(path):
        yield record


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) as ``read_ledger`` does."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: no JSON object stands there")
            yield number, record
