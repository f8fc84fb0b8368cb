"""Evaluation on held-out data: sums over all of it, each sample once, whatever the number of ranks."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from largebatch.train.distributed import World
from largebatch.train.finite import Diverged
from largebatch.train.run import Stage
from largebatch.train.step_data import LoadedMicrobatch, load, moved, read
from largebatch.train.task import SampleId, Task, TaskDataset

EVALUATION_SAMPLES = 64
"""Samples in one pass; fixed, so that the figures do not depend on the microbatch."""
KEPT_BYTES = 2**30
"""Held-out data of up to this size is read once and kept; what is larger, such as many images, is read again."""


@dataclass(frozen=True)
class Part:
    """Samples of one pass."""

    first: int
    samples: list[SampleId]
    counted: bool


class Parts(Dataset[LoadedMicrobatch]):
    """One rank's parts of the held-out data."""

    def __init__(self, task: Task, dataset: TaskDataset, parts: list[Part]) -> None:
        self._task, self._dataset, self._parts = task, dataset, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> LoadedMicrobatch:
        """Return a part, collated."""
        part = self._parts[number]
        batch = self._task.collate(read(self._dataset, part.samples))
        return LoadedMicrobatch(part.first, batch, len(part.samples) if part.counted else 0)


class HeldOut:
    """The held-out data of the stage at hand, this rank's part of it."""

    def __init__(self, task: Task, seed: int, world: World, autocast: torch.autocast, workers: int) -> None:
        self._task, self._seed, self._world, self._autocast, self._workers = task, seed, world, autocast, workers
        self._stage = -1
        self._parts: Parts | list[LoadedMicrobatch] = []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, number: int, stage: Stage) -> tuple[float, Mapping[str, float]]:
        """Return the loss and the metrics of a model; all ranks call this together and get the same.

        Raises:
            Diverged: the loss is not finite.
        """
        if number != self._stage:
            self._stage, self._parts = number, self._of_stage(stage)
        self._world.share_buffers(model)
        model.eval()
        sums: dict[str, Tensor] = {}
        for part in self._loaded():
            with self._autocast:
                found = self._task.evaluate(model, moved(part.batch, self._world.device))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.double() * float(part.counted)
        names = sorted(sums)
        totals = self._world.sum(torch.stack([sums[name] for name in names]).tolist())
        loss, metrics = self._task.summarise(dict(zip(names, totals, strict=True)))
        if not math.isfinite(loss):
            raise Diverged(f"stopped: the held-out loss is {loss}; a lower learning rate or a longer warm-up may help")
        return loss, dict(metrics)

    def _loaded(self) -> Iterable[LoadedMicrobatch]:
        parts = self._parts
        return load(parts, range(len(parts)), self._workers) if isinstance(parts, Parts) else parts

    def _of_stage(self, stage: Stage) -> Parts | list[LoadedMicrobatch]:
        """Return this rank's parts, read where there is room to keep them."""
        dataset = self._task.evaluation_dataset(stage, self._seed)
        samples = [(0, index) for index in range(len(dataset))]
        stride = self._world.ranks * EVALUATION_SAMPLES
        firsts = range(self._world.rank * EVALUATION_SAMPLES, len(samples), stride)
        parts = [Part(first, samples[first : first + EVALUATION_SAMPLES], True) for first in firsts]
        # A rank with fewer takes one that does not count: all bring the same sums together, and in shards of a model
        # all run the same passes.
        parts += [Part(0, samples[:1], False)] * (-(-len(samples) // stride) - len(parts))
        every = Parts(self._task, dataset, parts)
        first = every[0]
        if sum(tensor.nbytes for tensor in first.batch.values()) * len(every) > KEPT_BYTES:
            return every
        return [first, *(every[number] for number in range(1, len(every)))]
