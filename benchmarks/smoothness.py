"""Time and memory of measuring curvature: what `largebatch advise --theory` takes on a BERT.

    python benchmarks/smoothness.py --size demo --whole
    python benchmarks/smoothness.py --size mini
    python benchmarks/smoothness.py --size base

A product of the Hessian with a vector is timed for layers at even distances and for all together, on 8 samples in 8
parts. Lanczos' method takes some twenty for each layer and as many for all: that is the estimate of the whole. With
``--whole`` all of it is run too, its products counted and its time set beside the estimate. Memory is what the process
came to at most, less what it was before the model was built; glibc's allocator gives large blocks back at once.
Writes benchmarks/results/smoothness-SIZE.json.
"""

import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import bert_throughput
from certificate import write_result
from largebatch.advise.smoothness import HessianProducts, measure
from largebatch.advise.theory import PARTS, first_parts, losses_of
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from memory_per_rank import resident

PRODUCTS = 20
"""Of Lanczos' method for each layer, about."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["demo", "mini", "base"] = "demo"
    """A BERT of `bert_throughput.py`."""
    samples: int = PARTS
    """Sequences, a multiple of 8."""
    layers: int = 9
    """Layers that are timed."""
    whole: bool = False
    """Run all of it."""


class Counted:
    """A loss that counts how often it is asked."""

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        self._loss, self.calls = loss, 0

    def __call__(self) -> Tensor:
        """Return it."""
        self.calls += 1
        return self._loss()


def seconds(product: Callable[[Tensor], Tensor], size: int) -> float:
    """Time a product with a random vector."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    product(vector)
    return time.perf_counter() - began


def main(options: Options) -> None:
    """Measure, print and record."""
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: blocks of a MiB or more are given back at once
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        prepare(PrepareOptions(vocabulary_size=bert_throughput.SIZES[options.size].vocabulary_size), corpus)
        run = bert_throughput.make_run(bert_throughput.Options(size=options.size), corpus)
        batches = first_parts(run, run.stages[0], options.samples)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the maximum begins again
        model: Any = run.task.build_model(run.seed).eval()
        losses = [Counted(loss) for loss in losses_of(run.task, model, batches)]
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        products = HessianProducts(parameters, losses)
        names = list(parameters)
        timed = names[:: max(1, len(names) // options.layers)]
        seconds(lambda v: products.of_layer(names[0], v), parameters[names[0]].numel())  # the first is slower
        of_layers = {
            name: seconds(lambda v, name=name: products.of_layer(name, v), parameters[name].numel()) for name in timed
        }
        of_all = seconds(products.of_all, sum(p.numel() for p in parameters.values()))
        estimate = PRODUCTS * (len(names) * statistics.mean(of_layers.values()) + of_all)
        result = {
            "what": "seconds of a product of the Hessian with a vector, and an estimate of all that --theory takes",
            "size": options.size,
            "parameters": sum(p.numel() for p in parameters.values()),
            "layers": len(names),
            "samples": options.samples,
            "sequence_length": bert_throughput.SIZES[options.size].sequence_length,
            "of_layer": of_layers,
            "of_all": of_all,
            "whole_estimated": estimate,
        }
        if options.whole:
            for loss in losses:
                loss.calls = 0
            began = time.perf_counter()
            measure(model, losses, [options.samples // PARTS] * PARTS, most_products=30)
            result["whole"] = time.perf_counter() - began
            result["products"] = losses[0].calls - 1
        result["memory_bytes"] = resident("VmHWM") - before
    write_result(f"smoothness-{options.size}", result)
    print(
        f"{options.size}: {statistics.mean(of_layers.values()):.3f} s for a layer, {of_all:.3f} s for all; the whole "
        f"{estimate:.0f} s by estimate"
        + (f", {result['whole']:.0f} s measured, {result['products']} products" if options.whole else "")
        + f"; {result['memory_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
