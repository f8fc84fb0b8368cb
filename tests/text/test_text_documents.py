"""Raw bytes to documents, and that the places where files are cut change nothing."""

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_corpora import as_text, documents

from largebatch.errors import InputError
from largebatch.text import corpus
from largebatch.text.corpus import FileSource
from largebatch.text.documents import Format, Part, as_unit, digest, documents_of, encodable, unit_bytes
from largebatch.text.files import InputFile, list_files
from largebatch.text.options import PrepareOptions
from largebatch.text.processes import WorkerPool
from largebatch.text.sentences import SentenceMode

Kind = Literal["blank-line", "file", "json"]
POOL = WorkerPool(1)  # never used by files, so no process starts


def parse(data: bytes, kind: Kind = "blank-line", mode: SentenceMode = "line", offset: int = 0) -> list[list[str]]:
    """Return the documents of one part."""
    return documents_of([Part(Format(kind, mode, "text"), "file.txt", offset, data)])


TABLE: list[tuple[str, Kind, SentenceMode, bytes, list[list[str]]]] = [
    ("two documents", "blank-line", "line", b"a\nb\n\nc\n", [["a", "b"], ["c"]]),
    ("many blank lines, none at the end", "blank-line", "line", b"\n\na\n\n\n\nb", [["a"], ["b"]]),
    ("windows", "blank-line", "line", b"a\r\nb\r\n\r\nc\r\n", [["a", "b"], ["c"]]),
    ("old mac", "blank-line", "line", b"a\rb\r\rc", [["a", "b"], ["c"]]),
    ("blank lines with spaces", "blank-line", "line", b" a \n \t\nb\n\xc2\xa0\nc", [["a"], ["b"], ["c"]]),
    ("byte-order mark", "blank-line", "line", b"\xef\xbb\xbfa\n", [["a"]]),
    ("nothing", "blank-line", "line", b"\n \n", []),
    ("unusual line ends stay", "blank-line", "line", "a\u2028b\x85c\n".encode(), [["a\u2028b\x85c"]]),
    ("split lines", "blank-line", "split", b"One. Two.\nThree\n\nFour", [["One.", "Two.", "Three"], ["Four"]]),
    ("joined lines", "blank-line", "paragraph", b"One\nand. Two.\n\nFour", [["One and.", "Two."], ["Four"]]),
    ("a whole file", "file", "line", b"a\n\nb\n", [["a", "b"]]),
    ("a whole file of paragraphs", "file", "paragraph", b"a\nb.\n\nC\n", [["a b.", "C"]]),
    ("an empty file", "file", "line", b" \n", []),
    ("json", "json", "split", b'{"text": "One. Two."}\n\n{"text": "\\u00e9\\nx"}', [["One.", "Two."], ["é", "x"]]),
    ("null and empty", "json", "line", b'{"text": null}\n{"text": ""}\n', []),
    ("json, windows, mark", "json", "line", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n', [["a"], ["b"]]),
    ("half a surrogate pair", "json", "line", b'{"text": "a\\ud800b"}', [["a\ufffdb"]]),
    ("a whole surrogate pair", "json", "line", b'{"text": "\\ud83d\\ude00"}', [["\U0001f600"]]),
]


@pytest.mark.parametrize(("kind", "mode", "data", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_bytes_to_documents(kind: Kind, mode: SentenceMode, data: bytes, expected: list[list[str]]) -> None:
    assert parse(data, kind, mode) == expected


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("blank-line", b"ab\xff\n", r"file\.txt is not valid UTF-8: byte 1002 is 0xff"),
        ("file", "é".encode()[:1], r"byte 1000 is 0xc3"),
        ("json", b'{"text": "ok"}\n{"text": "\xe9"}', r"byte 1025 is 0xe9"),
        ("json", b'{"text": "ok"}\n{"text": \n', r"line at byte 1015, is not valid JSON"),
        (
            "json",
            b'{"body": "a", "id": 1}',
            r"line at byte 1000, has no field 'text' \(it holds an object with body, id\)",
        ),
        ("json", b"[1]", "has no field 'text' .it holds list.; text_field chooses"),
        ("json", b'{"text": 3}', "the field 'text' holds int, not text"),
        ("json", b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_bad_bytes_are_refused_with_file_and_byte(kind: Kind, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(data, kind, offset=1000)
    assert "\n" not in str(caught.value)


def test_offsets_count_the_byte_order_mark() -> None:
    with pytest.raises(InputError, match="byte 4 is 0xff"):
        parse(b"\xef\xbb\xbfa\xff")


def test_a_digest_depends_on_content_and_format_only() -> None:
    def part(data: bytes, kind: Kind = "file", shown: str = "a", offset: int = 0) -> Part:
        return Part(Format(kind, "line", "text"), shown, offset, data)

    one = digest([part(b"ab"), part(b"c")])
    assert digest([part(b"ab", shown="b", offset=7), part(b"c")]) == one
    for other in ([part(b"a"), part(b"bc")], [part(b"abc")], [part(b"ab", "blank-line"), part(b"c")], [part(b"ab")]):
        assert digest(other) != one


def test_documents_survive_as_a_unit() -> None:
    made = documents(20)
    unit = as_unit(made, "made")
    assert documents_of(unit) == made
    assert unit_bytes(unit) == len(as_text(made).encode()) - 1


@given(st.text(st.characters(), max_size=20))
def test_anything_can_be_encoded(text: str) -> None:
    assert len(encodable(text).decode()) <= len(text)
    if text.isascii():
        assert encodable(text) == text.encode()


def cut(file: InputFile, unit_size: int, **options: object) -> list[list[Part]]:
    """Return the units of a file."""
    source = FileSource(PrepareOptions(source="x", **options), [file])  # type: ignore[arg-type]
    return [unit for _, unit in source.units(unit_size, POOL)]


@pytest.mark.parametrize("name", ["made.txt", "made.md", "made.jsonl"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", " \n\t"])
@pytest.mark.parametrize("unit_size", [1, 7, 100, 1000, 10_000, 1 << 21])
def test_where_a_file_is_cut_changes_no_document(tmp_path: Path, name: str, line_end: str, unit_size: int) -> None:
    made = documents(30)
    if name.endswith("jsonl"):
        text = "\n".join(json.dumps({"text": "\n".join(document)}) for document in made)
        expected = made
    else:
        text = as_text(made)
        expected = [[line for document in made for line in document]] if name.endswith("md") else made
    (tmp_path / name).write_bytes(text.replace("\n", line_end).encode())
    file = list_files(str(tmp_path / name), frozenset())[0]
    units = cut(file, unit_size, sentences="line")
    assert [document for unit in units for document in documents_of(unit)] == expected
    assert all(unit_bytes(unit) >= unit_size for unit in units[:-1])
    data = b"".join(part.data for unit in units for part in unit)
    assert data == (tmp_path / name).read_bytes()
    assert units[0][0].offset == 0


def test_a_cut_elsewhere_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = documents(30)
    (tmp_path / "made.txt").write_text(as_text(made))
    monkeypatch.setitem(corpus._LAST_BOUNDARY, "blank-line", lambda data: data.rfind(b"\n") + 1)
    units = cut(list_files(str(tmp_path / "made.txt"), frozenset())[0], 100)
    assert [document for unit in units for document in documents_of(unit)] != made


def test_an_endless_document_is_cut_at_a_line_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_BYTES", 1000)
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "long.txt").write_text("\n".join(lines))
    source = FileSource(PrepareOptions(source="x"), list_files(str(tmp_path / "long.txt"), frozenset()))
    units = [unit for _, unit in source.units(300, POOL)]
    found = [document for unit in units for document in documents_of(unit)]
    assert [line for document in found for line in document] == lines
    assert len(found) == source.documents_cut + 1
    assert max(len(part.data) for unit in units for part in unit) < 1300


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_BYTES", 1000)
    (tmp_path / name).write_text("x" * 5000)
    with pytest.raises(InputError, match="the line at byte 0 is longer than 1000 bytes"):
        cut(list_files(str(tmp_path / name), frozenset())[0], 300)


def test_a_binary_file_is_refused_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"a\n\nb" * 300 + b"\0rest")
    for unit_size in (10, 100, 5000):
        with pytest.raises(InputError, match=r"image\.txt is binary, not text: byte 1200 is 0"):
            cut(list_files(str(tmp_path / "image.txt"), frozenset())[0], unit_size)
