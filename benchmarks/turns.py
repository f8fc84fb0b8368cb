"""Rounds in which this engine and another take turns: our side's rate, and what the rounds come to."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from largebatch.train.distributed import World
from largebatch.train.ledger import read_ledger
from largebatch.train.loop import Training
from largebatch.train.run import Run
from largebatch.train.run_record import Origin


def engine_lines(run: Run[Any, Any]) -> list[dict[str, Any]]:
    """Train with this engine and return what its ledger says of each step."""
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin(recipe="benchmark", recipe_name="benchmark")
        Training(run, Path(folder) / "run", World(0, 1, torch.device("cpu")), [], origin).train(resume=False)
        return [line for line in read_ledger(Path(folder) / "run" / "metrics.jsonl") if line["kind"] == "train"]


def rate_of(run: Run[Any, Any], lines: list[dict[str, Any]]) -> float:
    """Return the samples per second of a run by its ledger, the first step left out."""
    seconds = sum(line["seconds"] for line in lines[1:])
    return run.stages[0].global_batch_samples * (len(lines) - 1) / seconds


def engine_rate(run: Run[Any, Any]) -> float:
    """Return the samples per second of this engine."""
    return rate_of(run, engine_lines(run))


def summed_up(rounds: list[dict[str, float]], other: str) -> dict[str, Any]:
    """Return the medians of both sides and of their paired ratios, and the rounds."""
    return {
        "ours": statistics.median(turn["ours"] for turn in rounds),
        other: statistics.median(turn[other] for turn in rounds),
        "ratio": statistics.median(turn["ours"] / turn[other] for turn in rounds),
        "rounds": rounds,
    }
