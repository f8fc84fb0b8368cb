"""Evaluation on held-out data: sums over all of it, each sample once, whatever the number of ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from largebatch.train.distributed import World
from largebatch.train.run import Stage
from largebatch.train.step_data import LoadedMicrobatch, moved, read
from largebatch.train.task import Task

EVALUATION_SAMPLES = 64
"""Samples in one pass; fixed, so that the figures do not depend on the microbatch."""


class HeldOut:
    """The held-out data of the stage at hand, this rank's part of it, read once."""

    def __init__(self, task: Task, seed: int, world: World, autocast: torch.autocast) -> None:
        self._task, self._seed, self._world, self._autocast = task, seed, world, autocast
        self._stage = -1
        self._parts: list[LoadedMicrobatch] = []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, number: int, stage: Stage) -> tuple[float, Mapping[str, float]]:
        """Return the loss and the metrics of a model; all ranks call this together and get the same."""
        if number != self._stage:
            self._stage, self._parts = number, self._read(stage)
        model.eval()
        sums: dict[str, Tensor] = {}
        for part in self._parts:
            with self._autocast:
                found = self._task.evaluate(model, moved(part.batch, self._world.device))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.double() * float(part.counted)
        names = sorted(sums)
        totals = self._world.sum(torch.stack([sums[name] for name in names]).tolist())
        loss, metrics = self._task.summarise(dict(zip(names, totals, strict=True)))
        return loss, dict(metrics)

    def _read(self, stage: Stage) -> list[LoadedMicrobatch]:
        dataset = self._task.evaluation_dataset(stage, self._seed)
        samples = [(0, index) for index in range(len(dataset))]
        stride = self._world.ranks * EVALUATION_SAMPLES
        firsts = range(self._world.rank * EVALUATION_SAMPLES, len(samples), stride)
        parts = [(first, samples[first : first + EVALUATION_SAMPLES], True) for first in firsts]
        # A rank without a part takes one that does not count, since all must bring the same sums together.
        return [
            LoadedMicrobatch(first, self._task.collate(read(dataset, part)), counted)
            for first, part, counted in parts or [(0, samples[:1], False)]
        ]
