"""The update rules in NumPy float64, written from the papers and importing nothing of ours: the judge of the kernels.

LAMB: Algorithm 2 of arXiv 1904.00962v5. LANS: arXiv 2006.13484. LARS: Algorithm 1 of 1904.00962v5, and the two forms of
arXiv 1708.03888. The general strategy: section 3 of 1904.00962. Around them the options as their docstrings promise
them. Each part of a rule is a method of its own, so that a deliberately wrong rule is a subclass that changes one.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Options = dict[str, Any]
State = dict[str, Array]

COMMON_OPTIONS: Options = {
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


class Oracle:
    """A layerwise rule over numbered tensors.

    Args:
        tensors: the weights; copied.
        groups: options by name, and the tensors' numbers under "members".
    """

    OPTIONS: ClassVar[Options]
    KEYS: ClassVar[tuple[str, ...]]
    """The state tensors, by their name in our state dict."""

    def __init__(self, tensors: Sequence[Array], groups: Sequence[Options]) -> None:
        self.x = [np.array(a, dtype=np.float64) for a in tensors]
        self.state: list[State] = [{key: np.zeros_like(a) for key in self.KEYS} for a in self.x]
        self.t = [0] * len(self.x)
        self.groups: list[Options] = [{**COMMON_OPTIONS, **self.OPTIONS, **group} for group in groups]
        self.ratios: list[list[list[float]] | None] = [None] * len(self.x)
        """Of the last step: for each tensor its blocks' ratios, one for each direction."""

    def step(self, gradients: Sequence[Array | None]) -> None:
        """Take one step; None is a tensor without a gradient."""
        self.ratios = [None] * len(self.x)
        scales = [self.clip_scale(gradients, group) for group in self.groups]
        for group, scale in zip(self.groups, scales, strict=True):
            for i in group["members"]:
                g = gradients[i]
                if g is None:
                    continue
                self.t[i] += 1
                self.move_tensor(i, self.seen_gradient(g, self.x[i], scale, group), group)

    def move_tensor(self, i: int, g: Array, group: Options) -> None:
        """Move each block of one tensor by its own ratio."""
        dim, count = group["stacked"] or (0, 1)
        if self.x[i].size == 0:
            return

        def cut(a: Array) -> list[Array]:
            return np.split(a, count, axis=dim) if count > 1 else [a]

        states: list[State] = [{} for _ in range(count)]
        for key, whole_tensor in self.state[i].items():
            for state, part in zip(states, cut(whole_tensor), strict=True):
                state[key] = part
        moved, ratios = [], []
        for x, g_, state in zip(cut(self.x[i]), cut(g), states, strict=True):
            after, own_ratios = self.move_block(x, g_, state, self.step_count(i), group)
            moved.append((after, state))
            ratios.append(own_ratios)
        self.ratios[i] = ratios

        def whole(parts: list[Array]) -> Array:
            return np.concatenate(parts, axis=dim) if count > 1 else parts[0]

        self.x[i] = whole([x for x, _ in moved])
        self.state[i] = {key: whole([state[key] for _, state in moved]) for key in self.KEYS}

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        """Return the moved weights of one layer and its ratios; change its state in place."""
        raise NotImplementedError

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

    def ratio(self, x: Array, u: Array, group: Options) -> float:
        x_norm, u_norm = norm_of(x, group["norm"]), norm_of(u, group["norm"])
        if not group["adapt"] or x_norm == 0 or u_norm == 0:
            return 1.0
        return self.bounded(self.fraction(x_norm, u_norm, group), group)

    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return self.phi(x_norm, group) / u_norm

    def phi(self, z: float, group: Options) -> float:
        low, high = group["phi_bounds"] or (0.0, np.inf)
        return min(max(z, low), high)

    def bounded(self, ratio: float, group: Options) -> float:
        low, high = group["ratio_bounds"] or (0.0, np.inf)
        return min(max(ratio, low), high)


class _AdamMoments(Oracle):
    """What LAMB and LANS share."""

    OPTIONS: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "bias_correction": True,
        "nesterov": None,
    }
    KEYS = ("exp_avg", "exp_avg_sq")

    def moments(self, m: Array, v: Array, g: Array, group: Options) -> tuple[Array, Array]:
        beta1, beta2 = group["betas"]
        return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g

    def corrected_pair(self, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        beta1, beta2 = group["betas"]
        mhat = self.corrected(m, g, beta1, t, group, ahead=group["nesterov"] is not None)
        vhat = self.corrected(v, g * g, beta2, t, group, ahead=group["nesterov"] == "both")
        return mhat, vhat

    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        """Return the moment without its bias to zero, or the same looked at one step ahead."""
        now = 1 - beta**t if group["bias_correction"] else 1.0
        if not ahead:
            return m / now
        after = 1 - beta ** (t + 1) if group["bias_correction"] else 1.0
        return beta * m / after + (1 - beta) * new / now


class Lamb(_AdamMoments):
    """LAMB over numbered tensors."""

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        m, v = state["exp_avg"], state["exp_avg_sq"] = self.moments(state["exp_avg"], state["exp_avg_sq"], g, group)
        r = self.adam_direction(g, m, v, t, group)
        u = r + group["weight_decay"] * x
        ratio = self.lamb_ratio(x, u, r, g, group)
        return self.moved(x, u, r, ratio, t, group), [ratio]

    def adam_direction(self, g: Array, m: Array, v: Array, t: int, group: Options) -> Array:
        mhat, vhat = self.corrected_pair(g, m, v, t, group)
        return mhat / (np.sqrt(vhat) + group["eps"])

    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return self.ratio(x, u, group)

    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        return x - group["lr"] * ratio * u


class Lans(_AdamMoments):
    """LANS over numbered tensors."""

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        g = self.normalised(g, group)
        m, v = state["exp_avg"], state["exp_avg_sq"] = self.moments(state["exp_avg"], state["exp_avg_sq"], g, group)
        r, c = self.directions(x, g, m, v, t, group)
        ratio_r, ratio_c = self.ratio(x, r, group), self.ratio(x, c, group)
        return self.moved(x, r, c, ratio_r, ratio_c, group), [ratio_r, ratio_c]

    def normalised(self, g: Array, group: Options) -> Array:
        norm = norm_of(g, 2)
        return g / norm if norm else g

    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        mhat, vhat = self.corrected_pair(g, m, v, t, group)
        d = np.sqrt(vhat) + group["eps"]
        return mhat / d + group["weight_decay"] * x, g / d + group["weight_decay"] * x

    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        beta1 = group["betas"][0]
        return x - group["lr"] * (beta1 * ratio_r * r + (1 - beta1) * ratio_c * c)


class Lars(Oracle):
    """LARS over numbered tensors, by its three rules."""

    OPTIONS: ClassVar[Options] = {
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "rule": "algorithm1",
        "trust_coefficient": None,
        "nesterov": False,
        "eps": 0.0,
    }
    KEYS = ("momentum_buffer",)

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        d = self.decayed(g, x, group)
        if group["rule"] == "algorithm1":
            return self.first_algorithm(x, d, state, group)
        ratio = self.ratio(x, self.measured(g, d), group)
        mu, inside = group["momentum"], group["rule"] == "2017"
        newest = (group["lr"] if inside else 1.0) * ratio * d
        v = state["momentum_buffer"] = mu * state["momentum_buffer"] + newest
        step = self.looked_ahead(v, newest, group) if group["nesterov"] else v
        return x - (1.0 if inside else group["lr"]) * step, [ratio]

    def first_algorithm(self, x: Array, d: Array, state: State, group: Options) -> tuple[Array, list[float]]:
        m = state["momentum_buffer"] = self.averaged(state["momentum_buffer"], d, group)
        mu = group["momentum"]
        u = mu * m + (1 - mu) * d if group["nesterov"] else m
        ratio = self.ratio(x, u, group)
        return x - group["lr"] * ratio * u, [ratio]

    def decayed(self, g: Array, x: Array, group: Options) -> Array:
        return g + group["weight_decay"] * x

    def averaged(self, m: Array, d: Array, group: Options) -> Array:
        return group["momentum"] * m + (1 - group["momentum"]) * d

    def looked_ahead(self, v: Array, newest: Array, group: Options) -> Array:
        return group["momentum"] * v + newest

    def measured(self, g: Array, d: Array) -> Array:
        return g

    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        c, eps = group["trust_coefficient"], group["eps"]
        if group["rule"] == "algorithm1":
            return (1.0 if c is None else c) * self.phi(x_norm, group) / (u_norm + eps)
        decay = group["weight_decay"]
        return (0.001 if c is None else c) * self.phi(x_norm, group) / (u_norm + decay * x_norm + eps)


class General(Oracle):
    """The general strategy over a base whose direction is a method: here momentum SGD, as torch's."""

    OPTIONS: ClassVar[Options] = {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.01}
    KEYS = ("momentum_buffer",)

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        u = self.base_direction(x, g, state, t, group)
        ratio = self.ratio(x, u, group)
        return self.moved(x, u, ratio, group), [ratio]

    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        d = g + group["weight_decay"] * x
        first, share = t == 1, 1 - group["dampening"]
        state["momentum_buffer"] = d if first else group["momentum"] * state["momentum_buffer"] + share * d
        return state["momentum_buffer"]

    def moved(self, x: Array, u: Array, ratio: float, group: Options) -> Array:
        return x - group["lr"] * ratio * u


class GeneralRMSprop(General):
    """The general strategy over RMSprop, as torch's: eps outside the root, decay in the gradient."""

    OPTIONS: ClassVar[Options] = {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.01}
    KEYS = ("square_avg",)

    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        g = g + group["weight_decay"] * x
        state["square_avg"] = group["alpha"] * state["square_avg"] + (1 - group["alpha"]) * g * g
        return g / (np.sqrt(state["square_avg"]) + group["eps"])


class GeneralAdagrad(General):
    """The general strategy over AdaGrad, as torch's: the rate decays with the steps of the parameter."""

    OPTIONS: ClassVar[Options] = {"lr": 1e-3, "lr_decay": 0.0, "eps": 1e-10, "weight_decay": 0.0}
    KEYS = ("sum",)

    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        g = g + group["weight_decay"] * x
        state["sum"] = state["sum"] + g * g
        return g / (np.sqrt(state["sum"]) + group["eps"]) / (1 + (t - 1) * group["lr_decay"])
