"""The formulas of scaling_model.py against two processes on this machine.

    python benchmarks/scaling_measured.py

Measured: all-reduces of several sizes by two processes (gloo), and steps of BERT, 2 x 128 at length 64, by one process
at several batches, while another does the same by itself: what the two take from each other, caches and memory, is then
in both. From the first come bandwidth and latency of the link, from the second the fixed time of a step and that of a
sample; the step of two processes that share a batch follows. Then it is measured, and what it takes more is how long
two wait for each other, which the formulas cannot know. A process has one thread. In turns; medians of all rounds.
Writes benchmarks/results/scaling_measured.json, prints the table.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro

from certificate import write_result
from largebatch.recipes.bert import bert_demo
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.distributed import join_world
from largebatch.train.ledger import read_ledger
from largebatch.train.loop import Training
from largebatch.train.run import Run
from largebatch.train.run_record import Origin
from ranks import run_beside, run_ranks, short_run
from scaling_model import Link, nearest_factors, ring_seconds, step_seconds

BATCHES = (16, 32, 64, 128, 256)
SIZES = tuple(4 * 2**n for n in range(10, 23, 2))
"""Bytes of all-reduces."""
STEPS, LEFT_OUT = 12, 3
REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure."""

    rounds: int = 3
    """Turns of each."""


def make_run(corpus: Path, batch: int) -> Run[Any, Any]:
    """Return a run of a few steps, of which a process takes its share in one pass."""
    run = short_run(bert_demo(), corpus, batch=batch, steps=STEPS, length=64, held_out_pairs=8)
    return replace(run, microbatch=batch)


def train(run: Run[Any, Any], out: Path) -> None:
    """Be one process of a run."""
    with join_world("cpu") as world:
        Training(run, out, world, [], Origin(recipe="benchmark", recipe_name="benchmark")).train(resume=False)


def train_as(_rank: int, run: Run[Any, Any], out: Path) -> None:
    """Be one of several that share it."""
    train(run, out)


def step_of(run: Run[Any, Any], *, shared: bool) -> float:
    """Return the median seconds of a step of one process beside another of its own, or of two that share the batch."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "0"
        if shared:
            run_ranks(train_as, 2, run, out)
        else:
            run_beside([(train, (run, Path(folder) / str(n)), None) for n in range(2)])
        lines = [line for line in read_ledger(out / "metrics.jsonl") if line["kind"] == "train"]
    return statistics.median(line["seconds"] for line in lines[LEFT_OUT:])


def exchange(rank: int, told: Path) -> None:
    """Time all-reduces as one of two processes; the first one writes the medians down."""
    with join_world("cpu"):
        medians = []
        for size in SIZES:
            tensor = torch.ones(size // 4)
            seconds = []
            for _ in range(REPEATS):
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(tensor)
                seconds.append(time.perf_counter() - began)
            medians.append(statistics.median(seconds[LEFT_OUT:]))
    if rank == 0:
        told.write_text(json.dumps(medians), encoding="utf-8")


def exchanges() -> list[float]:
    """Return the median seconds of an all-reduce of each size by two processes."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "seconds.json"
        run_ranks(exchange, 2, told)
        return json.loads(told.read_text(encoding="utf-8"))


def line_through(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return (intercept, slope) of a line."""
    intercept, slope = nearest_factors([[1.0, a] for a in x], y)
    return intercept, slope


def link_from(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """Return what two processes exchange by; a ring of two takes ``size / bandwidth + 2 latency``."""
    twice, slope = line_through(sizes, seconds)
    return Link(bytes_per_second=1 / slope, latency_seconds=twice / 2)


def main(options: Options) -> None:
    """Measure, predict, compare."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        prepare(PrepareOptions(vocabulary_size=8192), corpus)
        model = make_run(corpus, 1).task.build_model(0)
        size = 4 * sum(p.numel() for p in model.parameters())
        alone: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        shared: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        reduced: list[list[float]] = []
        for _ in range(options.rounds):
            reduced.append(exchanges())
            for batch in BATCHES:
                run = make_run(corpus, batch)
                alone[batch].append(step_of(run, shared=False))
                shared[batch].append(step_of(replace(run, microbatch=batch // 2), shared=True))
    one = {batch: statistics.median(alone[batch]) for batch in BATCHES}
    two = {batch: statistics.median(shared[batch]) for batch in BATCHES}
    link = link_from(SIZES, [statistics.median(column) for column in zip(*reduced, strict=True)])
    fixed, each = line_through(BATCHES, list(one.values()))
    ring = ring_seconds(size, 2, link)
    numbers = {
        "gradient_bytes": size,
        "link_bytes_per_second": link.bytes_per_second,
        "link_latency_seconds": link.latency_seconds,
        "fixed_seconds": fixed,
        "sample_seconds": each,
        "steps": [
            {
                "batch": batch,
                "one": one[batch],
                "two": two[batch],
                "predicted": step_seconds(compute=fixed + each * batch / 2, exchange=ring),
            }
            for batch in BATCHES
        ],
        "all_reduce": {"bytes": SIZES, "rounds": reduced},
        "rounds": {"one": alone, "two": shared},
    }
    write_result("scaling_measured", numbers)
    print(table(numbers))


def table(numbers: dict[str, Any]) -> str:
    """Return the steps as Markdown; what two wait for each other is, in each row, the median of the other rows."""
    lines = [
        "| batch | one process, ms | two, ms | predicted | error | and waiting | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in numbers["steps"]:
        waits = statistics.median(o["two"] - o["predicted"] for o in numbers["steps"] if o is not row)
        cells = [f"{row['batch']}", f"{1e3 * row['one']:.1f}", f"{1e3 * row['two']:.1f}"]
        for predicted in (row["predicted"], row["predicted"] + waits):
            cells += [f"{1e3 * predicted:.1f}", f"{predicted / row['two'] - 1:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
