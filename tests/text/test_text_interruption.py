"""Interrupted and repeated preparations: the same bytes, nothing left behind, nothing good overwritten."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from text_corpora import as_text, asked, documents, folder_bytes, run_preparation, start_preparation

from alive import is_alive
from largebatch.errors import InputError
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.shards import file_record

SHARD_BYTES = 8000
MADE = documents(200, seed=3)
SMALL: dict[str, Any] = {"vocabulary_size": 300, "held_out_fraction": 0.1, "workers": 2}


@dataclass(frozen=True)
class Whole:
    """A source, and what a preparation in one go makes of it."""

    source: Path
    content: dict[str, bytes]
    units: int
    """Calls of progress in each of the two phases."""

    @property
    def options(self) -> dict[str, Any]:
        return {"source": str(self.source), **SMALL}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A corpus that was prepared in one go."""
    folder = tmp_path_factory.mktemp("whole")
    source = folder / "made.txt"
    source.write_text(as_text(MADE), encoding="utf-8")
    phases: list[str] = []
    options = PrepareOptions(source=str(source), **SMALL)
    prepare(options, folder / "out", shard_bytes=SHARD_BYTES, progress=lambda told: phases.append(told.phase))
    assert phases.count("vocabulary") == phases.count("encoding") > 100
    return Whole(source, folder_bytes(folder / "out"), phases.count("encoding"))


def killed(options: dict[str, Any], out: Path, calls: int, sent: signal.Signals = signal.SIGKILL) -> int:
    """Start a preparation that ends itself after so many units; see its workers end; return its status."""
    status, output, _ = run_preparation(options, out, shard_bytes=SHARD_BYTES, calls=calls, signal=sent)
    workers = [int(pid) for line in output.splitlines() if line.startswith("workers") for pid in line.split()[1:]]
    assert workers
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers)), "a worker outlives the preparation"
    return status


def finished(out: Path) -> set[str]:
    """Return the shards of an unfinished folder that have their record."""
    return {path.stem for path in (out.with_name(out.name + ".partial") / ".work").glob("shard-*.json")}


def complete(options: dict[str, Any], out: Path) -> dict[str, bytes]:
    """Prepare to the end and return the bytes."""
    prepare(PrepareOptions(**options), out, shard_bytes=SHARD_BYTES)
    assert not out.with_name(out.name + ".partial").exists()
    return folder_bytes(out)


def interrupted(options: dict[str, Any], out: Path, units: int) -> None:
    """Leave an unfinished folder with several finished shards."""
    assert killed(options, out, units) == -signal.SIGKILL
    assert not out.exists()
    assert 3 < len(finished(out)) < 8


@pytest.fixture(scope="module")
def unfinished(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is left of a preparation killed in the middle."""
    out = tmp_path_factory.mktemp("unfinished") / "out"
    interrupted(whole.options, out, whole.units * 8 // 5)
    return out.with_name("out.partial")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_taken_up_and_ends_in_the_same_bytes(
    whole: Whole, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    had: set[str] = set()
    for workers, calls in ((1, 3), (2, whole.units * 5 // 4), (3, whole.units * 8 // 5)):  # first in the vocabulary
        assert killed({**whole.options, "workers": workers}, out, calls, sent) != 0
        assert not out.exists()
        assert had <= finished(out)
        had = finished(out)
    assert len(had) > 3
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("train-0000[012].*")}
    assert len(kept) == 9
    assert complete(whole.options, out) == whole.content
    assert {path: (out / path.name).stat().st_mtime_ns for path in kept} == kept  # taken over, not made again


@pytest.mark.slow
def test_many_kills_at_any_moment(whole: Whole, tmp_path: Path) -> None:
    for turn in range(5):
        out = tmp_path / f"out{turn}"
        for kill in range(8):
            with start_preparation(whole.options, out, shard_bytes=SHARD_BYTES) as process:
                time.sleep(0.3 + 0.17 * kill + 0.05 * turn)
                process.kill()
        assert complete(whole.options, out) == whole.content


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
    whole: Whole, unfinished: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(unfinished, tmp_path / "out.partial")
    DAMAGE[damage](tmp_path / "out.partial")
    assert complete(whole.options, tmp_path / "out") == whole.content


def test_without_its_checksum_a_changed_bit_would_come_through(whole: Whole, unfinished: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(unfinished, tmp_path / "out.partial")
    _flip(partial)
    path = partial / ".work" / "shard-00001.json"
    record = json.loads(path.read_text())
    record["files"]["train-00001.tokens.npy"] = file_record(partial / "train-00001.tokens.npy")
    path.write_text(json.dumps(record))
    assert complete(whole.options, tmp_path / "out") != whole.content


@pytest.mark.parametrize("place", ["first", "middle", "last", "shorter"])
def test_an_input_that_changed_in_between_gives_what_the_new_input_gives(
    whole: Whole, tmp_path: Path, place: str
) -> None:
    # with a given vocabulary the key of the options stays the same: the checksums of the units must tell
    (tmp_path / "vocab.txt").write_bytes(whole.content["vocab.txt"])
    source = tmp_path / "made.txt"
    text = whole.source.read_text(encoding="utf-8")
    source.write_text(text, encoding="utf-8")
    options = asked(SMALL, source=str(source), vocabulary=str(tmp_path / "vocab.txt"))
    interrupted(options, tmp_path / "out", whole.units * 3 // 5)
    spot = text.index("a", {"first": 0, "middle": 3 * SHARD_BYTES, "last": len(text) - 400, "shorter": 0}[place])
    changed = text[: SHARD_BYTES // 2] if place == "shorter" else text[:spot] + "o" + text[spot + 1 :]
    source.write_text(changed, encoding="utf-8")
    assert complete(options, tmp_path / "out") == complete(options, tmp_path / "fresh")


def test_other_options_start_anew(whole: Whole, unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "out.partial")
    options = {**whole.options, "seed": 5}
    assert complete(options, tmp_path / "out") == complete(options, tmp_path / "fresh") != whole.content


def test_a_run_killed_before_the_last_rename_is_completed(whole: Whole, tmp_path: Path) -> None:
    complete(whole.options, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.partial")
    (tmp_path / "out").mkdir()
    assert complete(whole.options, tmp_path / "out") == whole.content


@pytest.mark.parametrize("vocabulary", ["trained", "given"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    whole: Whole, tmp_path: Path, vocabulary: str
) -> None:
    options = whole.options
    if vocabulary == "given":
        (tmp_path / "vocab.txt").write_bytes(whole.content["vocab.txt"])
        options = asked(options, vocabulary=str(tmp_path / "vocab.txt"))
    # a limit on the size of a file, to which the system answers as to a full disk; the training text is larger,
    # and so is one shard of everything
    status, output, errors = run_preparation(
        options, tmp_path / "out", fsize=len(whole.content["tokenizer.json"]) + 10_000
    )
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


def test_a_folder_that_another_process_works_in_is_refused(whole: Whole, tmp_path: Path) -> None:
    with start_preparation(whole.options, tmp_path / "out", calls=1, signal=signal.SIGSTOP) as process:
        while "T" not in Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]:
            assert process.poll() is None
            time.sleep(0.02)
        with pytest.raises(InputError, match=r"another process is preparing .*out\.partial"):
            prepare(PrepareOptions(**whole.options), tmp_path / "out")
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert (tmp_path / "out" / "manifest.json").is_file()
