"""What a kernel is given and what it gives back: the contract of every backend.

A step is made in phases, so that the trust ratio is decided in one place for all backends:

0. with clipping only: ``squares(gradients)`` returns the sum of their squares, 0-dim, float64;
1. ``lamb_norms_(layers, rule)`` updates the moments and returns a float64 tensor [layers, columns] of partial
   sums over what is stored here: sums of ``|.|^norm``, or maxima of ``|.|`` for the norm "inf". LAMB has the
   columns (x, u): the weights and the direction. Where ``rule.adapt`` is false they may be anything;
2. ``trust_ratio.py`` turns the sums into ratios [layers, directions];
3. ``lamb_apply_(layers, rule, ratios, lr)`` moves the weights.

Kernels read the gradients and never write them, return nothing to the host, and give the same numbers in
whatever lists the layers come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Norm: TypeAlias = Literal[1, 2, "inf"]
Nesterov: TypeAlias = Literal["first", "both"] | None


@dataclass(slots=True)
class Layers:
    """Layers that one kernel call works on: one device, one dtype of each kind, one rule; none is empty.

    A layer is a parameter, or one block of a stacked parameter. Its tensors have the same shape but not always
    the same strides, and need not be contiguous. Complex tensors come as their real views.
    """

    x: list[Tensor]
    """The weights to move: the parameters, or their float32 masters."""
    g: list[Tensor]
    """The gradients, read only, of any floating dtype."""
    state: dict[str, list[Tensor]]
    """The moments by their key in the state dict; their dtype is the one to compute in."""
    t: list[float]
    """The number of each layer's step, from 1."""
    rounded: list[Tensor] | None = None
    """With master weights: the half-precision parameters, to be overwritten with the rounded x."""
    g_scale: Tensor | None = None
    """0-dim float64: what the gradients are multiplied by when they are clipped."""
    kept: Any = None
    """Left by the backend in phase 1 for itself in phase 3."""


@dataclass(frozen=True, slots=True)
class LambRule:
    """The options of a group that change LAMB's direction and norms."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction: bool
    nesterov: Nesterov
    maximize: bool
    adapt: bool
    norm: Norm

    def first_weights(self, t: float) -> tuple[float, float]:
        """Return (a, b) of ``mhat = a * m + b * g`` at step t."""
        return _look_ahead(self.beta1, t, self.bias_correction, self.nesterov is not None)

    def second_weights(self, t: float) -> tuple[float, float]:
        """Return (a, b) of ``vhat = a * v + b * g * g`` at step t."""
        return _look_ahead(self.beta2, t, self.bias_correction, self.nesterov == "both")


def _look_ahead(beta: float, t: float, bias_correction: bool, ahead: bool) -> tuple[float, float]:
    now = 1 - beta**t if bias_correction else 1.0
    if not ahead:
        return 1 / now, 0.0
    after = 1 - beta ** (t + 1) if bias_correction else 1.0
    return beta / after, (1 - beta) / now


class Phases(NamedTuple):
    """One backend's kernels for one optimizer."""

    squares: Callable[[list[Tensor]], Tensor]
    norms_: Callable[[Layers, Any], Tensor]
    apply_: Callable[[Layers, Any, Tensor, float | Tensor], None]
    elements_at_once: Callable[[torch.device], float]
    """How many elements one call should get (a larger layer comes alone): it bounds what phase 1 may keep."""
