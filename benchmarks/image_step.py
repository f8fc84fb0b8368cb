"""Images per second of training: this engine beside a plain PyTorch loop of the same network, batch and optimizer.

The plain loop is what tutorials write: transformers' own ResNet-50, or ResNet-9, with PyTorch's batch norm, float32
images in PyTorch's layout, microbatches accumulated, torch's SGD with momentum. Its batches are ready before its clock
starts; ours are read and standardised while it runs. In turns, in one process.

    python benchmarks/image_step.py --network resnet50 --data ../imagenette --image-size 96
    python benchmarks/image_step.py --network resnet9 --data ../cifar10 --image-size 32

writes benchmarks/results/image_step-NETWORK.json.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from certificate import write_result
from largebatch.recipes.optimizers import Momentum
from largebatch.schedules import Schedule
from largebatch.stage_view import StageView
from largebatch.train.run import Run, Stage
from largebatch.train.task import SampleId, TaskDataset
from largebatch.vision import models
from largebatch.vision.classification import ImageClassification
from turns import engine_rate, summed_up


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    data: str
    """Images, as `largebatch train` takes them."""
    network: Literal["resnet9", "resnet50"] = "resnet50"
    """What is trained."""
    image_size: int = 96
    """Side of the images, in pixels."""
    batch: int = 64
    """Images in an optimizer step."""
    microbatch: int = 32
    """Images in a pass."""
    rounds: int = 5
    """Turns of each."""
    steps: int = 4
    """Optimizer steps in a turn; the first of each turn is not counted."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of both."""


class Judged:
    """The first few images of a data set: judging all of them is not what is measured."""

    def __init__(self, data: TaskDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return 8

    def __getitem__(self, sample: SampleId) -> Any:
        return self._data[sample]


class Task(ImageClassification):
    """As it is, but that few images are judged."""

    def evaluation_dataset(self, stage: StageView, seed: int) -> Any:
        """Return those few."""
        return Judged(super().evaluation_dataset(stage, seed))


def make_run(options: Options) -> Run[ImageClassification, Momentum]:
    """Return a run of a few steps."""
    task = Task(
        data=options.data,
        network=options.network,
        image_size=options.image_size,
        crop="resized" if options.network == "resnet50" else "padded",
        norm_group=options.microbatch,
    )
    stage = Stage(
        name="only",
        global_batch_samples=options.batch,
        steps=options.steps,
        peak_lr=0.01,
        schedule=Schedule(shape="constant"),
    )
    return Run(
        task=task,
        stages=(stage,),
        optimizer=Momentum(),
        precision=options.precision,
        microbatch=options.microbatch,
        layers_every_steps=10**9,
        checkpoint_every_steps=10**9,
    )


def plain_network(run: Run[ImageClassification, Momentum]) -> Any:
    """Return the network as its library makes it."""
    classes = list(run.task.images.classes)
    if run.task.network == "resnet50":
        return models.resnet50(classes, 3, run.seed)
    return models.resnet9(classes, 3, run.task.width, run.seed)


def plain(run: Run[ImageClassification, Momentum]) -> float:
    """Return the images per second of the plain loop, the first step left out."""
    stage, microbatch = run.stages[0], int(run.microbatch)
    data = run.task.dataset(stage, run.seed)
    passes = stage.global_batch_samples // microbatch
    ready = []
    for first in range(0, stage.global_batch_samples, microbatch):
        batch = run.task.collate(data.__getitems__([(0, index) for index in range(first, first + microbatch)]))
        pixels = batch["pixels"].permute(0, 3, 1, 2).float().div(255).contiguous()
        ready.append(((pixels - 0.45) / 0.225, batch["labels"]))
    network: nn.Module = plain_network(run).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=stage.peak_lr, momentum=0.9, weight_decay=1e-4)
    ends = []
    for _ in range(stage.steps):
        for pixels, labels in ready:
            with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
                logits = network(pixels).logits
            (F.cross_entropy(logits.float(), labels) / passes).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.perf_counter())
    return stage.global_batch_samples * (stage.steps - 1) / (ends[-1] - ends[0])


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    run = make_run(options)
    rounds = []
    for _ in range(options.rounds):
        rounds.append({"ours": engine_rate(run), "plain": plain(run)})
        print(rounds[-1], flush=True)
    result = {
        "what": "images per second of training: ours beside a plain PyTorch loop",
        "network": options.network,
        "size": options.image_size,
        "batch": options.batch,
        "microbatch": options.microbatch,
        "precision": options.precision,
        **summed_up(rounds, "plain"),
    }
    write_result(f"image_step-{options.network}{'' if options.precision == 'fp32' else '-bf16'}", result)
    print(f"ours / plain, median of {options.rounds} paired ratios: {result['ratio']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
