"""How fast SGD, LARS and LAMB must converge: bounds with explicit constants, proven in docs/convergence.md.

f is bounded below by f*, D = f(x_1) - f*. Its layers have curvatures L_i with H <= blockdiag(L_i I), which
L_i = sum_j ||H_ij|| gives. A batch of b samples has a gradient whose error in layer i has E |delta_i|^2 <=
sigma_i^2 / b, and by coordinates E delta_ij^2 <= sigma_ij^2 / b. phi lies between low and high. Momentum and decay are
zero.
Averages run over the places x_1 ... x_T:

    SGD, eta <= 1 / max L_i
        mean E |grad f|^2                      <= 2 D / (eta T) + eta max_i L_i sum_i sigma_i^2 / b
    LARS
        mean E sum_i |grad_i f|                <= (D / (eta T) + high N + eta high^2 sum_i L_i / 2) / low
                                                  N = 2 sum_i sigma_i / sqrt(b)
    LAMB, beta2 = 0
        mean E sum_i |grad_i f|_1 / sqrt(d_i)  <= the same, N = 2 sum_ij sigma_ij / sqrt(d_i b)
    LAMB, beta2 > 0, |g_ij| <= G
        mean E sum_i |grad_i f|^2 / sqrt(d_i)  <= G / sqrt(1 - beta2) times it, N = sum_ij sigma_ij / sqrt(b)

The rate that makes the first and the last term of a layerwise rule least is eta = sqrt(2 D / (high^2 sum_i L_i T)); of
SGD 1 / max L_i is taken. Source: You et al., ICLR 2020, theorems 2 and 3, which give orders; the constants are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What the bounds depend on."""

    gap: float
    """D = f(x_1) - f*."""
    curvatures: tuple[float, ...]
    """L_i of each layer."""
    deviations: tuple[float, ...]
    """sigma_i of each layer, of one sample."""
    coordinate_deviations: tuple[float, ...]
    """sum_j sigma_ij of each layer, of one sample."""
    sizes: tuple[int, ...]
    """d_i, the parameters of each layer."""
    largest_gradient: float = math.inf
    """G, which no coordinate of a gradient exceeds."""

    def __post_init__(self) -> None:
        lengths = {len(self.curvatures), len(self.deviations), len(self.coordinate_deviations), len(self.sizes)}
        if len(lengths) != 1 or not self.sizes:
            raise ValueError(f"the constants are of {sorted(lengths)} layers, allowed is one number of at least 1")
        for name in ("curvatures", "deviations", "coordinate_deviations"):
            if any(not 0 <= value < math.inf for value in getattr(self, name)):
                raise ValueError(f"{name} are {getattr(self, name)}, allowed are finite numbers from 0 up")
        if not max(self.curvatures) > 0:
            raise ValueError(f"curvatures are {self.curvatures}, allowed are some of which one is above 0")
        if not (0 < self.gap < math.inf and self.largest_gradient > 0):
            raise ValueError(f"gap is {self.gap}, largest_gradient {self.largest_gradient}; both have to be above 0")

    @property
    def total_curvature(self) -> float:
        """sum_i L_i."""
        return math.fsum(self.curvatures)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Between which lengths phi puts the weights of a layer."""

    low: float = 1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"phi lies between {self.low} and {self.high}, allowed is 0 < low <= high")


ONE = Span()


def sgd_lr(of: Constants) -> float:
    """Return 1 / max L_i."""
    return 1 / max(of.curvatures)


def layerwise_lr(of: Constants, steps: int, phi: Span = ONE) -> float:
    """Return sqrt(2 D / (high^2 sum L_i T)), the same for LARS and LAMB."""
    return math.sqrt(2 * of.gap / (phi.high**2 * of.total_curvature * steps))


def sgd_bound(of: Constants, steps: int, batch: float, lr: float) -> float:
    """Bound the mean of E |grad f|^2; ValueError where the rate is above 1 / max L_i."""
    _check(steps, batch, lr)
    largest = max(of.curvatures)
    if lr * largest > 1 + 1e-12:
        raise ValueError(f"lr is {lr}, the bound holds up to 1 / max L_i = {1 / largest}")
    return 2 * of.gap / (lr * steps) + lr * largest * math.fsum(s * s for s in of.deviations) / batch


def lars_bound(of: Constants, steps: int, batch: float, lr: float, phi: Span = ONE) -> float:
    """Bound the mean of E sum_i |grad_i f|."""
    _check(steps, batch, lr)
    return _layerwise(of, steps, lr, phi, 2 * math.fsum(of.deviations) / math.sqrt(batch))


def lamb_sign_bound(of: Constants, steps: int, batch: float, lr: float, phi: Span = ONE) -> float:
    """Bound the mean of E sum_i |grad_i f|_1 / sqrt(d_i), where beta2 is 0."""
    _check(steps, batch, lr)
    return _layerwise(
        of, steps, lr, phi, 2 * math.fsum(_by_root(of.coordinate_deviations, of.sizes)) / math.sqrt(batch)
    )


def lamb_bound(of: Constants, steps: int, batch: float, lr: float, beta2: float, phi: Span = ONE) -> float:
    """Bound the mean of E sum_i |grad_i f|^2 / sqrt(d_i), where beta2 is above 0."""
    _check(steps, batch, lr)
    if not 0 < beta2 < 1:
        raise ValueError(f"beta2 is {beta2}, allowed is more than 0 and less than 1")
    scale = of.largest_gradient / math.sqrt(1 - beta2)
    return scale * _layerwise(of, steps, lr, phi, math.fsum(of.coordinate_deviations) / math.sqrt(batch))


def _check(steps: int, batch: float, lr: float) -> None:
    for name, value in (("steps", steps), ("batch", batch), ("lr", lr)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, allowed is a finite number above 0")


def _layerwise(of: Constants, steps: int, lr: float, phi: Span, noise: float) -> float:
    return (of.gap / (lr * steps) + phi.high * noise + lr * phi.high**2 * of.total_curvature / 2) / phi.low


def _by_root(values: Sequence[float], sizes: Sequence[int]) -> list[float]:
    return [value / math.sqrt(size) for value, size in zip(values, sizes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Density:
    """How evenly something lies over h layers of d parameters together: 1 / h for one layer alone, 1 for all alike.

    In the paper's letters psi_g = density h^2 / d of the gradient's norms, psi_L = density^2 h^4 / d^2 with
    density = sum_i L_i / (h max L_i), psi_sigma = density h^2 / d of the deviations.
    """

    gradient: float
    """(sum_i |grad_i f|)^2 / (h |grad f|^2)."""
    curvature: float
    """sum_i L_i / (h max L_i)."""
    deviation: float
    """(sum_i sigma_i)^2 / (h sum_i sigma_i^2)."""


def density(norms: Sequence[float]) -> float:
    """Return (sum_i n_i)^2 / (h sum_i n_i^2) of norms of layers; 1 where all are zero."""
    squares = math.fsum(n * n for n in norms)
    return math.fsum(norms) ** 2 / (len(norms) * squares) if squares else 1.0


def densities(of: Constants, gradient_norms: Sequence[float]) -> Density:
    """Return the three densities at a place with such gradient norms of layers."""
    return Density(
        gradient=density(gradient_norms),
        curvature=of.total_curvature / (len(of.sizes) * max(of.curvatures)),
        deviation=density(of.deviations),
    )


def lars_over_sgd(of: Constants, gradient_norms: Sequence[float], steps: int, batch: float) -> float:
    """Return LARS' bound over SGD's at their own rates, both of (mean E |grad f|)^2: below 1 LARS should win.

    LARS' bounds sum_i |grad_i f|, of which |grad f| is the share 1 / sqrt(h density), taken from one place for all;
    SGD's of the mean of squares is one of the square of the mean too. phi is taken for 1.
    """
    if len(gradient_norms) != len(of.sizes):
        raise ValueError(f"there are {len(gradient_norms)} gradient norms, allowed are {len(of.sizes)}, one a layer")
    lars = lars_bound(of, steps, batch, layerwise_lr(of, steps))
    spread = len(of.sizes) * density(gradient_norms)
    return lars**2 / spread / sgd_bound(of, steps, batch, sgd_lr(of))
