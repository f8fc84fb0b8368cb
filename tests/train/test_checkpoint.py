"""Checkpoints: damage is named and passed over, a full disk costs nothing that was good."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.errors import InputError
from largebatch.train import checkpoint
from largebatch.train.checkpoint import Progress
from largebatch.train.checkpoint_writer import CheckpointWriter
from train.test_loop import ALONE, lines, training
from train.toy import toy


def _saved(folder: Path, steps: tuple[int, ...] = (1, 2)) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    trained = training(toy(), folder)
    trained.optimizer.init_state()
    writer = CheckpointWriter(folder, 9, ALONE)
    for step in steps:
        writer.begin(trained.model, trained.optimizer, Progress(step=step), 7 * step)
    writer.finish()
    return trained.model, trained.optimizer


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    trained = training(toy(), tmp_path / "run")
    trained.train(resume=False)
    before = {
        name: tensor.clone() for name, tensor in checkpoint.training_tensors(trained.model, trained.optimizer).items()
    }
    other = training(replace(toy(), seed=0), tmp_path / "run")
    other.optimizer.init_state()
    found = checkpoint.load_newest(tmp_path / "run", other.model, other.optimizer, pytest.fail)
    after = checkpoint.training_tensors(other.model, other.optimizer)
    assert found is not None
    assert found[0] == trained.progress
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = training(toy(), tmp_path)
    trained.optimizer.init_state()
    changed = threading.Event()
    write = checkpoint.write

    def write_late(tensors: dict[str, Any], folder: Path, group: Any, *, no_dist: bool) -> None:
        assert changed.wait(60)
        write(tensors, folder, group, no_dist=no_dist)

    monkeypatch.setattr(checkpoint, "write", write_late)
    held = checkpoint.training_tensors(trained.model, trained.optimizer)
    before = {name: tensor.clone() for name, tensor in held.items()}
    writer = CheckpointWriter(tmp_path, 2, ALONE)
    writer.begin(trained.model, trained.optimizer, Progress(step=3), 5)
    for tensor in held.values():
        tensor.data.add_(1)
    changed.set()
    writer.finish()
    assert checkpoint.load_newest(tmp_path, trained.model, trained.optimizer, pytest.fail) == (Progress(step=3), 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in held.items())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    went_on = threading.Event()
    write = checkpoint.write

    def write_late(tensors: dict[str, Any], folder: Path, group: Any, *, no_dist: bool) -> None:
        assert went_on.wait(60), "training waited for the checkpoint"
        write(tensors, folder, group, no_dist=no_dist)

    monkeypatch.setattr(checkpoint, "write", write_late)
    trained = training(toy(), tmp_path / "run")
    record = trained._record

    def notice(kind: str, **fields: Any) -> None:
        record(kind, **fields)
        if kind == "train" and trained.progress.step == toy().checkpoint_every_steps + 1:
            went_on.set()

    monkeypatch.setattr(trained, "_record", notice)
    trained.train(resume=False)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["checkpoint.json", ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, harm: str, name: str) -> None:
    model, optimizer = _saved(tmp_path)
    victim = checkpoint.checkpoint_folder(tmp_path, 2) / name
    content = bytearray(victim.read_bytes())
    if harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    said: list[str] = []
    found = checkpoint.load_newest(tmp_path, model, optimizer, said.append)
    assert found == (Progress(step=1), 7)
    assert len(said) == 1
    assert str(victim) in said[0] or str(victim.parent) in said[0]


def test_if_all_are_damaged_nothing_is_resumed(tmp_path: Path) -> None:
    model, optimizer = _saved(tmp_path)
    for path in _files(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint"):
        checkpoint.load_newest(tmp_path, model, optimizer, lambda said: None)


def test_a_run_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    model, optimizer = _saved(tmp_path, ())
    assert checkpoint.load_newest(tmp_path, model, optimizer, pytest.fail) is None


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _, optimizer = _saved(tmp_path)
    with pytest.raises(InputError, match="of another model"):
        checkpoint.load_newest(tmp_path, torch.nn.Linear(2, 2), optimizer, pytest.fail)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    training(toy(), tmp_path / "run").train(resume=False)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000000018", "step-000000020"]


def test_what_a_crash_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    model, optimizer = _saved(tmp_path)
    half = tmp_path / "checkpoints" / "step-000000009.partial"
    half.mkdir()
    (half / "checkpoint.json").write_text("{")
    found = checkpoint.load_newest(tmp_path, model, optimizer, pytest.fail)
    assert found is not None
    assert found[0].step == 2


_FULL_DISK = """
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from train.test_loop import training
from train.toy import toy
from largebatch.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    run = replace(toy(), checkpoint_every_steps={interval}, gradient_noise="off")
    training(run, Path(sys.argv[1])).train(resume={resume})
except InputError as error:
    print(error)
"""


def _told_on_a_full_disk(folder: Path, limit: int, interval: int, *, resume: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _FULL_DISK.format(limit=limit, interval=interval, resume=resume), str(folder)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1", "PATH": "", "TMPDIR": str(folder.parent)},
        cwd=Path(__file__).parents[2],
        check=False,
    )


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained = training(replace(toy(), gradient_noise="off"), folder)  # a ledger that is shorter than the limit
    trained.train(resume=False)
    for path in (folder / "checkpoints").iterdir():  # go back to step 18
        if path.name.endswith("20"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    before = {path: path.read_bytes() for path in _files(folder / "checkpoints")}
    assert any(len(content) > 9000 for content in before.values()), "the limit must strike in a checkpoint"
    assert len(lines(folder)) == 20
    told = _told_on_a_full_disk(folder, 9000, toy().checkpoint_every_steps, resume=True)
    assert "could not be written: File too large" in told.stdout, told.stderr
    assert {path: path.read_bytes() for path in _files(folder / "checkpoints")} == before


def test_a_full_disk_under_the_ledger_is_one_sentence_too(tmp_path: Path) -> None:
    told = _told_on_a_full_disk(tmp_path / "run", 3000, 100, resume=False)
    assert told.stdout == f"{tmp_path}/run/metrics.jsonl cannot be written: File too large\n", told.stderr
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == 3000
