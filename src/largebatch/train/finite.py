"""Where a step stopped being finite: the first bad tensor, by name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from largebatch.optim.shards import whole


class Diverged(RuntimeError):
    """Training or an evaluation stopped being finite."""


def first_bad_tensor(model: nn.Module, losses: Mapping[str, float]) -> str:
    """Name the first tensor that is not finite, in the order of a step: parameters, terms of the loss, gradients.

    It reads every parameter and waits for the device, so it is for steps that are known to be bad.
    """
    for name, parameter in model.named_parameters():
        if not _all_finite(parameter):
            return f"parameter {name}"
    for term, value in losses.items():
        if not math.isfinite(value):
            return f"loss {term}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _all_finite(parameter.grad):
            return f"gradient of {name}"
    return "norm of all gradients"


def _all_finite(a: Tensor) -> bool:
    """Tell of a whole tensor; of one in shards all ranks ask together."""
    return bool(whole(torch.isfinite(a).all()))
