"""The batches of one rank, step by step, read ahead by worker processes where the run asks for them."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.errors import InputError
from largebatch.train.data_order import DataOrder, Microbatch
from largebatch.train.task import Batch, SampleId, Task, TaskDataset


@dataclass(frozen=True)
class LoadedMicrobatch:
    """One microbatch, collated, on the CPU.

    A rank whose share is empty gets the step's first sample with ``samples`` 0: it takes part in the exchange of
    gradients with a weight of zero.
    """

    first_position: int
    batch: Batch
    samples: int
    """How many of its samples count, all or none."""

    @property
    def counted(self) -> bool:
        """Whether it counts."""
        return self.samples > 0


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
    """Return the batch on a device; it goes to a GPU from pinned memory, so that the host need not wait."""
    pins = device.type == "cuda"
    return {name: (a.pin_memory() if pins else a).to(device, non_blocking=True) for name, a in batch.items()}


class MicrobatchDataset(Dataset[LoadedMicrobatch]):
    """Maps (step of a stage, number within the step) to a microbatch of one rank."""

    def __init__(
        self, task: Task, dataset: TaskDataset, order: DataOrder, microbatch: int, rank: int, ranks: int
    ) -> None:
        self._task, self._dataset, self._order = task, dataset, order
        self._microbatch, self._rank, self._ranks = microbatch, rank, ranks
        self._step, self._of_step = -1, list[Microbatch]()
        self.in_a_step = order.rounds(microbatch, ranks)

    def __getitem__(self, place: tuple[int, int]) -> LoadedMicrobatch:
        """Return a microbatch of step ``place[0]`` of the stage, both counted from 0."""
        step, number = place
        if step != self._step:
            lengths = getattr(self._dataset, "lengths", None)
            self._of_step = self._order.microbatches(step, self._microbatch, self._rank, self._ranks, lengths)
            self._step = step
        microbatch = self._of_step[number]
        samples = list(microbatch.samples) or self._order.first_samples(step, 1)
        batch = self._task.collate(read(self._dataset, samples))
        return LoadedMicrobatch(microbatch.first_position, batch, len(microbatch.samples))


@dataclass(frozen=True)
class _Places:
    """(step, number within the step) of microbatches, in order."""

    first: int
    last: int
    in_a_step: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return product(range(self.first, self.last), range(self.in_a_step))


class _Telling(Dataset[LoadedMicrobatch | InputError]):
    """A data set that returns an InputError: raised in a worker, it would come with a traceback in its message."""

    def __init__(self, dataset: Dataset[LoadedMicrobatch]) -> None:
        self._dataset = dataset

    def __getitem__(self, place: Any) -> LoadedMicrobatch | InputError:
        try:
            return self._dataset[place]
        except InputError as error:
            return error


def _as_it_is(loaded: Any) -> Any:
    return loaded


def load(dataset: Dataset[LoadedMicrobatch], places: Iterable[Any], workers: int) -> Iterator[LoadedMicrobatch]:
    """Yield what a data set has at some places, in their order, read ahead by so many processes.

    Raises:
        InputError: the data set raised it.
    """
    if workers:
        _allow_open_files()
    loader: DataLoader[LoadedMicrobatch | InputError] = DataLoader(
        _Telling(dataset),
        batch_size=None,
        sampler=places,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_end_with_reader if workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        yield loaded


def _end_with_reader(_: int) -> None:
    """Let this worker end as soon as the process that reads from it does, by kill -9 too.

    PyTorch's workers look whether their parent lives, but under a fork server that is the server, which for its part
    lives as long as a worker does.
    """
    reader = multiprocessing.parent_process()
    assert reader is not None

    def wait() -> None:
        reader.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def steps_from(dataset: MicrobatchDataset, first: int, last: int, workers: int) -> Iterator[list[LoadedMicrobatch]]:
    """Yield the microbatches of the steps [first, last), in order; workers share the microbatches of a step."""
    loaded = load(dataset, _Places(first, last, dataset.in_a_step), workers)
    for _ in range(first, last):
        yield list(islice(loaded, dataset.in_a_step))


def _allow_open_files() -> None:
    """Lift the limit of open files as far as it goes: each tensor that a worker hands over is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
