"""What layers gather over the microbatches of a step beside gradients, such as the statistics of batch norm.

A layer that folds what it saw into its buffers pass by pass would end with other buffers for another microbatch or
number of ranks. Instead it may gather sums over the passes of a step and offer

    step_sums() -> Tensor             what it has gathered, one dimension
    fold_step_sums(sums) -> None      take in the sums over all ranks, or nothing (None), and begin anew

The loop calls the second once a step: with the sums, or, where a step was skipped, with None. It sets ``counted`` of
such a layer to False for the time of a pass that a rank runs without a share of its own, for layers that look at the
samples of all ranks together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from largebatch.train.distributed import World


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo at the end what passes did to the model's buffers."""
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)


@contextmanager
def left_out(model: nn.Module) -> Iterator[None]:
    """Let passes leave no trace: neither in the buffers nor, through layers that look at all ranks, on other ranks."""
    gathering = _gathering(model)
    for module in gathering:
        module.counted = False
    try:
        with buffers_kept(model):
            yield
    finally:
        for module in gathering:
            module.counted = True


def fold_step_statistics(model: nn.Module, world: World, *, finite: bool) -> None:
    """Hand all layers that gather the sums of a step over all ranks, or nothing if the step was not finite."""
    gathering = _gathering(model)
    if not gathering:
        return
    if not finite:
        for module in gathering:
            module.fold_step_sums(None)
        return
    sums = [module.step_sums() for module in gathering]
    totals = world.sum_tensor(torch.cat(sums)).split([len(part) for part in sums])
    for module, total in zip(gathering, totals, strict=True):
        module.fold_step_sums(total)


def _gathering(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "fold_step_sums")]
