"""Parts of the plain per-tensor kernels that do not depend on the rule."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Layers, Norm


class Layer(NamedTuple):
    """One layer in the dtype to compute in."""

    x: Tensor
    """The weights; a copy where they are stored in half precision."""
    g: Tensor
    """The gradient of what is minimised: scaled if clipped, negated if maximised."""
    t: float


def each_layer(layers: Layers, dtype_of: str, maximize: bool) -> Iterator[Layer]:
    """Yield the layers in the dtype of the moment called `dtype_of`."""
    for x, g, moment, t in zip(layers.x, layers.g, layers.state[dtype_of], layers.t, strict=True):
        g = g.to(moment.dtype)
        if layers.g_scale is not None:
            g = g * layers.g_scale
        yield Layer(x.to(moment.dtype), -g if maximize else g, t)


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


def squares(tensors: list[Tensor]) -> Tensor:
    """Return the sum of squares over all tensors, of one device, as a float64 0-dim tensor."""
    return torch.stack([partial_sum(a, 2) for a in tensors]).sum()


def any_number_of_elements(device: torch.device) -> float:
    """Plain kernels keep nothing between the phases, so that they take all layers at once."""
    return math.inf
