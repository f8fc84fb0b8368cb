"""Raw text to documents: a document is a list of sentences.

A *part* is a run of bytes from one file that begins and ends at a document's boundary; a *unit* is a list of
parts, about half a megabyte, that a worker process turns into documents in one go.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

from largebatch.errors import InputError
from largebatch.text.sentences import SentenceMode, sentences

Document = list[str]


class Format(NamedTuple):
    """How bytes are to be read."""

    kind: Literal["blank-line", "file", "json"]
    """What ends a document: a blank line, the end of the part, or (JSON Lines) the end of the line."""
    sentences: SentenceMode
    text_field: str


class Part(NamedTuple):
    """A piece of one file."""

    format: Format
    shown: str
    """What messages call the file."""
    offset: int
    """Bytes of the file, after decompression, that stand before this part."""
    data: bytes


Unit = list[Part]


def documents_of(unit: Unit) -> list[Document]:
    """Return the documents of a unit, without empty ones.

    Raises InputError that names the file and the byte for invalid UTF-8 and invalid JSON.
    """
    return [document for part in unit for document in _documents(part)]


def digest(unit: Unit) -> str:
    """Return a hash of what a unit holds and how it is to be read, not of where it comes from."""
    state = hashlib.sha256()
    for part in unit:
        state.update(repr((*part.format, len(part.data))).encode())
        state.update(part.data)
    return state.hexdigest()


def unit_bytes(unit: Unit) -> int:
    """Return how much raw text a unit holds."""
    return sum(len(part.data) for part in unit)


def as_unit(documents: Iterable[Document], shown: str) -> Unit:
    """Return documents, already cut into sentences, as a unit: one sentence a line, a blank line between."""
    text = "\n\n".join("\n".join(document) for document in documents)
    return [Part(Format("blank-line", "line", ""), shown, 0, text.encode())]


def encodable(text: str) -> bytes:
    """Return UTF-8; halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _documents(part: Part) -> list[Document]:
    if part.format.kind == "json":
        texts = _json_texts(part)
    else:
        text = _decoded(part)
        if part.format.kind == "blank-line":
            return _blank_line_documents(text, part.format.sentences)
        texts = [text]
    documents = [sentences(text, part.format.sentences) for text in texts]
    return [document for document in documents if document]


def _decoded(part: Part) -> str:
    data = part.data
    mark = 3 if part.offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0  # a byte-order mark is no text
    try:
        return str(data[mark:], "utf-8")
    except UnicodeDecodeError as error:
        byte = part.offset + mark + error.start
        raise InputError(f"{part.shown} is not valid UTF-8: byte {byte} is 0x{data[mark + error.start]:02x}") from None


def _blank_line_documents(text: str, mode: SentenceMode) -> list[Document]:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    documents: list[Document] = []
    document: Document = []
    for line in map(str.strip, text.split("\n")):
        if line:
            document.append(line)
        elif document:
            documents.append(document)
            document = []
    if document:
        documents.append(document)
    if mode == "line":
        return documents
    cut = [sentences("\n".join(document), mode) for document in documents]
    return [document for document in cut if document]


def _json_texts(part: Part) -> list[str]:
    field, texts, offset = part.format.text_field, [], part.offset
    _decoded(part)  # for its error: that of `json` would count characters of a line
    for line in part.data.removeprefix(b"\xef\xbb\xbf" if part.offset == 0 else b"").split(b"\n"):
        if line.strip():
            texts.append(_json_text(line, field, f"{part.shown}, line at byte {offset}"))
        offset += len(line) + 1
    return [str(encodable(text), "utf-8") for text in texts if text is not None]


def _json_text(line: bytes, field: str, place: str) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}, is not valid JSON: {error}") from None
    if not isinstance(row, dict) or field not in row:
        held = f"an object with {', '.join(sorted(row)) or 'nothing'}" if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{place}, has no field {field!r} (it holds {held}); text_field chooses the field")
    return text_of(row[field], field, place)


def text_of(value: object, field: str, place: str) -> str | None:
    """Return the text of a field, None where it is null; raises InputError if it is not text."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: the field {field!r} holds {type(value).__name__}, not text")
    return value
