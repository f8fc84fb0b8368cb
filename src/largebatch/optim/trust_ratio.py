"""The trust ratio ``phi(||x||) / ||u||`` of the general layerwise strategy, once for all rules and backends.

Source: arXiv 1904.00962, section 3. ``phi`` is the identity or ``min(max(z, low), high)``. The ratio is 1 where
``||x|| = 0`` or ``||u|| = 0`` (a layer initialised with zeros could never move otherwise) and where the group is
not adapted; these ones are never clamped. LARS adds to the fraction:

    ratio = coefficient * phi(||x||) / (||u|| + of_weights * ||x|| + eps)

Everything stays on the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Norm

Bounds = tuple[float, float] | None


class RatioTerms(NamedTuple):
    """What a rule adds to the ratio, as in the formula above."""

    coefficient: float = 1.0
    of_weights: float = 0.0
    eps: float = 0.0


def norms_from_sums(sums: Tensor, norm: Norm) -> Tensor:
    """Return norms from complete sums of ``|.|^norm`` (or maxima for "inf"), of the same shape."""
    if norm != 2:
        return sums
    # Double where: the root of 0 has an infinite derivative, which autograd would multiply by 0 into NaN.
    zero = sums == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, sums).sqrt())


def trust_ratios(
    sums: Tensor,
    *,
    adapt: bool,
    norm: Norm,
    phi_bounds: Bounds,
    ratio_bounds: Bounds,
    terms: RatioTerms,
) -> Tensor:
    """Return the ratio of each layer and direction, float64 [layers, directions].

    Args:
        sums: float64 [layers, 1 + directions], sums over whole layers: the weights first, then each direction.
        adapt: where false all ratios are 1 and the sums are not looked at.
        norm: which norm the sums belong to.
        phi_bounds: (low, high) that phi clamps ``||x||`` to, or None for the identity.
        ratio_bounds: (low, high) that the ratio is clamped to, after phi and the division.
        terms: what the rule adds to the fraction.
    """
    if not adapt:
        return torch.ones_like(sums[:, 1:])
    norms = norms_from_sums(sums, norm)
    x, u = norms[:, :1], norms[:, 1:]
    # Asked as "== 0", not as "> 0": a norm that is not a number has to show in the step.
    zero = (x == 0) | (u == 0)
    phi = x if phi_bounds is None else x.clamp(*map(float, phi_bounds))
    ratio = terms.coefficient * phi / (torch.where(zero, 1.0, u) + terms.of_weights * x + terms.eps)
    if ratio_bounds is not None:
        ratio = ratio.clamp(*map(float, ratio_bounds))
    return torch.where(zero, 1.0, ratio)


def normalising_scales(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 / ||g||`` of each layer from the sum of squares of its gradient; 1 where that is 0.

    It is at most the greatest number of the dtype that gradients are scaled in: beyond, a layer whose gradient has all
    but vanished would become infinity times its zeros.
    """
    return (1 / torch.where(squares == 0, 1.0, squares).sqrt()).clamp(max=torch.finfo(dtype).max)
