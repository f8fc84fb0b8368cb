"""Files of any storage and compression: listing, reading, damage."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from largebatch.errors import InputError
from largebatch.text.files import FileContent, list_files

SUFFIXES = frozenset({".txt", ".md", ".jsonl"})
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def read(path: Path, block: int = 1 << 20) -> bytes:
    """Read a whole file through its decompression."""
    with FileContent(list_files(str(path), SUFFIXES)[0]) as content:
        blocks = []
        while data := content.read(block):
            assert len(data) == block or not content.read(1)  # short only at the end
            blocks.append(data)
        return b"".join(blocks)


TEXT = "".join(f"line {number} of the text, é\n" for number in range(40_000)).encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("block", [1 << 20, 65_537])
def test_every_compression_is_read(tmp_path: Path, compression: str, block: int) -> None:
    path = tmp_path / f"text.txt{compression}"
    path.write_bytes(COMPRESS[compression](TEXT))
    assert read(path, block) == TEXT


@pytest.mark.parametrize("compression", COMPRESS)
def test_files_put_end_to_end_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"text.txt{compression}"
    path.write_bytes(COMPRESS[compression](TEXT) + COMPRESS[compression](b"") + COMPRESS[compression](b"end\n"))
    assert read(path) == TEXT + b"end\n"


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name])
def test_a_file_that_stops_early_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"text.txt{compression}"
    data = COMPRESS[compression](TEXT)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"text\.txt\{compression} cannot be read: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_librarys_own_reader_would_take_a_torn_file_for_a_whole(tmp_path: Path) -> None:
    data = zstandard.compress(TEXT)
    (tmp_path / "torn.zst").write_bytes(data[: len(data) // 2])
    with open(tmp_path / "torn.zst", "rb") as file:
        torn = zstandard.ZstdDecompressor().stream_reader(file).read()
    assert len(torn) < len(TEXT)  # and no error: the reason for a reader of ours


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name])
def test_a_file_that_is_not_compressed_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"text.txt{compression}"
    path.write_bytes(b"plain text, nothing else\n" * 10)
    with pytest.raises(InputError, match="cannot be read: "):
        read(path)


def test_bytes_are_counted_and_hashed_as_stored(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT))
    with FileContent(list_files(str(path), SUFFIXES)[0]) as content:
        content.read(10)
        assert 0 < content.metered.bytes_read <= path.stat().st_size
        assert content.stored_digest() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert content.metered.bytes_read == path.stat().st_size


def names(source: Path | str) -> list[str]:
    """Return the names of the files of a source."""
    return [file.name for file in list_files(str(source), SUFFIXES)]


def make(folder: Path, *files: str) -> Path:
    """Make small files below a folder."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}\n")
    return folder


def test_a_folder_is_listed_by_name_through_its_subfolders(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/z.md", "a/B.TXT.GZ", "c.jsonl.zst", "ignored.csv", ".hidden.txt", ".git/x.txt", "a.txt")
    assert names(tmp_path) == ["a.txt", "a/B.TXT.GZ", "a/z.md", "b.txt", "c.jsonl.zst"]
    assert names(f"{tmp_path}/") == names(tmp_path)
    suffixes = [file.suffix for file in list_files(str(tmp_path), SUFFIXES)]
    assert suffixes == [".txt", ".txt", ".md", ".txt", ".jsonl"]


def test_links_are_followed_but_no_folder_is_read_twice(tmp_path: Path) -> None:
    make(tmp_path, "data/a.txt", "elsewhere/b.txt")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked again")
    os.symlink(tmp_path / "nothing.txt", tmp_path / "data" / "dangling.txt")
    assert names(tmp_path / "data") == ["a.txt", "linked/b.txt"]


def test_a_pattern_takes_any_suffix(tmp_path: Path) -> None:
    make(tmp_path, "one.raw", "two.raw", "three.txt")
    assert names(f"{tmp_path}/*.raw") == ["one.raw", "two.raw"]
    make(tmp_path, "odd*name.txt")
    assert names(f"{tmp_path}/odd*name.txt") == ["odd*name.txt"]


def test_any_file_system_that_fsspec_knows() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        for name in ("b.txt", "a/c.txt.gz", "a/skip.csv"):
            memory.makedirs("/corpus/a", exist_ok=True)
            memory.pipe(f"/corpus/{name}", COMPRESS[".gz"](b"in memory\n") if name.endswith("gz") else b"plain\n")
        files = list_files("memory://corpus", SUFFIXES)
        assert [file.name for file in files] == ["a/c.txt.gz", "b.txt"]
        assert files[0].shown == "memory:///corpus/a/c.txt.gz"
        assert not files[0].is_local
        with FileContent(files[0]) as content:
            assert content.read(100) == b"in memory\n"
        assert [file.name for file in list_files("memory://corpus/b.txt", SUFFIXES)] == ["b.txt"]
    finally:
        memory.rm("/corpus", recursive=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}/nothing", "there is no file or folder .*nothing; allowed are a path, a URL"),
        ("{}/*.txt", "there is no file or folder"),
        ("{}", r"holds no \.jsonl, \.md, \.txt file, plain or compressed"),
        ("unheard://bucket/x", "cannot be opened: Protocol not known: unheard"),
        (" ", "the path ' ' names nothing; allowed are a path, a URL"),
        ("/dev/null", "is neither a file nor a folder"),
    ],
)
def test_a_source_that_is_not_there(tmp_path: Path, source: str, message: str) -> None:
    make(tmp_path, "table.csv")
    with pytest.raises(InputError, match=message) as caught:
        list_files(source.format(tmp_path), SUFFIXES)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    make(tmp_path, "secret.txt")
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(InputError, match="cannot be opened: Permission denied"):
        read(tmp_path / "secret.txt")
