"""The batches of one rank, step by step, read ahead by worker processes where the run asks for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.train.data_order import DataOrder
from largebatch.train.task import Batch, SampleId, Task, TaskDataset


@dataclass(frozen=True)
class LoadedMicrobatch:
    """One microbatch, collated, on the CPU.

    A rank whose share is empty gets the step's first sample with ``counted`` False: it takes part in the exchange of
    gradients with a weight of zero.
    """

    first_position: int
    batch: Batch
    counted: bool


def read(dataset: TaskDataset, samples: list[SampleId]) -> list[Any]:
    """Return samples, built together where the data set can do that."""
    together = getattr(dataset, "__getitems__", None)
    return together(samples) if together is not None else [dataset[sample] for sample in samples]


def longest_first(dataset: TaskDataset, samples: list[SampleId]) -> list[SampleId]:
    """Return samples in falling order of their lengths, as they are where the data set tells none."""
    lengths = getattr(dataset, "lengths", None)
    if lengths is None:
        return samples
    return [samples[place] for place in np.argsort(-lengths(samples), kind="stable")]


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class StepDataset(Dataset[list[LoadedMicrobatch]]):
    """Maps a step of a stage to what one rank runs in it."""

    def __init__(
        self, task: Task, dataset: TaskDataset, order: DataOrder, microbatch: int, rank: int, ranks: int
    ) -> None:
        self._task, self._dataset, self._order = task, dataset, order
        self._microbatch, self._rank, self._ranks = microbatch, rank, ranks

    def __getitem__(self, step: int) -> list[LoadedMicrobatch]:
        """Return the microbatches of step ``step`` of the stage, counted from 0."""
        loaded = []
        lengths = getattr(self._dataset, "lengths", None)
        for microbatch in self._order.microbatches(step, self._microbatch, self._rank, self._ranks, lengths):
            samples = list(microbatch.samples) or self._order.first_samples(step, 1)
            batch = self._task.collate(read(self._dataset, samples))
            loaded.append(LoadedMicrobatch(microbatch.first_position, batch, bool(microbatch.samples)))
        return loaded


def _as_it_is(loaded: list[LoadedMicrobatch]) -> list[LoadedMicrobatch]:
    return loaded


def steps_from(dataset: StepDataset, first: int, last: int, workers: int) -> Iterator[list[LoadedMicrobatch]]:
    """Yield the microbatches of the steps [first, last), in order."""
    loader: DataLoader[list[LoadedMicrobatch]] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)
