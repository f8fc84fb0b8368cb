"""Files of any kind of storage, listed in one order and read through any of the usual compressions.

fsspec opens the file, the standard library or `zstandard` decompresses it; what is added here is what they
leave out: a sorted listing without loops, the sum of what was read, and an error for a .zst that stops early.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from largebatch.errors import InputError

_BLOCK_BYTES = 1 << 18
_ALLOWED = "allowed are a path, a URL, a pattern with *, and hf:NAME for a Hugging Face dataset"


@dataclass(frozen=True)
class InputFile:
    """One file of a source."""

    filesystem: Any
    """The fsspec file system that holds it."""
    path: str
    """Its path there."""
    name: str
    """Its path below the folder that was given, or its own name; the same on every machine."""
    shown: str
    """What messages call it."""
    size: int
    """Bytes as stored (compressed); 0 where the storage does not say."""

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, in small letters, without that of the compression."""
        name = PurePosixPath(self.name.lower())
        return name.with_suffix("").suffix if name.suffix in _DECOMPRESSORS else name.suffix

    @property
    def is_local(self) -> bool:
        """Whether the file can be read again at no cost."""
        return "file" in _protocols(self.filesystem)


class MeteredFile(io.RawIOBase):
    """A file as stored, which counts and hashes what is read from it."""

    def __init__(self, file: InputFile) -> None:
        super().__init__()
        self._file = file.filesystem.open(file.path, "rb", compression=None)
        self._digest = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes, 0 at the end."""
        data = self._file.read(len(buffer))
        self._digest.update(data)
        self.bytes_read += len(data)
        buffer[: len(data)] = data
        return len(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was read."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


class _ZstandardFile(io.RawIOBase):
    """All frames of a .zst file; unlike the library's own reader it does not take a torn one for a whole."""

    def __init__(self, raw: io.BufferedReader) -> None:
        try:
            import zstandard
        except ImportError:
            raise InputError(
                "reading .zst files needs zstandard: install it with `pip install largebatch[train]`"
            ) from None
        super().__init__()
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")
        self._error = zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            frame, rest = self._frame, b""
            if frame is not None and frame.eof:
                frame, rest = None, frame.unused_data
            data = rest or self._raw.read(_BLOCK_BYTES)
            if not data:
                if frame is not None:
                    raise EOFError("the compressed data ends in the middle of a frame")
                return 0
            self._frame = frame or self._decompressor.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise lzma.LZMAError(str(error)) from None  # one kind of error for all compressions
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda raw: io.BufferedReader(_ZstandardFile(raw), _BLOCK_BYTES),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)


class FileContent:
    """The bytes of a file after decompression; whatever goes wrong is an InputError that names the file."""

    def __init__(self, file: InputFile) -> None:
        self._shown = file.shown
        try:
            self.metered = MeteredFile(file)
        except OSError as error:
            raise InputError(f"{file.shown} cannot be opened: {_reason(error)}") from None
        # typeshed asks for a RawIOBase of its own kind here; this is one
        self._stored = io.BufferedReader(cast(io.RawIOBase, self.metered), _BLOCK_BYTES)
        decompress = _DECOMPRESSORS.get(PurePosixPath(file.name.lower()).suffix)
        self._content = decompress(self._stored) if decompress else self._stored

    def __enter__(self) -> "FileContent":
        return self

    def __exit__(self, *error: object) -> None:
        self._content.close()
        self._stored.close()

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, less only at the end of the file."""
        blocks, missing = [], size
        try:
            while missing and (block := self._content.read(missing)):
                blocks.append(block)
                missing -= len(block)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise InputError(f"{self._shown} cannot be read: {_reason(error)}") from None
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def stored_digest(self) -> str:
        """Read to the end what the decompression left and return the SHA-256 of the file as stored."""
        try:
            while self.metered.read(_BLOCK_BYTES):
                pass
        except OSError as error:
            raise InputError(f"{self._shown} cannot be read: {_reason(error)}") from None
        return self.metered.hexdigest()


def list_files(source: str, suffixes: frozenset[str]) -> list[InputFile]:
    """Return the files of a path, an fsspec URL, or a pattern with `*`, sorted by name.

    In a folder those below it whose suffix (before the compression's) is among `suffixes`; hidden files and
    folders are left out. A path that is itself a file is returned whatever its suffix. Raises InputError.
    """
    if not source.strip():
        raise InputError(f"the path {source!r} names nothing; {_ALLOWED}")
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(os.path.expanduser(source))
        if _is_pattern(source) and not filesystem.exists(path):
            found = {p: i for p, i in filesystem.glob(path, detail=True).items() if i["type"] == "file"}
            files = [_file(filesystem, p, i, PurePosixPath(p).name) for p, i in found.items()]
            files.sort(key=lambda file: file.path)
        elif not filesystem.exists(path):
            files = []
        elif filesystem.isfile(path):
            return [_file(filesystem, path, filesystem.info(path), PurePosixPath(path).name)]
        elif filesystem.isdir(path):
            files = _folder(filesystem, path)
            files = [file for file in files if file.suffix in suffixes]
            if not files:
                allowed = ", ".join(sorted(suffixes))
                raise InputError(f"the folder {source} holds no {allowed} file, plain or compressed")
        else:
            raise InputError(f"{source} is neither a file nor a folder")
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"the source {source} cannot be opened: {_reason(error)}") from None
    if not files:
        raise InputError(f"there is no file or folder {source}; {_ALLOWED}")
    return files


def _folder(filesystem: Any, root: str) -> list[InputFile]:
    if "file" in _protocols(filesystem):
        found = {path: {"size": os.path.getsize(path)} for path in _walk(root) if os.path.isfile(path)}
    else:
        found = filesystem.find(root, detail=True)
    prefix = len(root.rstrip("/")) + 1
    files = [_file(filesystem, path, info, path[prefix:].replace(os.sep, "/")) for path, info in found.items()]
    shown = [file for file in files if not any(part.startswith(".") for part in file.name.split("/"))]
    return sorted(shown, key=lambda file: file.name)


def _walk(root: str) -> Iterator[str]:
    """Walk a local folder through symbolic links, but into no folder twice."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        subfolders.sort()  # so that of two links to one folder the same is taken everywhere
        yield from (os.path.join(folder, name) for name in names)


def _file(filesystem: Any, path: str, info: dict[str, Any], name: str) -> InputFile:
    shown = path if "file" in _protocols(filesystem) else filesystem.unstrip_protocol(path)
    return InputFile(filesystem, path, name, shown, info.get("size") or 0)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    return (filesystem.protocol,) if isinstance(filesystem.protocol, str) else tuple(filesystem.protocol)


def _is_pattern(source: str) -> bool:
    return "*" in source


def _reason(error: BaseException) -> str:
    """Return an error in a few words on one line, without a path that stands elsewhere in the sentence."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
