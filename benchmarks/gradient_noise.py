"""What it costs to measure the gradient's noise: steps with and without it take turns in one process.

A step is all microbatches forward and backward, the gradient's norm, and the optimizer's step. Every tenth measured one
is told layer by layer, as a run does by default. The steps run over the same batch, read beforehand.

    python benchmarks/gradient_noise.py --size lenet
    python benchmarks/gradient_noise.py --size demo
    python benchmarks/gradient_noise.py --size mini

writes benchmarks/results/gradient_noise-SIZE.json.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import bert_throughput
from certificate import write_result
from largebatch.recipes.mnist import digits
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.distributed import World
from largebatch.train.gradient_noise import GradientNoise
from largebatch.train.loop import Training
from largebatch.train.parallel import SharedModel
from largebatch.train.passes import Passes
from largebatch.train.run import Run
from largebatch.train.run_record import Origin
from largebatch.train.step_data import MicrobatchDataset


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["lenet", "demo", "mini", "base"] = "lenet"
    """LeNet on the digits (batch 256 in microbatches of 32), or a BERT of `bert_throughput.py`."""
    rounds: int = 60
    """Pairs of steps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic."""


class Steps:
    """A model that takes steps over one batch."""

    def __init__(self, run: Run[Any, Any], folder: Path) -> None:
        world = World(0, 1, torch.device("cpu"))
        self._training = Training(run, folder, world, [], Origin(recipe="benchmark", recipe_name="benchmark"))
        stage = run.stages[0]
        dataset, order = self._training.stage_data(0, stage)
        batches = MicrobatchDataset(run.task, dataset, order, int(run.microbatch), 0, 1)
        self._batches = [batches[0, number] for number in range(batches.in_a_step)]
        self._samples = stage.global_batch_samples
        counts = [run.task.counts(micro.batch) for micro in self._batches]
        self._targets = {term: float(sum(count[term] for count in counts)) for term in run.task.weights}
        self._training.optimizer.init_state()
        self._noise = GradientNoise(self._training.model, world, "auto")
        shared = SharedModel(self._training.model, world, "ddp", 0, "none")
        self._passes = Passes(run.task, shared, world, self._training.autocast, run.seed, self._noise)

    def seconds(self, *, measured: bool, by_layer: bool) -> float:
        """Take a step and return how long it was."""
        self._noise.enter("only", len(self._batches) if measured else 1, sorts=False)
        began = time.perf_counter()
        told = self._passes.accumulate(0, 0, self._batches, self._targets, noise_by_layer=by_layer)
        norm = float(self._training.optimizer.grad_norm())
        self._noise.estimate(told[len(self._targets) :], self._samples, norm)
        self._training.optimizer.step()
        self._training.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def make_run(options: Options, folder: Path) -> Run[Any, Any]:
    """Return what is trained."""
    if options.size == "lenet":
        return replace(digits(batch=256), microbatch=32, precision=options.precision)
    of_bert = bert_throughput.Options(size=options.size, precision=options.precision)
    size = bert_throughput.SIZES[options.size]
    prepare(PrepareOptions(vocabulary_size=size.vocabulary_size), folder / "corpus")
    return bert_throughput.make_run(of_bert, folder / "corpus")


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(make_run(options, Path(folder)), Path(folder) / "run")
        for number in range(4):
            steps.seconds(measured=bool(number % 2), by_layer=False)
        pairs = []
        for number in range(options.rounds):
            found = {}
            for measured in (True, False) if number % 2 else (False, True):
                found[measured] = steps.seconds(measured=measured, by_layer=measured and number % 10 == 9)
            pairs.append((found[True], found[False]))
    with_it, without = zip(*pairs, strict=True)
    result = {
        "what": "seconds of a step with the gradient's noise measured, beside one without",
        "size": options.size,
        "precision": options.precision,
        "measured": statistics.median(with_it),
        "not_measured": statistics.median(without),
        "ratio": statistics.median(one / other for one, other in pairs),
        "ratio_of_sums": sum(with_it) / sum(without),
        "pairs": pairs,
    }
    write_result(f"gradient_noise-{options.size}{'' if options.precision == 'fp32' else '-bf16'}", result)
    print(f"measured / not measured, median of {len(pairs)} pairs: {result['ratio']:.4f}; {result['measured']:.4f} s")


if __name__ == "__main__":
    main(tyro.cli(Options))
