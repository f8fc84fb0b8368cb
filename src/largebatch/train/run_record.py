"""run.json: what is trained and by which command, versions and machine; it makes a folder the folder of one run."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from largebatch.aside import write_aside
from largebatch.errors import InputError
from largebatch.train.distributed import SIGN, World
from largebatch.train.run import Run, changed_fields

FORMAT_VERSION = 1
PARTIAL = "run.json.partial"
LOCK = "run.lock"
"""Held by the process that writes to the folder; one that is killed leaves the file."""
_DATA_PLACES = {"task.corpus", "task.data", "task.train", "task.dev"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run came from: the recipe and what was overridden."""

    recipe: str
    """Dotted name, module:function."""
    recipe_name: str
    """What the user typed."""
    overrides: tuple[str, ...] = ()
    """The words of the command line that changed the recipe."""
    start: str | None = None
    """The checkpoint of another run with whose weights and optimizer state it begins."""


def claim_folder(folder: Path, run: Run[Any, Any], resume: bool) -> None:
    """Check that the run may write to the folder, before anything is built.

    Raises:
        InputError: if the folder holds something else, another run, or nothing to resume.
    """
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder that is new or empty is needed for --out")
    if not path.exists():
        if resume:
            raise InputError(f"{folder} holds no run to resume, leave out --resume to begin one there")
        if folder.exists() and any(
            path.name not in (PARTIAL, LOCK) and SIGN not in path.name for path in folder.iterdir()
        ):
            raise InputError(f"{folder} holds other files, --out takes a folder that is new or empty")
        return
    recorded = read_run_record(folder)
    if not resume:
        raise InputError(
            f"{folder} already holds a run of {recorded.get('recipe_name')}: "
            "add --resume to go on with it, or name another folder with --out"
        )
    if recorded.get("data") != fingerprint(run):
        raise InputError(
            f"the run in {folder} cannot go on with other data: what it read has been prepared anew with another result"
        )
    changed = changed_options(recorded, run)
    if changed:
        raise InputError(
            f"the run in {folder} cannot go on with another {changed[0]}: only ranks, microbatch, workers, device, "
            "sharding, shard_ranks, recompute, gradient_noise, gradient_noise_every_steps, corrupt and where the data "
            "lies may change at a resume"
        )


def changed_options(recorded: Mapping[str, Any], run: Run[Any, Any]) -> list[str]:
    """Name the fields in which a run differs from a record and may not, with both values.

    Data that is identified by what it holds may lie elsewhere than it did.
    """
    changed = changed_fields(recorded["run"], run.as_dict())
    was, now = recorded.get("optimizer_name"), getattr(run.optimizer, "name", None)
    if None not in (was, now) and was != now:  # above its options: two may have the same
        changed.insert(0, f"optimizer (recorded {was!r}, given {now!r})")
    if recorded.get("data") is None:
        return changed
    return [field for field in changed if field.split()[0] not in _DATA_PLACES]


def fingerprint(run: Run[Any, Any]) -> str | None:
    """Return what identifies the data of a run beyond its name, None where the task cannot say."""
    told = getattr(run.task, "fingerprint", None)
    return None if told is None else told()


def read_run_record(folder: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        InputError: if it is damaged or of another format version.
    """
    return read_record(folder / "run.json", "run", FORMAT_VERSION)


def read_record(path: Path, kind: str, format_version: int) -> dict[str, Any]:
    """Return a JSON object that says its format version.

    Args:
        path: of the file.
        kind: what it is a record of, for the message.
        format_version: the one that is known.

    Raises:
        InputError: if it is damaged or of another format version.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or missing") from error
    if not isinstance(record, dict) or record.get("format_version") != format_version:
        raise InputError(f"{path} is no record of a {kind} in format version {format_version}")
    return record


def write_run_record(
    folder: Path,
    run: Run[Any, Any],
    origin: Origin,
    session: Mapping[str, Any],
    world: World,
    *,
    optimizer_name: str,
    parameters: int,
) -> None:
    """Write run.json at the beginning of a run, or add a session to it at a resume."""
    path = folder / "run.json"
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": world.ranks,
        "device": str(world.device.type),
        "threads": torch.get_num_threads(),
        **session,
    }
    if path.exists():
        record = read_run_record(folder)
        record["sessions"].append(session)
    else:
        record = {
            "format_version": FORMAT_VERSION,
            "recipe": origin.recipe,
            "recipe_name": origin.recipe_name,
            "overrides": list(origin.overrides),
            **({} if origin.start is None else {"start": origin.start}),
            "run": run.as_dict(),
            "data": fingerprint(run),
            "optimizer_name": optimizer_name,
            "parameters": parameters,
            "commit": commit(),
            "versions": versions(),
            "cpu": cpu_model(),
            "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
            "sessions": [session],
        }
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_aside(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {"python": platform.python_version()}
    for name in ("largebatch", "torch", "numpy", "transformers", "tokenizers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu_model() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the working copy that this package is imported from, or None for an installed package."""
    here = Path(__file__).resolve().parent
    commit = _git(here, "describe", "--always", "--abbrev=12", "--exclude=*")
    if commit is None or "site-packages" in here.parts or str(here).startswith(sys.prefix):
        return None
    clean = _git(here, "status", "--porcelain", "--untracked-files=no") == ""
    return commit if clean else f"{commit}-dirty"


def _git(folder: Path, *words: str) -> str | None:
    """Return what git says, or None; it may not lock the index, as `describe --dirty` does: killed, it leaves that."""
    try:
        told = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None
