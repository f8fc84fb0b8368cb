"""What huge pages bring to training on a CPU under Linux, and what they cost: runs that differ in it take turns.

glibc gives large tensors back to the system as soon as they are freed and takes them anew, page by page. Two settings
ask for pages of 2 MiB: PyTorch's, of its tensors alone, and glibc's, of all that is allocated. Both are read when a
process starts, so that each run has its own; each trains a few steps from the same weights on the same batches.

    python benchmarks/huge_pages.py --size mini

writes benchmarks/results/huge_pages-SIZE.json: samples per second, the first step left out, the resident memory of the
process at its peak, and whether all losses are equal to the bit.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import bert_throughput
from certificate import write_result
from largebatch.recipes.optimizers import Lamb
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.run import Run
from memory_per_rank import resident
from ranks import run_beside
from turns import engine_lines, rate_of

WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "torch": {"THP_MEM_ALLOC_ENABLE": "1"},
    "glibc": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}
"""Way -> what is set in the environment."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Says when the system gives them: always, where a process asks (madvise), or never."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["demo", "mini", "base"] = "mini"
    """A BERT of `bert_throughput.py`, with its batch."""
    rounds: int = 5
    """Turns of each way."""
    steps: int = 5
    """Optimizer steps in a turn; the first of each turn is not counted."""


def make_run(options: Options, corpus: Path) -> Run[Any, Any]:
    """Return a run of a few steps."""
    run = bert_throughput.make_run(bert_throughput.Options(size=options.size, steps=options.steps), corpus)
    return replace(run, optimizer=Lamb())


def one(options: Options, corpus: Path, threads: int, target: Path) -> None:
    """Train in this process and write down what it came to."""
    torch.set_num_threads(threads)
    run = make_run(options, corpus)
    lines = engine_lines(run)
    found = {
        "samples_per_second": rate_of(run, lines),
        "peak_bytes": resident("VmHWM"),
        "losses": [line["loss"] for line in lines],
    }
    target.write_text(json.dumps(found), encoding="utf-8")


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Have the processes that are started meanwhile begin with these, and with none of the other ways'."""
    names = {name for way in WAYS.values() for name in way}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]
        os.environ.update(before)


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus, target = Path(folder) / "corpus", Path(folder) / "found.json"
        prepare(PrepareOptions(vocabulary_size=bert_throughput.SIZES[options.size].vocabulary_size), corpus)
        for number in range(options.rounds):
            turn: dict[str, dict[str, Any]] = {}
            first = number % len(WAYS)  # each way begins in turn
            for way in [*WAYS][first:] + [*WAYS][:first]:
                with environment(WAYS[way]):
                    run_beside([(one, (options, corpus, torch.get_num_threads(), target), None)])
                turn[way] = json.loads(target.read_text(encoding="utf-8"))
            rounds.append(turn)
            print({way: found["samples_per_second"] for way, found in turn.items()}, flush=True)
    losses = [found.pop("losses") for turn in rounds for found in turn.values()]
    base, *others = WAYS
    result = {
        "what": "samples per second of training on a CPU, and memory at the peak, with huge pages beside without",
        "size": options.size,
        "ways": WAYS,
        "system": HUGE_PAGES.read_text(encoding="utf-8").strip(),
        **{
            f"{measure} of {way}": statistics.median(turn[way][measure] / turn[base][measure] for turn in rounds)
            for way in others
            for measure in ("samples_per_second", "peak_bytes")
        },
        "losses_equal": all(found == losses[0] for found in losses),
        "rounds": rounds,
    }
    write_result(f"huge_pages-{options.size}", result)
    print(json.dumps({name: value for name, value in result.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
