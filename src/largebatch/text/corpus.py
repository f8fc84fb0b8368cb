"""Documents from any source, as a stream of raw units in one fixed order.

A source can be read any number of times and gives the same units each time. It cuts bytes at boundaries of
documents and leaves the rest (decoding, JSON, sentences) to the workers, so that one reader keeps many cores
busy.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from platform import python_version
from typing import Any, Protocol

from largebatch.errors import InputError
from largebatch.text import pydocs
from largebatch.text.documents import Format, Part, Unit, as_unit, encodable, text_of, unit_bytes
from largebatch.text.files import COMPRESSIONS, FileContent, InputFile, list_files
from largebatch.text.hub import dataset_name, one_line, open_dataset
from largebatch.text.options import PYDOCS, PrepareOptions
from largebatch.text.processes import WorkerPool

DOCUMENT_BYTES = 1 << 24
"""A document longer than this, no boundary in sight, is cut at the end of a line."""

_TEXT = frozenset({".txt", ".text", ""})
_MARKDOWN = frozenset({".md", ".markdown"})
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_IN_FOLDERS = (_TEXT | _MARKDOWN | _JSON_LINES) - {""}
_BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")


class Source(Protocol):
    """Where text comes from."""

    total_bytes: int | None
    """Bytes to be read, None while unknown: as stored where the source is files, otherwise of text."""
    documents_cut: int
    """How often the last reading cut a document that was too long."""

    def units(self, unit_size: int, pool: WorkerPool) -> Iterator[tuple[int, Unit]]:
        """Yield (bytes read so far, unit of at least `unit_size` bytes of text), the last one smaller."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what tells this input from another, as JSON values, after it was read to its end."""
        ...

    def is_unchanged(self, identity: dict[str, Any]) -> bool:
        """Return whether the input is still the one of that identity, as far as can be told at little cost."""
        ...


def open_source(options: PrepareOptions) -> Source:
    """Find the source; raises InputError in one sentence if it is missing or of no known kind."""
    source = options.source
    if source == PYDOCS:
        return PydocsSource()
    if (name := dataset_name(source)) is not None:
        return DatasetSource(options, name)
    return FileSource(options, list_files(source, _IN_FOLDERS))


class FileSource:
    """Text, Markdown and JSON Lines files."""

    def __init__(self, options: PrepareOptions, files: list[InputFile]) -> None:
        self._files = [(file, _format(file, options)) for file in files]
        self._digests: list[str] = []
        self.total_bytes: int | None = sum(file.size for file in files) or None
        self.documents_cut = 0

    def units(self, unit_size: int, pool: WorkerPool) -> Iterator[tuple[int, Unit]]:
        """See Source."""
        self._digests, self.documents_cut = [], 0
        unit: Unit = []
        size = read_before = 0
        for file, format in self._files:
            with FileContent(file) as content:
                for part in self._parts(content, file, format, unit_size):
                    unit.append(part)
                    size += len(part.data)
                    if size >= unit_size:
                        yield read_before + content.metered.bytes_read, unit
                        unit, size = [], 0
                self._digests.append(content.stored_digest())
                read_before += content.metered.bytes_read
        if unit:
            yield read_before, unit

    def identity(self) -> dict[str, Any]:
        """Return the number of files, their bytes as stored, and one checksum over all names and contents."""
        return self._identity(self._digests)

    def is_unchanged(self, identity: dict[str, Any]) -> bool:
        """Compare number and size, and, where the files are local, the checksum."""
        recorded = identity.get("files"), identity.get("bytes")
        if recorded != (len(self._files), sum(file.size for file, _ in self._files)):
            return False
        if not all(file.is_local for file, _ in self._files):
            return True
        digests = []
        for file, _ in self._files:
            with FileContent(file) as content:
                digests.append(content.stored_digest())
        return self._identity(digests) == identity

    def _identity(self, digests: list[str]) -> dict[str, Any]:
        state = hashlib.sha256()
        for (file, _), file_digest in zip(self._files, digests, strict=True):
            state.update(f"{file_digest} {file.name}\n".encode("utf-8", "surrogateescape"))
        size = sum(file.size for file, _ in self._files)
        return {"files": len(self._files), "bytes": size, "sha256": state.hexdigest()}

    def _parts(self, content: FileContent, file: InputFile, format: Format, unit_size: int) -> Iterator[Part]:
        """Cut a file after the last boundary of each `unit_size` bytes; where the cuts fall depends on nothing else."""
        last_boundary = _LAST_BOUNDARY[format.kind]
        held, offset, ended = b"", 0, False
        while not ended:
            block = content.read(unit_size)
            ended = len(block) < unit_size
            if b"\0" in block:
                byte = offset + len(held) + block.index(b"\0")
                raise InputError(f"{file.shown} is binary, not text: byte {byte} is 0")
            held += block
            end = len(held) if ended else last_boundary(held)
            if end == 0 and len(held) >= DOCUMENT_BYTES:
                end = held.rfind(b"\n") + 1
                if end == 0 or format.kind == "json":
                    raise InputError(f"{file.shown}: the line at byte {offset} is longer than {DOCUMENT_BYTES} bytes")
                self.documents_cut += 1
            if end:
                yield Part(format, file.shown, offset, held[:end])
                held, offset = held[end:], offset + end


class PydocsSource:
    """The docstrings and pydoc topics of the installed Python, NumPy and PyTorch."""

    documents_cut = 0

    def __init__(self) -> None:
        self.total_bytes: int | None = None
        self._parts: list[Part] = []  # about 10 MB, kept because they take seconds to collect

    def units(self, unit_size: int, pool: WorkerPool) -> Iterator[tuple[int, Unit]]:
        """See Source."""
        yield from _grouped(self._parts or self._collected(pool), unit_size)

    def _collected(self, pool: WorkerPool) -> Iterator[Part]:
        parts: list[Part] = []
        for document in pydocs.collect(pool):
            parts += as_unit([document], PYDOCS)
            yield parts[-1]
        self._parts, self.total_bytes = parts, unit_bytes(parts)

    def identity(self) -> dict[str, Any]:
        """Return the versions of what is read."""
        return {"python": python_version(), "numpy": version("numpy"), "torch": version("torch")}

    def is_unchanged(self, identity: dict[str, Any]) -> bool:
        """Compare the versions."""
        return identity == self.identity()


class DatasetSource:
    """A Hugging Face dataset, streamed from the hub, from local files, or from a folder it was saved to."""

    total_bytes: int | None = None
    documents_cut = 0

    def __init__(self, options: PrepareOptions, name: str) -> None:
        self._name, self._field = name, options.text_field
        mode = "split" if options.sentences == "auto" else options.sentences
        self._format = Format("file", mode, options.text_field)
        self._dataset = open_dataset(name, options.dataset_config, options.dataset_split)
        self._rows = 0

    def units(self, unit_size: int, pool: WorkerPool) -> Iterator[tuple[int, Unit]]:
        """See Source."""
        yield from _grouped(self._parts(), unit_size)

    def identity(self) -> dict[str, Any]:
        """Return the number of rows."""
        return {"rows": self._rows}

    def is_unchanged(self, identity: dict[str, Any]) -> bool:
        """Return True: a dataset is not read again to find out."""
        return True

    def _parts(self) -> Iterator[Part]:
        self._rows = 0
        for value in _column(self._dataset, self._name, self._field):
            text = text_of(value, self._field, f"row {self._rows} of the dataset {self._name}")
            if text:
                yield Part(self._format, self._name, self._rows, encodable(text))
            self._rows += 1


def _grouped(parts: Iterable[Part], unit_size: int) -> Iterator[tuple[int, Unit]]:
    unit: Unit = []
    size = read = 0
    for part in parts:
        unit.append(part)
        size += len(part.data)
        read += len(part.data)
        if size >= unit_size:
            yield read, unit
            unit, size = [], 0
    if unit:
        yield read, unit


def _format(file: InputFile, options: PrepareOptions) -> Format:
    suffix = file.suffix
    if suffix in _JSON_LINES or suffix == ".json":
        mode = "split" if options.sentences == "auto" else options.sentences
        return Format("json", mode, options.text_field)
    markdown = suffix in _MARKDOWN
    if suffix not in _TEXT and not markdown and options.documents == "auto":
        raise InputError(
            f"{file.shown} ends in {suffix}: known are {', '.join(sorted(_IN_FOLDERS))}, plain or followed by "
            f"{', '.join(COMPRESSIONS)}; set documents to blank-line or file to read it as plain text"
        )
    kind = options.documents if options.documents != "auto" else "file" if markdown else "blank-line"
    mode = options.sentences if options.sentences != "auto" else "paragraph" if markdown else "line"
    return Format(kind, mode, options.text_field)


def _after_last_blank_line(data: bytes) -> int:
    """Return where the text after the last blank line begins, 0 if there is none."""
    end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
    if end <= 2:  # not found, or nothing before it; blank lines may still hold spaces
        end = 0
        for match in _BLANK_LINE.finditer(data):
            end = match.end()
    return end


_LAST_BOUNDARY: dict[str, Callable[[bytes], int]] = {
    "blank-line": _after_last_blank_line,
    "json": lambda data: data.rfind(b"\n") + 1,
    "file": lambda data: 0,
}


def _column(dataset: Any, name: str, field: str) -> Iterator[object]:
    """Yield the values of one column; whatever the library raises becomes an InputError."""
    try:
        columns = dataset.column_names
        if columns is None:  # a stream that has to be looked into
            columns = list(next(iter(dataset), {field: None}))
        if field not in columns:
            held = ", ".join(map(str, columns))
            raise InputError(f"the dataset {name} has no column {field!r}: it has {held} (text_field chooses)")
        batches = iter(dataset.select_columns([field]).iter(batch_size=256))
        while (batch := next(batches, None)) is not None:
            yield from batch[field]
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        raise InputError(f"the dataset {name} cannot be read: {one_line(error)}") from None
