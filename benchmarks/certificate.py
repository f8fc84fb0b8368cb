"""The birth certificate of a measurement: machine, versions, commit, date and command beside its numbers."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from largebatch.train.run_record import cpu_model, versions

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, numbers: dict[str, Any]) -> Path:
    """Write ``results/NAME.json`` and return its path."""
    result = {
        **numbers,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        # Where the data lay on the machine that measured says nothing to anyone else.
        "command": " ".join(["python", *(Path(word).name if word.startswith("/") else word for word in sys.argv)]),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def _commit() -> str:
    """Return the commit that was measured, marked where its files were changed; results beside it are none of them."""
    commit = _git("rev-parse", "--short", "HEAD")
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", ":/", f":(exclude){RESULTS}") else commit


def _git(*words: str) -> str:
    told = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return told.stdout.strip()


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def in_a_line(error: Exception) -> str:
    """Return what another package raised, for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
