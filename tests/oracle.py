"""LAMB in NumPy float64, written from the paper and importing nothing of ours: the judge of the plain kernels.

Algorithm 2 of arXiv 1904.00962v5, and around it the options as their docstrings promise them. Each part of
the rule is a method of its own, so that a deliberately wrong rule is a subclass that changes one of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Options = dict[str, Any]

LAMB_OPTIONS: Options = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.01,
    "bias_correction": True,
    "nesterov": None,
    "adapt": True,
    "norm": 2,
    "phi_bounds": None,
    "ratio_bounds": None,
    "max_grad_norm": None,
    "stacked": None,
    "maximize": False,
}


def norm_of(a: Array, order: int | str) -> float:
    """Return the norm of all elements of an array taken as one vector."""
    return float(np.linalg.norm(a.reshape(-1), np.inf if order == "inf" else int(order)))


class Lamb:
    """LAMB over numbered tensors.

    Args:
        tensors: the weights; copied.
        groups: options by name, and the tensors' numbers under "members".
    """

    def __init__(self, tensors: Sequence[Array], groups: Sequence[Options]) -> None:
        self.x = [np.array(a, dtype=np.float64) for a in tensors]
        self.m = [np.zeros_like(a) for a in self.x]
        self.v = [np.zeros_like(a) for a in self.x]
        self.t = [0] * len(self.x)
        self.groups: list[Options] = [{**LAMB_OPTIONS, **group} for group in groups]
        self.ratios: list[list[float] | None] = [None] * len(self.x)

    def step(self, gradients: Sequence[Array | None]) -> None:
        """Take one step; None is a tensor without a gradient."""
        self.ratios = [None] * len(self.x)
        scales = [self.clip_scale(gradients, group) for group in self.groups]
        for group, scale in zip(self.groups, scales, strict=True):
            for i in group["members"]:
                g = gradients[i]
                if g is None:
                    continue
                g = self.seen_gradient(g, self.x[i], scale, group)
                self.t[i] += 1
                self.m[i], self.v[i] = self.moments(self.m[i], self.v[i], g, group)
                if self.x[i].size:
                    self.move_tensor(i, g, group)

    def move_tensor(self, i: int, g: Array, group: Options) -> None:
        """Move each block of one tensor by its own ratio."""
        dim, count = group["stacked"] or (0, 1)
        ratios: list[float] = []
        blocks: list[Array] = []
        split = [np.split(a, count, axis=dim) if count > 1 else [a] for a in (self.x[i], g, self.m[i], self.v[i])]
        for x, g_, m, v in zip(*split, strict=True):
            r = self.adam_direction(g_, m, v, self.step_count(i), group)
            u = r + group["weight_decay"] * x
            ratio = self.ratio(x, u, r, g_, group)
            ratios.append(ratio)
            blocks.append(self.moved(x, u, r, ratio, self.step_count(i), group))
        self.ratios[i] = ratios
        self.x[i] = np.concatenate(blocks, axis=dim) if count > 1 else blocks[0]

    def step_count(self, i: int) -> int:
        return self.t[i]

    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        """Return min(1, threshold / norm); the norm is over all tensors whose group has a threshold."""
        if group["max_grad_norm"] is None:
            return 1.0
        square = 0.0
        for other in self.groups:
            for i in other["members"]:
                g = gradients[i]
                if other["max_grad_norm"] is not None and g is not None:
                    square += float(np.sum(g * g))
        norm = np.sqrt(square)
        return group["max_grad_norm"] / norm if norm > group["max_grad_norm"] else 1.0

    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return scale * (-g if group["maximize"] else g)

    def moments(self, m: Array, v: Array, g: Array, group: Options) -> tuple[Array, Array]:
        beta1, beta2 = group["betas"]
        return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g

    def adam_direction(self, g: Array, m: Array, v: Array, t: int, group: Options) -> Array:
        beta1, beta2 = group["betas"]
        mhat = self.corrected(m, g, beta1, t, group, ahead=group["nesterov"] is not None)
        vhat = self.corrected(v, g * g, beta2, t, group, ahead=group["nesterov"] == "both")
        return mhat / (np.sqrt(vhat) + group["eps"])

    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        """Return the moment without its bias to zero, or the same looked at one step ahead."""
        now = 1 - beta**t if group["bias_correction"] else 1.0
        if not ahead:
            return m / now
        after = 1 - beta ** (t + 1) if group["bias_correction"] else 1.0
        return beta * m / after + (1 - beta) * new / now

    def ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        x_norm, u_norm = norm_of(x, group["norm"]), norm_of(u, group["norm"])
        if not group["adapt"] or x_norm == 0 or u_norm == 0:
            return 1.0
        return self.bounded(self.phi(x_norm, group) / u_norm, group)

    def phi(self, z: float, group: Options) -> float:
        low, high = group["phi_bounds"] or (0.0, np.inf)
        return min(max(z, low), high)

    def bounded(self, ratio: float, group: Options) -> float:
        low, high = group["ratio_bounds"] or (0.0, np.inf)
        return min(max(ratio, low), high)

    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        return x - group["lr"] * ratio * u
