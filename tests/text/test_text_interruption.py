"""Interrupted and repeated preparations: the same bytes, nothing left behind, nothing good overwritten."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_corpora import as_text, children_of, documents, folder_bytes, is_alive, run_preparation, start_preparation

from largebatch.errors import InputError
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare

SHARD_BYTES = 8000
MADE = documents(200, seed=3)
UNITS = len(as_text(MADE)) // (SHARD_BYTES // 32)  # as many lines of progress in each of the two phases, at most
SMALL: dict[str, Any] = {"vocabulary_size": 300, "held_out_fraction": 0.1, "workers": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The source, and the bytes of a corpus that was prepared in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    source = folder / "made.txt"
    source.write_text(as_text(MADE), encoding="utf-8")
    prepare(PrepareOptions(source=str(source), **SMALL), folder / "out", shard_bytes=SHARD_BYTES)
    return source, folder_bytes(folder / "out")


def killed(options: dict[str, Any], out: Path, lines: int, sent: signal.Signals = signal.SIGKILL) -> int:
    """Start a preparation, end it after so many lines of progress, see its workers end; return its status."""
    with start_preparation(options, out, shard_bytes=SHARD_BYTES) as process:
        assert process.stdout is not None
        for _ in range(lines):
            if not process.stdout.readline():
                break
        workers = children_of(process.pid) if process.poll() is None else []
        process.send_signal(sent)
        process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers)), "a worker outlives the preparation"
    return process.returncode


def finished(out: Path) -> set[str]:
    """Return the shards of an unfinished folder that have their record."""
    return {path.stem for path in (out.with_name(out.name + ".partial") / ".work").glob("shard-*.json")}


def complete(options: dict[str, Any], out: Path) -> dict[str, bytes]:
    """Prepare to the end and return the bytes."""
    prepare(PrepareOptions(**options), out, shard_bytes=SHARD_BYTES)
    assert not out.with_name(out.name + ".partial").exists()
    return folder_bytes(out)


def interrupted(source: Path, out: Path) -> dict[str, Any]:
    """Leave an unfinished folder with several finished shards; return the options."""
    options = {"source": str(source), **SMALL}
    assert killed(options, out, UNITS * 8 // 5) == -signal.SIGKILL
    assert not out.exists()
    assert len(finished(out)) > 3
    return options


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_taken_up_and_ends_in_the_same_bytes(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path, sent: signal.Signals
) -> None:
    source, expected = uninterrupted
    options = {"source": str(source), **SMALL}
    out = tmp_path / "out"
    had: set[str] = set()
    for number, lines in enumerate((3, UNITS * 5 // 4, UNITS * 8 // 5)):  # the first while the vocabulary is read
        assert killed({**options, "workers": 1 + number % 3}, out, lines, sent) != 0
        assert not out.exists()
        now = finished(out)
        assert had <= now
        had = now
    assert len(had) > 3
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").glob("train-0000[012].*")}
    assert len(kept) == 9
    assert complete(options, out) == expected
    assert {p: (out / p.name).stat().st_mtime_ns for p in kept} == kept  # taken over, not made again


@pytest.mark.slow
def test_many_kills_at_many_places(uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, expected = uninterrupted
    options = {"source": str(source), **SMALL}
    for turn in range(4):
        out = tmp_path / f"out{turn}"
        for kill in range(8):
            if out.exists():
                break
            killed(options, out, 1 + (turn * 101 + kill * 167) % (2 * UNITS))
        assert complete(options, out) == expected


def _flip(partial: Path) -> None:
    path = partial / "train-00001.tokens.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed bit": _flip,
    "a torn shard": lambda partial: os.truncate(partial / "train-00002.sentences.npy", 100),
    "a lost shard": lambda partial: (partial / "train-00000.documents.npy").unlink(),
    "a torn record": lambda partial: os.truncate(partial / ".work" / "shard-00001.json", 30),
    "a record without fields": lambda partial: (partial / ".work" / "shard-00001.json").write_text("{}"),
    "a torn key": lambda partial: os.truncate(partial / ".work" / "key", 10),
    "a shard of nowhere": lambda partial: (partial / "train-00999.tokens.npy").write_bytes(b"old"),
    "an old manifest": lambda partial: (partial / "manifest.json").write_text("{}"),
    "no working folder": lambda partial: shutil.rmtree(partial / ".work"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_unfinished_folder_is_not_trusted(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path, damage: str
) -> None:
    source, expected = uninterrupted
    options = interrupted(source, tmp_path / "out")
    DAMAGE[damage](tmp_path / "out.partial")
    assert complete(options, tmp_path / "out") == expected


def test_without_its_checksum_a_changed_bit_would_come_through(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    from largebatch.text.shards import file_record

    source, expected = uninterrupted
    options = interrupted(source, tmp_path / "out")
    partial = tmp_path / "out.partial"
    _flip(partial)
    path = partial / ".work" / "shard-00001.json"
    record = json.loads(path.read_text())
    record["files"]["train-00001.tokens.npy"] = file_record(partial / "train-00001.tokens.npy")
    path.write_text(json.dumps(record))
    assert complete(options, tmp_path / "out") != expected


@pytest.mark.parametrize("place", ["first", "middle", "last", "shorter"])
def test_an_input_that_changed_in_between_gives_what_the_new_input_gives(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path, place: str
) -> None:
    text = uninterrupted[0].read_text(encoding="utf-8")
    source = tmp_path / "made.txt"
    source.write_text(text, encoding="utf-8")
    options = {**interrupted(source, tmp_path / "out"), "vocabulary": None}
    at = {"first": 0, "middle": len(text) // 8, "last": len(text) - 40, "shorter": 0}[place]
    spot = text.index("a", at)
    changed = text[: SHARD_BYTES // 2] if place == "shorter" else text[:spot] + "o" + text[spot + 1 :]
    source.write_text(changed, encoding="utf-8")
    assert complete(options, tmp_path / "out") == complete(options, tmp_path / "fresh")


def test_a_given_vocabulary_and_a_changed_unit_start_anew(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    # with the vocabulary given, the key of the options stays the same: the units' checksums must tell
    text = uninterrupted[0].read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_bytes(uninterrupted[1]["vocab.txt"])
    source = tmp_path / "made.txt"
    source.write_text(text, encoding="utf-8")
    options = {"source": str(source), **SMALL, "vocabulary": str(tmp_path / "vocab.txt")}
    killed(options, tmp_path / "out", UNITS * 3 // 5)
    assert len(finished(tmp_path / "out")) > 3
    spot = text.index("a", 2 * SHARD_BYTES)
    source.write_text(text[:spot] + "o" + text[spot + 1 :], encoding="utf-8")
    assert complete(options, tmp_path / "out") == complete(options, tmp_path / "fresh")


def test_other_options_start_anew(uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    options = interrupted(uninterrupted[0], tmp_path / "out")
    options["seed"] = 5
    assert complete(options, tmp_path / "out") == complete(options, tmp_path / "fresh")


def test_a_run_killed_before_the_last_rename_is_completed(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    source, expected = uninterrupted
    options = {"source": str(source), **SMALL}
    complete(options, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.partial")
    (tmp_path / "out").mkdir()
    assert complete(options, tmp_path / "out") == expected


@pytest.mark.parametrize("vocabulary", ["trained", "given"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path, vocabulary: str
) -> None:
    source, expected = uninterrupted
    options = {"source": str(source), **SMALL}
    if vocabulary == "given":
        (tmp_path / "vocab.txt").write_bytes(expected["vocab.txt"])
        options["vocabulary"] = str(tmp_path / "vocab.txt")
    # a limit on the size of a file, to which the system answers as to a full disk; the training text is larger,
    # and so is one shard of everything
    status, output, errors = run_preparation(options, tmp_path / "out", fsize=len(expected["tokenizer.json"]) + 10_000)
    assert status == 2, output + errors
    *_, last = output.splitlines()
    name = "training-text" if vocabulary == "trained" else "out.partial"
    assert last.startswith(f"refused: cannot write {tmp_path / 'out.partial'}")
    assert name in last
    assert "the disk is full; what is finished is kept" in last
    assert errors == ""
    assert not (tmp_path / "out").exists()
    prepare(PrepareOptions(**options), tmp_path / "out")
    prepare(PrepareOptions(**options), tmp_path / "fresh")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "fresh")


def test_a_folder_that_another_process_works_in_is_refused(
    uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    source, expected = uninterrupted
    options = {"source": str(source), **SMALL}
    with start_preparation(options, tmp_path / "out", shard_bytes=SHARD_BYTES) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match=r"another process is preparing .*out\.partial"):
            prepare(PrepareOptions(**options), tmp_path / "out")
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert folder_bytes(tmp_path / "out") == expected
