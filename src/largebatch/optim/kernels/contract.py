"""What a kernel is given and what it gives back: the contract of every backend.

A step is made in phases, so that the trust ratio is decided in one place for all backends:

0. with clipping or LANS only: ``squares(gradients)`` returns the sum of squares of each, float64 [layers];
1. ``*_norms_(layers, rule)`` updates the moments and returns a float64 tensor [layers, columns] of partial sums
   over what is stored here: sums of ``|.|^norm``, or maxima of ``|.|`` for the norm "inf". The first column is of
   the weights, the others of what the ratio divides by: LAMB (x, u), LANS (x, r, c), LARS (x, m) for algorithm 1
   and (x, g) for 2017, `Layerwise` (x, u). Where ``rule.adapt`` is false they may be anything;
2. ``trust_ratio.py`` turns the sums into ratios [layers, directions];
3. ``*_apply_(layers, rule, ratios, lr)`` moves the weights. LARS-2017, whose momentum holds ratios and rates,
   moves its momentum here and changes nothing in phase 1.

Where no norm has to be completed by other processes, a backend may have a way through the phases 1 to 3 in one call,
``*_step_``. It has to make the ratios that `trust_ratio.py` makes, which records them.

Kernels read the gradients and never write them, return nothing to the host, and give the same numbers in
whatever lists the layers come.

A step may turn out to be skipped on the device, where a mixed-precision gradient was not finite: `Layers.keep` is
then false and the rate is 0. Kernels see a gradient of zeros and take from `Layers.unless_skipped` the factors
with which nothing changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Norm: TypeAlias = Literal[1, 2, "inf"]
Nesterov: TypeAlias = Literal["first", "both"] | None
LarsVersion: TypeAlias = Literal["algorithm1", "2017", "2017-lr-outside"]
Bounds: TypeAlias = tuple[float, float] | None
Count: TypeAlias = float | Tensor
"""A number of steps, or what follows from it: on the host a float, on the device a float64 tensor."""


@dataclass(slots=True)
class Layers:
    """Layers that one kernel call works on: one device, one dtype of each kind, one rule; none is empty.

    A layer is a parameter, or one block of a stacked parameter. Its tensors have the same shape but not always
    the same strides, and need not be contiguous. Complex tensors come as their real views.
    """

    dtype: torch.dtype
    """The real dtype to compute in, that of the moments and masters."""
    x: list[Tensor] = field(default_factory=list)
    """The weights to move: the parameters, or their float32 masters."""
    g: list[Tensor] = field(default_factory=list)
    """The gradients, read only, of any floating dtype."""
    state: dict[str, list[Tensor]] = field(default_factory=dict)
    """The moments by their key in the state dict."""
    t: list[float] | Tensor = field(default_factory=list)
    """The number of each layer's step, from 1; float64 [layers] on the device. Empty for rules that do not count."""
    rounded: list[Tensor] | None = None
    """With master weights: the half-precision parameters, to be overwritten with the rounded x."""
    g_scale: Tensor | None = None
    """What the gradients are multiplied by, float64: 0-dim, or one number for each layer."""
    keep: Tensor | None = None
    """0-dim bool: whether the step is taken; None where that is certain."""
    kept: Any = None
    """Left by the backend in phase 1 for itself in phase 3."""

    def unless_skipped(self, factor: float, when_skipped: float) -> float | Tensor:
        """Return the factor, or, where the step may be skipped, a tensor that is one of the two."""
        if self.keep is None:
            return factor
        return torch.where(self.keep, self.keep.new_full((), factor, dtype=self.dtype), when_skipped)

    def lengths(self, lr: float | Tensor, ratios: Tensor) -> Tensor:
        """Return ``lr * ratio`` in the dtype to compute in, of the shape of the ratios.

        Where a direction has all but vanished its ratio may be beyond that dtype's range, and infinity times one of
        its zeros would be no number.
        """
        return (lr * ratios).clamp(max=torch.finfo(self.dtype).max).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Rule:
    """The options of a group that every rule has and its kernels need."""

    maximize: bool
    adapt: bool
    norm: Norm


@dataclass(frozen=True, slots=True)
class LambRule(Rule):
    """The options of a group that change LAMB's and LANS's directions."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction: bool
    nesterov: Nesterov

    def first_weights(self, t: Count) -> tuple[Count, Count]:
        """Return (a, b) of ``mhat = a * m + b * g`` at step t."""
        return _look_ahead(self.beta1, t, self.bias_correction, self.nesterov is not None)

    def second_weights(self, t: Count) -> tuple[Count, Count]:
        """Return (a, b) of ``vhat = a * v + b * g * g`` at step t."""
        return _look_ahead(self.beta2, t, self.bias_correction, self.nesterov == "both")


def _look_ahead(beta: float, t: Count, bias_correction: bool, ahead: bool) -> tuple[Count, Count]:
    now = 1 - beta**t if bias_correction else 1.0
    if not ahead:
        return 1 / now, 0.0
    after = 1 - beta ** (t + 1) if bias_correction else 1.0
    return beta / after, (1 - beta) / now


@dataclass(frozen=True, slots=True)
class LarsRule(Rule):
    """The options of a group that change LARS's direction and momentum."""

    version: LarsVersion
    momentum: float
    weight_decay: float
    nesterov: bool


@dataclass(frozen=True, slots=True)
class LayerwiseRule(Rule):
    """What the kernels of the general strategy need."""

    base_rate: float
    """The learning rate, a power of two, at which the base has taken its step."""


class RatioRule(NamedTuple):
    """What makes a trust ratio, ``coefficient * phi(||x||) / (||u|| + of_weights * ||x|| + eps)``, of norms."""

    coefficient: float = 1.0
    of_weights: float = 0.0
    eps: float = 0.0
    phi_bounds: Bounds = None
    """(low, high) that phi clamps ``||x||`` to; None for the identity."""
    ratio_bounds: Bounds = None
    """(low, high) that the ratio is clamped to, after phi and the division."""


def _nothing_to_prepare(layers: Layers) -> None:
    pass


class Phases(NamedTuple):
    """One backend's kernels for one optimizer."""

    squares: Callable[[list[Tensor]], Tensor]
    norms_: Callable[[Layers, Any], Tensor]
    apply_: Callable[[Layers, Any, Tensor, float | Tensor], None]
    elements_at_once: Callable[[torch.device], float]
    """How many elements one call should get (a larger layer comes alone): it bounds what phase 1 may keep."""
    prepare: Callable[[Layers], None] = _nothing_to_prepare
    """Look at the layers of a call, before anything has changed, and raise where the kernels cannot take them."""
    step_: Callable[[Layers, Any, float | Tensor, RatioRule], Tensor] | None = None
    """Make the phases 1 to 3 in one, and return what phase 1 returns."""
