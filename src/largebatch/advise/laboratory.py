"""Problems with known constants, on which the three rules are run and held against their bounds.

    f(x) = sum_k a_k (1 - cos(w_k . (x - c))),   a_k > 0

has many minima and saddles, f* = 0, and H = sum_k a_k cos(.) w_k w_k' lies between -M and M, M = sum_k a_k w_k w_k'.
So L_i = sum_j ||M_ij|| is proven, over all x, and no coordinate of the gradient exceeds max_j sum_k a_k |w_kj|. The
noise of a batch of b is uniform in each coordinate with standard deviation sigma_ij / sqrt(b), so that G is known too.

All problems of a set are run side by side: arrays are [problems, repetitions, d].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from largebatch.advise.bounds import (
    Constants,
    Span,
    lamb_bound,
    lamb_sign_bound,
    lars_bound,
    layerwise_lr,
    sgd_bound,
    sgd_lr,
)

Array = NDArray[np.float64]
RuleName = Literal["sgd", "lars", "lamb-sign", "lamb"]
RULES: tuple[RuleName, ...] = ("sgd", "lars", "lamb-sign", "lamb")
BETA2 = 0.9


@dataclass(frozen=True, kw_only=True)
class Problems:
    """A set of problems of one shape."""

    amplitudes: Array
    """a_k, [problems, terms]."""
    directions: Array
    """w_k, [problems, terms, d]."""
    centres: Array
    """c, [problems, d]."""
    starts: Array
    """x_1, [problems, d]."""
    deviations: Array
    """sigma_ij of one sample, [problems, d]."""
    sizes: tuple[int, ...]
    """d_i of the layers."""
    phi: Span

    def __len__(self) -> int:
        return len(self.amplitudes)

    @property
    def edges(self) -> list[int]:
        """Where the layers begin."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).tolist()

    def values(self, x: Array) -> Array:
        """Return f, [problems, repetitions]."""
        return np.einsum("pk,prk->pr", self.amplitudes, 1 - np.cos(self._phases(x)))

    def gradients(self, x: Array) -> Array:
        """Return the gradient of f, [problems, repetitions, d]."""
        weighted = self.amplitudes[:, None, :] * np.sin(self._phases(x))
        return np.matmul(weighted, self.directions)

    def _phases(self, x: Array) -> Array:
        return np.matmul(x - self.centres[:, None, :], self.directions.transpose(0, 2, 1))

    def majorants(self) -> Array:
        """Return M, [problems, d, d]."""
        return np.einsum("pk,pki,pkj->pij", self.amplitudes, self.directions, self.directions)

    def curvatures(self, *, coupled: bool = True) -> Array:
        """Return L_i = sum_j ||M_ij||, [problems, layers]; if not coupled ||M_ii||, which proves nothing."""
        majorants, ends = self.majorants(), np.cumsum(self.sizes)
        spans = [slice(int(end) - size, int(end)) for end, size in zip(ends, self.sizes, strict=True)]
        norms = np.stack(
            [
                np.stack([np.linalg.norm(majorants[:, one, other], ord=2, axis=(1, 2)) for other in spans], axis=-1)
                for one in spans
            ],
            axis=1,
        )
        return norms.sum(axis=2) if coupled else np.diagonal(norms, axis1=1, axis2=2).copy()

    def constants(self, batch: float, *, coupled: bool = True) -> list[Constants]:
        """Return what the bounds take, of each problem, where steps are of so many samples."""
        gaps = self.values(self.starts[:, None, :])[:, 0]
        curvatures = self.curvatures(coupled=coupled)
        steepest = np.einsum("pk,pkj->pj", self.amplitudes, np.abs(self.directions))
        largest = (steepest + math.sqrt(3 / batch) * self.deviations).max(axis=1)
        squares = np.add.reduceat(self.deviations**2, self.edges, axis=1)
        sums = np.add.reduceat(self.deviations, self.edges, axis=1)
        return [
            Constants(
                gap=float(gaps[p]),
                curvatures=tuple(curvatures[p].tolist()),
                deviations=tuple(np.sqrt(squares[p]).tolist()),
                coordinate_deviations=tuple(sums[p].tolist()),
                sizes=self.sizes,
                largest_gradient=float(largest[p]),
            )
            for p in range(len(self))
        ]


def random_problems(number: int, seed: int, *, sizes: tuple[int, ...] = (9, 6, 4, 5), terms: int = 24) -> Problems:
    """Draw problems that differ in the curvature of their layers, in coupling, noise and sparsity.

    Curvatures of layers differ by up to 1,000; terms reach over all layers or lie in one, in a share that differs; a
    third of the problems has gradients and noise in some layers only.
    """
    generator = np.random.default_rng(seed)
    d, layers = sum(sizes), len(sizes)
    owner = np.repeat(np.arange(layers), sizes)
    frequencies = 10 ** generator.uniform(-0.75, 0.75, (number, layers))
    directions = generator.normal(size=(number, terms, d)) * frequencies[:, owner][:, None, :] / math.sqrt(d)
    alone = generator.random((number, terms)) < generator.random((number, 1))
    home = generator.integers(layers, size=(number, terms))
    directions *= np.where(alone[..., None], owner == home[..., None], True)
    quiet = (generator.random((number, layers)) < 0.5) & (generator.random((number, 1)) < 1 / 3)
    quiet[:, 0] = False
    directions *= np.where(quiet, 1e-2, 1.0)[:, owner][:, None, :]
    amplitudes = generator.gamma(1.0, 1.0, (number, terms)) / terms
    centres = generator.normal(size=(number, d))
    starts = centres + generator.normal(size=(number, d)) * 10 ** generator.uniform(-1, 0.5, (number, 1))
    noise = 10 ** generator.uniform(-2, 1, (number, 1)) * np.where(quiet, 1e-2, 1.0)[:, owner]
    steep = np.einsum("pk,pkj->pj", amplitudes, np.abs(directions))
    return Problems(
        amplitudes=amplitudes,
        directions=directions,
        centres=centres,
        starts=starts,
        deviations=noise * (steep + 1e-3 * steep.max(axis=1, keepdims=True)),
        sizes=sizes,
        phi=Span(low=0.5, high=1.5),
    )


def designed_problems(
    number: int, seed: int, *, curvature_spread: float, gradient_spread: float, noise: float = 1.0, layers: int = 8
) -> Problems:
    """Draw problems whose layers do not touch, with chosen curvatures and gradients.

    Layer i has L_i = curvature_spread^-u_i and at the start a gradient of norm g_i = gradient_spread^-v_i, u and v
    being evenly spaced from 0 to 1 in random orders: a_k = g_i^2 / L_i and |w_k| = L_i / g_i, but for the phase. Noise
    is the same in all layers.

    Args:
        number: of problems.
        seed: of their draws.
        curvature_spread: largest L_i over the least.
        gradient_spread: largest g_i over the least.
        noise: sigma_i of one sample over the root mean square of the g_i.
        layers: h, of 4 parameters each.
    """
    generator = np.random.default_rng(seed)
    size, phase = 4, 1.0
    grid = np.linspace(0, 1, layers)
    curvatures = curvature_spread ** -np.stack([generator.permutation(grid) for _ in range(number)])
    norms = gradient_spread ** -np.stack([generator.permutation(grid) for _ in range(number)])
    each = norms / (math.sin(phase) * math.sqrt(size))  # of one term
    directions = np.zeros((number, layers * size, layers * size))
    frequencies = np.repeat(curvatures / each, size, axis=1)
    directions[:, np.arange(layers * size), np.arange(layers * size)] = frequencies
    signs = generator.choice([-1.0, 1.0], (number, layers * size))
    deviation = noise * np.sqrt((norms**2).mean(axis=1, keepdims=True)) / math.sqrt(size)
    return Problems(
        amplitudes=np.repeat(each**2 / curvatures, size, axis=1),
        directions=directions,
        centres=np.zeros((number, layers * size)),
        starts=signs * phase / frequencies,
        deviations=np.repeat(deviation, layers * size, axis=1),
        sizes=(size,) * layers,
        phi=Span(),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule came to on each problem."""

    measured: Array
    """The mean that the rule's bound is of, over steps and repetitions, [problems]."""
    squared_gradients: Array
    """The mean of |grad f|^2, [problems]."""
    gaps: Array
    """The mean of f(x) - f* after the last step, [problems]."""


def own_lr(rule: RuleName, of: Constants, steps: int, phi: Span) -> float:
    """Return the rate at which a rule's bound is stated."""
    return sgd_lr(of) if rule == "sgd" else layerwise_lr(of, steps, phi)


def bound(rule: RuleName, of: Constants, steps: int, batch: float, lr: float, phi: Span) -> float:
    """Return a rule's bound."""
    if rule == "sgd":
        return sgd_bound(of, steps, batch, lr)
    if rule == "lars":
        return lars_bound(of, steps, batch, lr, phi)
    if rule == "lamb-sign":
        return lamb_sign_bound(of, steps, batch, lr, phi)
    return lamb_bound(of, steps, batch, lr, BETA2, phi)


def run(
    problems: Problems,
    rule: RuleName,
    steps: int,
    batch: float,
    lrs: Array,
    *,
    decays: bool = False,
    repetitions: int = 4,
    seed: int = 0,
) -> Outcome:
    """Take steps of a rule from the problems' starts.

    Args:
        problems: the set.
        rule: which.
        steps: T.
        batch: samples in a step.
        lrs: a rate for each problem.
        decays: whether the rate falls in a line to zero, which the bounds know nothing of.
        repetitions: of each problem, with other noise.
        seed: of the noise.
    """
    generator = np.random.default_rng(seed)
    x = np.repeat(problems.starts[:, None, :], repetitions, axis=1)
    lr, width = lrs[:, None, None], problems.deviations[:, None, :] * math.sqrt(3 / batch)
    move, measure = _MOVES[rule], _MEASURES[rule]
    second = np.zeros_like(x)
    measured = squared = 0.0
    for step in range(1, steps + 1):
        true = problems.gradients(x)
        measured += measure(problems, true).mean(axis=1)
        squared += (true**2).sum(axis=2).mean(axis=1)
        g = true + width * generator.uniform(-1, 1, x.shape)
        second = BETA2 * second + (1 - BETA2) * g**2
        factor = 1 - (step - 1) / steps if decays else 1.0
        x = x - factor * lr * move(problems, x, g, second / (1 - BETA2**step))
    return Outcome(
        measured=np.asarray(measured) / steps,
        squared_gradients=np.asarray(squared) / steps,
        gaps=problems.values(x).mean(axis=1),
    )


def _sgd(_: Problems, __: Array, g: Array, ___: Array) -> Array:
    return g


def _lars(of: Problems, x: Array, g: Array, _: Array) -> Array:
    return _phi(of, x) * _unit(of, g)


def _lamb_sign(of: Problems, x: Array, g: Array, _: Array) -> Array:
    return _phi(of, x) * _unit(of, np.sign(g))


def _lamb(of: Problems, x: Array, g: Array, second: Array) -> Array:
    root = np.sqrt(second)
    return _phi(of, x) * _unit(of, np.divide(g, root, out=np.zeros_like(g), where=root > 0))


def _norms(of: Problems, a: Array) -> Array:
    """Return the norms of layers, [problems, repetitions, layers]."""
    return np.sqrt(np.add.reduceat(a**2, of.edges, axis=2))


def _phi(of: Problems, x: Array) -> Array:
    return np.repeat(np.clip(_norms(of, x), of.phi.low, of.phi.high), of.sizes, axis=2)


def _unit(of: Problems, u: Array) -> Array:
    norms = np.repeat(_norms(of, u), of.sizes, axis=2)
    return np.divide(u, norms, out=np.zeros_like(u), where=norms > 0)


_MOVES: dict[RuleName, Callable[[Problems, Array, Array, Array], Array]] = {
    "sgd": _sgd,
    "lars": _lars,
    "lamb-sign": _lamb_sign,
    "lamb": _lamb,
}


def _of_layers(of: Problems, a: Array) -> Array:
    return np.add.reduceat(a, of.edges, axis=2) / np.sqrt(np.array(of.sizes))


_MEASURES: dict[RuleName, Callable[[Problems, Array], Array]] = {
    "sgd": lambda of, g: (g**2).sum(axis=2),
    "lars": lambda of, g: _norms(of, g).sum(axis=2),
    "lamb-sign": lambda of, g: _of_layers(of, np.abs(g)).sum(axis=2),
    "lamb": lambda of, g: _of_layers(of, g**2).sum(axis=2),
}


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The power of T with which a measure falls."""

    mean: float
    interval: tuple[float, float]
    """Of the mean over problems, at 95 %."""
    problems: int


def slopes(steps: tuple[int, ...], measured: Array) -> Slope:
    """Fit log(measured) = a + slope log(T) to each problem, and average the slopes.

    Args:
        steps: the values of T, [runs].
        measured: [runs, problems].
    """
    logs = np.log(np.array(steps, np.float64))
    centred = logs - logs.mean()
    each = centred @ np.log(measured) / (centred @ centred)
    half = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each))
    mean = float(each.mean())
    return Slope(mean=mean, interval=(mean - half, mean + half), problems=len(each))
