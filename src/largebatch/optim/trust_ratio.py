"""The trust ratio ``phi(||x||) / ||u||`` of the general layerwise strategy, once for all rules and backends.

Source: arXiv 1904.00962, section 3. ``phi`` is the identity or ``min(max(z, low), high)``. The ratio is 1 where
``||x|| = 0`` or ``||u|| = 0`` (a layer initialised with zeros could never move otherwise) and where the group is
not adapted; these ones are never clamped. LARS adds to the fraction:

    ratio = coefficient * phi(||x||) / (||u|| + of_weights * ||x|| + eps)

Everything stays on the device.
"""

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Norm, RatioRule


def norms_from_sums(sums: Tensor, norm: Norm) -> Tensor:
    """Return norms from complete sums of ``|.|^norm`` (or maxima for "inf"), of the same shape."""
    if norm != 2:
        return sums
    # Double where: the root of 0 has an infinite derivative, which autograd would multiply by 0 into NaN.
    zero = sums == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, sums).sqrt())


def trust_ratios(sums: Tensor, rule: RatioRule, *, adapt: bool, norm: Norm) -> Tensor:
    """Return the ratio of each layer and direction, float64 [layers, directions].

    Args:
        sums: float64 [layers, 1 + directions], sums over whole layers: the weights first, then each direction.
        rule: what phi and the fraction are.
        adapt: where false all ratios are 1 and the sums are not looked at.
        norm: which norm the sums belong to.
    """
    if not adapt:
        return torch.ones_like(sums[:, 1:])
    norms = norms_from_sums(sums, norm)
    x, u = norms[:, :1], norms[:, 1:]
    # Asked as "== 0", not as "> 0": a norm that is not a number has to show in the step.
    zero = (x == 0) | (u == 0)
    phi = x if rule.phi_bounds is None else x.clamp(*map(float, rule.phi_bounds))
    ratio = rule.coefficient * phi / (torch.where(zero, 1.0, u) + rule.of_weights * x + rule.eps)
    if rule.ratio_bounds is not None:
        ratio = ratio.clamp(*map(float, rule.ratio_bounds))
    return torch.where(zero, 1.0, ratio)


def normalising_scales(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 / ||g||`` of each layer from the sum of squares of its gradient; 1 where that is 0.

    It is at most the greatest number of the dtype that gradients are scaled in: beyond, a layer whose gradient has all
    but vanished would become infinity times its zeros.
    """
    return (1 / torch.where(squares == 0, 1.0, squares).sqrt()).clamp(max=torch.finfo(dtype).max)
