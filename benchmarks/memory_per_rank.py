"""Memory of a rank in training, counted and measured, beside what it should be.

    python benchmarks/memory_per_rank.py

BERT of 12 x 768 with 8,192 tokens trains with LAMB in float32, one sequence of 128 for each rank. Expected are the
bytes of weights, gradients and two moments, 16 for a parameter, over the ranks that share them. Counted are the bytes
of these tensors on the first rank after a step. Grown is what the resident memory of the first rank came to at most
within the last step, less what it was before the model was built: activations, gathered layers, buckets in which
gradients are exchanged and whatever else are in it. Here glibc's allocator gives blocks of a megabyte or more back at
once; by itself it keeps them, and a rank with shards grows as if it had none. Writes
benchmarks/results/memory_per_rank.json.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from certificate import write_result
from largebatch.optim.shards import local
from largebatch.recipes.bert import bert_base
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.distributed import join_world
from largebatch.train.loop import Training
from largebatch.train.run import Run, Sharding
from largebatch.train.run_record import Origin
from ranks import run_ranks, short_run

WAYS: tuple[tuple[Sharding, int], ...] = (("ddp", 1), ("ddp", 2), ("fsdp", 2), ("hsdp", 4), ("fsdp", 4))
SHARD_RANKS = 2
"""Of hsdp."""
STEPS = 3


def make_run(corpus: Path, sharding: Sharding, ranks: int) -> Run[Any, Any]:
    """Return a run of a few steps."""
    run = short_run(bert_base(), corpus, batch=ranks, steps=STEPS, length=128, held_out_pairs=2)
    shard_ranks = SHARD_RANKS if sharding == "hsdp" else 0
    return replace(run, microbatch=1, sharding=sharding, shard_ranks=shard_ranks)


class Watch:
    """Reads the memory of this process in the steps after the first."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.most = self.counted = 0

    def start(self, first_step: int, steps: int) -> None:
        """Nothing yet."""

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Count what lies here when a step has been made and its gradients are still there."""
        if kind != "train" or self.training is None:
            return
        self.most = resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the maximum begins again
        held = list(self.training.model.parameters())
        held += [p.grad for p in self.training.model.parameters() if p.grad is not None]
        held += [value for state in self.training.optimizer.state.values() for value in state.values()]
        self.counted = sum(local(tensor).nbytes for tensor in held if isinstance(tensor, Tensor))

    def say(self, sentence: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


def resident(name: str) -> int:
    """Return bytes of this process's resident memory, VmRSS now or VmHWM at most."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def one_rank(rank: int, corpus: Path, sharding: Sharding, ranks: int, folder: Path) -> None:
    """Train as one rank; the first one writes down what it took."""
    with join_world("cpu") as world:
        before, watch = resident("VmRSS"), Watch()
        origin = Origin(recipe="benchmark", recipe_name="benchmark")
        watch.training = Training(make_run(corpus, sharding, ranks), folder / "run", world, [watch], origin)
        parameters = sum(p.numel() for p in watch.training.model.parameters())
        watch.training.train(resume=False)
        watch.training = None
    if rank == 0:
        found = {"parameters": parameters, "counted_bytes": watch.counted, "grown_bytes": watch.most - before}
        (folder / "memory.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    """Measure each way, and print the table."""
    rows = []
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # of the ranks
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        prepare(PrepareOptions(vocabulary_size=8192), corpus)
        print("| | ranks | expected, MB | counted, MB | grown, MB |\n| --- | --- | --- | --- | --- |")
        for sharding, ranks in WAYS:
            out = Path(folder) / f"{sharding}-{ranks}"
            out.mkdir()
            run_ranks(one_rank, ranks, corpus, sharding, ranks, out)
            found = json.loads((out / "memory.json").read_text(encoding="utf-8"))
            shares = {"ddp": 1, "fsdp": ranks, "hsdp": SHARD_RANKS}[sharding]
            found["expected_bytes"] = 16 * found["parameters"] // shares
            rows.append({"sharding": sharding, "ranks": ranks, **found})
            cells = [found[f"{name}_bytes"] / 1e6 for name in ("expected", "counted", "grown")]
            print(f"| {sharding} | {ranks} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |", flush=True)
    print(f"\n{write_result('memory_per_rank', {'ways': rows})}")


if __name__ == "__main__":
    main()
