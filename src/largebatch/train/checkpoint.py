"""Checkpoints that can be trusted: written aside, synced, checked, renamed; a damaged one is named and passed over.

    checkpoints/step-000000500/
      checkpoint.json     format version, progress, length of the ledger, size and SHA-256 of every other file
      .metadata, *.distcp the tensors, in the format of torch.distributed.checkpoint

The tensors are named: model.NAME, and optimizer.NAME.KEY for the state KEY of the parameter NAME. Learning rates and
other options are not stored, since the run states them.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from largebatch.errors import InputError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come: everything besides the tensors that the next step depends on."""

    step: int = 0
    """Steps behind us, over all stages, skipped ones among them."""
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    prepared_stage: int = -1
    """The last stage that was entered: its moments are reset or kept, its beginning is in the ledger."""


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return references to all tensors of the model and of the optimizer's state, by name."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimizer state {key} of {name} is no tensor"
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return run_folder / "checkpoints" / f"step-{step:09d}"


def aside(folder: Path) -> Path:
    """Return where a checkpoint is written until it is complete."""
    return folder.with_name(folder.name + ".partial")


def write(tensors: dict[str, Any], folder: Path, group: dist.ProcessGroup | None, *, no_dist: bool) -> None:
    """Write the files of tensors, this rank's own or, without others, all.

    Raises:
        OSError, CheckpointException: if a rank cannot.
    """
    with _quiet_single_process():
        writer = dcp.FileSystemWriter(folder, sync_files=True)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=no_dist)


def seal(folder: Path, progress: Progress, ledger_bytes: int) -> None:
    """Write the record of all files, read them all once more, and give the checkpoint its name.

    Raises:
        OSError: if a file cannot be written.
        InputError: if what lies there is not what was written.
    """
    partial = aside(folder)
    record = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "ledger_bytes": ledger_bytes,
        "files": {path.name: _fingerprint(path) for path in sorted(partial.iterdir())},
    }
    with (partial / "checkpoint.json").open("wb") as file:
        file.write(_sealed(record))
        file.flush()
        os.fsync(file.fileno())
    _check(partial)
    _sync_folder(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _sync_folder(folder.parent)


def step_of(folder: Path) -> int:
    """Return after how many steps a checkpoint was written, by its name."""
    return int(folder.name.removeprefix("step-"))


def prune(run_folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ``keep``."""
    for old in checkpoints(run_folder)[keep:]:
        shutil.rmtree(old)


def verify(folder: Path) -> None:
    """Read all of a checkpoint once.

    Raises:
        InputError: it is damaged, or was written after another step than its name says.
    """
    step = _check(folder)["progress"]["step"]
    if step != step_of(folder):
        raise InputError(f"{folder} was written after step {step}, its name says another")


def load_newest(
    run_folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, warn: Any
) -> tuple[Progress, int] | None:
    """Load the newest sound checkpoint in place; the optimizer's state must have been created by ``init_state``.

    Args:
        warn: called with one sentence for each damaged checkpoint that is passed over.

    Returns:
        The progress and the length of the ledger at that time, or None where no checkpoint was ever written.

    Raises:
        InputError: if there are checkpoints and none is sound, or it belongs to another model.
    """
    folders = checkpoints(run_folder)
    for folder in folders:
        try:
            record = _check(folder)
        except InputError as damage:
            warn(str(damage))
            continue
        _load(folder, model, optimizer)
        return Progress(**record["progress"]), record["ledger_bytes"]
    if folders:
        raise InputError(f"every checkpoint in {run_folder / 'checkpoints'} is damaged, nothing can be resumed")
    return None


def load_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what one checkpoint holds in place, as `load_newest` does.

    Raises:
        InputError: it is damaged, or belongs to another model.
    """
    _check(folder)
    _load(folder, model, optimizer)


def _load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = training_tensors(model, optimizer)
    with _quiet_single_process():
        reader = dcp.FileSystemReader(folder)
        held = reader.read_metadata().state_dict_metadata
        differing = sorted(set(held) ^ set(tensors))
        differing += [name for name in tensors if name in held and _shape(held[name]) != tensors[name].shape]
        if differing:
            raise InputError(f"{folder} is a checkpoint of another model: {differing[0]} is not the same in both")
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def _shape(metadata: Any) -> torch.Size | None:
    return getattr(metadata, "size", None)


def checkpoints(run_folder: Path) -> list[Path]:
    """Return the folders of a run's finished checkpoints, newest first."""
    found = [path for path in (run_folder / "checkpoints").glob("step-*") if path.suffix != ".partial"]
    return sorted(found, reverse=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sealed(record: dict[str, Any]) -> bytes:
    """Return the record as JSON with its own SHA-256, so that a changed byte anywhere in it is noticed."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({**record, "sha256": digest}, indent=1).encode() + b"\n"


def _check(folder: Path) -> dict[str, Any]:
    """Return the record of a sound checkpoint, or raise an InputError that names the damaged file."""
    path = folder / "checkpoint.json"
    try:
        content = path.read_bytes()
        record = json.loads(content)
        del record["sha256"]
        version, files = record["format_version"], record["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or missing") from error
    if content != _sealed(record):
        raise InputError(f"{path} is damaged")
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    for name, expected in files.items():
        if not (folder / name).is_file() or _fingerprint(folder / name) != expected:
            raise InputError(f"{folder / name} is damaged or missing")
    return record


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """Return the operating system's words, which torch.distributed.checkpoint wraps in a traceback."""
    inner = list(_causes(error))
    for cause in inner:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(inner[-1]) or type(inner[-1]).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, dcp.api.CheckpointException):
        for failure in error.failures.values():
            yield failure[0]


@contextmanager
def _quiet_single_process() -> Iterator[None]:
    """Silence the remark that only one process writes, which is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed.checkpoint")
        yield
