"""What it costs to measure the gradient's noise: steps with and without it take turns in one process.

A step is all microbatches forward and backward, the gradient's norm, and the optimizer's step; a measured one is told
layer by layer. The steps run over the same batch, read beforehand. A run measures one of so many, and the others do
what they do without (tests/train/test_gradient_noise.py), so that it pays that share of the difference.

    python benchmarks/gradient_noise.py --size lenet

writes benchmarks/results/gradient_noise-SIZE.json.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

import bert_throughput
from certificate import write_result
from largebatch.recipes.mnist import digits
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.distributed import World
from largebatch.train.gradient_noise import Detail, GradientNoise
from largebatch.train.loop import Training
from largebatch.train.parallel import SharedModel
from largebatch.train.passes import Passes
from largebatch.train.run import Run
from largebatch.train.run_record import Origin
from largebatch.train.step_data import MicrobatchDataset
from largebatch.vision.classification import ImageClassification
from largebatch.vision.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["lenet", "linear", "demo", "mini", "base"] = "lenet"
    """LeNet on the digits (batch 256 in microbatches of 32), wide linear layers on single ones of them (batch 8), or
    a BERT of `bert_throughput.py`."""
    rounds: int = 60
    """Pairs of steps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic."""


@dataclass
class Output:
    """What a network returns."""

    logits: Tensor


class WideLayers(nn.Module):
    """8.5 million weights, each of which serves a sample once: measuring them is as dear as it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 10)
        )

    def forward(self, pixels: Tensor) -> Output:
        return Output(self.layers(pixels))


@dataclass(frozen=True, kw_only=True)
class WideLayersOnImages(ImageClassification):
    """The digits' task with another network."""

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Classifier(WideLayers(), self.channel_means, self.channel_stds, channels_last=False).train()


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

        self._noise.enter("only", len(self._batches), sorts=False)

    def seconds(self, noise: Detail) -> float:
        """Take a step and return how long it was."""
        began = time.perf_counter()
        told = self._passes.accumulate(0, 0, self._batches, self._targets, noise=noise)
        norm = float(self._training.optimizer.grad_norm())
        self._noise.estimate(told[len(self._targets) :], self._samples, norm)
        self._training.optimizer.step()
        self._training.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def make_run(options: Options, folder: Path) -> Run[Any, Any]:
    """Return what is trained."""
    if options.size == "lenet":
        return replace(digits(batch=256), microbatch=32, precision=options.precision)
    if options.size == "linear":
        run = digits(batch=8)
        task = WideLayersOnImages(**{one.name: getattr(run.task, one.name) for one in fields(run.task)})
        return replace(run, task=task, microbatch=1, precision=options.precision)
    of_bert = bert_throughput.Options(size=options.size, precision=options.precision)
    size = bert_throughput.SIZES[options.size]
    prepare(PrepareOptions(vocabulary_size=size.vocabulary_size), folder / "corpus")
    return bert_throughput.make_run(of_bert, folder / "corpus")


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(options, Path(folder))
        steps = Steps(run, Path(folder) / "run")
        for _ in range(2):
            steps.seconds("layers")
        pairs = []
        for number in range(options.rounds):
            details: list[Detail] = ["layers", "nothing"]
            found = {detail: steps.seconds(detail) for detail in (details if number % 2 else reversed(details))}
            pairs.append((found["layers"], found["nothing"]))
    with_it, without = zip(*pairs, strict=True)
    ratio, every = statistics.median(one / other for one, other in pairs), run.gradient_noise_every_steps
    result = {
        "what": "seconds of a step with the gradient's noise measured, beside one without; and of a run's steps",
        "size": options.size,
        "precision": options.precision,
        "measured": statistics.median(with_it),
        "not_measured": statistics.median(without),
        "ratio": ratio,
        "measured_every_steps": every,
        "ratio_of_a_run": (every - 1 + ratio) / every,
        "ratio_of_sums": sum(with_it) / sum(without),
        "pairs": pairs,
    }
    write_result(f"gradient_noise-{options.size}{'' if options.precision == 'fp32' else '-bf16'}", result)
    print(f"measured / not measured, median of {len(pairs)} pairs: {ratio:.4f}; {result['measured']:.4f} s")
    print(f"of a run, which measures one of {every} steps: {result['ratio_of_a_run']:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
