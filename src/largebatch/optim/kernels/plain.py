"""Parts of the plain per-tensor kernels that do not depend on the rule."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Count, Layers, Norm


class Layer(NamedTuple):
    """One layer in the dtype to compute in."""

    x: Tensor
    """The weights; a copy where they are stored in half precision."""
    g: Tensor
    """The gradient of what is minimised: scaled if clipped, negated if maximised."""
    t: Count


def each_layer(layers: Layers, maximize: bool) -> Iterator[Layer]:
    """Yield the layers in the dtype to compute in."""
    counted = len(layers.t) > 0
    for i, (x, g) in enumerate(zip(layers.x, layers.g, strict=True)):
        g = g.to(layers.dtype)
        if layers.keep is not None:
            g = torch.where(layers.keep, g, 0.0)  # what is not finite times 0 is not 0
        if layers.g_scale is not None:
            g = g * (layers.g_scale if layers.g_scale.ndim == 0 else layers.g_scale[i])
        yield Layer(x.to(layers.dtype), -g if maximize else g, layers.t[i] if counted else 0.0)


def as_it_is(a: Tensor) -> Tensor:
    """Return weights or a state for a formula; a copy where autograd would keep them, for they are overwritten."""
    return a.clone() if torch.is_grad_enabled() else a


def write_back_(layers: Layers, index: int, x: Tensor) -> None:
    """Store new weights of one layer, and their rounded copy where there are masters."""
    layers.x[index].copy_(x)
    if layers.rounded is not None:
        layers.rounded[index].copy_(x)


def partial_sum(x: Tensor, norm: Norm) -> Tensor:
    """Return the sum of ``|x|^norm``, or the maximum of ``|x|`` for "inf", as a float64 0-dim tensor."""
    x = x.to(torch.float64)
    if norm == 2:
        return x.square().sum()
    return x.abs().sum() if norm == 1 else x.abs().amax()


def partial_sums(norm: Norm, *columns: Tensor) -> Tensor:
    """Return one row of the result of phase 1, float64 [columns]."""
    return torch.stack([partial_sum(column, norm) for column in columns])


def squares(tensors: list[Tensor]) -> Tensor:
    """Phase 0, see `contract.py`: the sum of squares of each tensor, float64 [layers]."""
    return torch.stack([partial_sum(a, 2) for a in tensors])


def any_number_of_elements(device: torch.device) -> float:
    """Plain kernels keep nothing between the phases, so that they take all layers at once."""
    return math.inf
