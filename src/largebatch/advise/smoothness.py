"""The constants of the bounds, measured on a model at one place: curvature, noise, and how both lie over the layers.

Curvature comes from products of the Hessian H with vectors, two backward passes each:

    l_i = ||H_ii||                       by Lanczos' method on a block of H: optimistic, for layers are coupled
    c   = the largest eigenvalue of B^(-1/2) H B^(-1/2), B = blockdiag(l_i I)
    L_i = c l_i                          l_i being 1e-4 of the largest at least

Then H <= blockdiag(L_i I), see docs/convergence.md, up to the tolerance: Lanczos' method has eigenvalues from within.

Lanczos' method is run with its three-term recurrence: of the vectors that it has been through none is kept, so that
it takes three of the size of what it looks at. What that loses, orthogonality to old ones, repeats eigenvalues and does
not move the outermost. It approaches them from within: it is stopped where the last steps changed them little.

Noise comes from the gradients of the parts of a batch, as in `largebatch.noise_scale`, by layer and by coordinate.

All of it is of one place and one batch, where the theorems want it of all: what is measured at a checkpoint says how
things are there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from largebatch.advise.bounds import Constants, Density, densities
from largebatch.noise_scale import from_parts

_LEAST_SHARE = 1e-4
"""Blocks without curvature of their own, such as biases of attention's keys, may still be coupled to others."""

Product = Callable[[Tensor], Tensor]
Loss = Callable[[], Tensor]
"""Runs the model over a part of the batch, and returns what that adds to the batch's mean loss."""


def extreme_eigenvalues(
    product: Product, start: Tensor, *, most_products: int = 60, tolerance: float = 1e-3, upper: bool = False
) -> tuple[float, float]:
    """Return the least and the largest eigenvalue of a symmetric operator, by Lanczos' method.

    Args:
        product: v -> A v, both one-dimensional.
        start: any vector that no eigenvector is orthogonal to, such as a random one.
        most_products: stop after so many.
        tolerance: stop where three more products change neither by more than this, relative to the larger in size.
        upper: stop by the largest alone, relative to itself.
    """
    q = start / torch.linalg.vector_norm(start)
    before, beta = torch.zeros_like(q), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    ends: list[tuple[float, float]] = []
    for _ in range(min(most_products, len(q))):
        w = product(q)
        alpha = float(torch.dot(w, q))
        w = w - alpha * q - beta * before
        alphas.append(alpha)
        ends.append(_ends(alphas, betas))
        beta = float(torch.linalg.vector_norm(w))
        size = max(map(abs, ends[-1]))
        if beta <= 1e-7 * size or _settled(ends, tolerance, upper=upper):
            break
        betas.append(beta)
        before, q = q, w / beta
    return ends[-1]


def _ends(alphas: Sequence[float], betas: Sequence[float]) -> tuple[float, float]:
    """Return the outermost eigenvalues of the tridiagonal matrix that Lanczos' method has made so far."""
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        beside = torch.tensor(betas, dtype=torch.float64)
        matrix = matrix + torch.diag(beside, 1) + torch.diag(beside, -1)
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])


def _settled(ends: Sequence[tuple[float, float]], tolerance: float, *, upper: bool) -> bool:
    if len(ends) < 7:
        return False
    if upper:
        return abs(ends[-1][1] - ends[-4][1]) <= tolerance * abs(ends[-1][1])
    allowed = tolerance * max(map(abs, ends[-1]))
    return all(abs(now - then) <= allowed for now, then in zip(ends[-1], ends[-4], strict=True))


class HessianProducts:
    """Products of the Hessian of a batch's mean loss with vectors.

    The gradient's graph is made anew for each part and product: kept, it would hold the activations of the whole batch.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], losses: Sequence[Loss]) -> None:
        """Take the layers, by name, and the parts of the batch."""
        self.parameters = dict(parameters)
        self._losses = losses

    def of_layer(self, name: str, vector: Tensor) -> Tensor:
        """Return H_ii v, both flat."""
        p = self.parameters[name]
        return self._products([p], [vector.view_as(p)])[0].flatten()

    def of_all(self, vector: Tensor) -> Tensor:
        """Return H v, both flat, layer after layer."""
        layers = list(self.parameters.values())
        parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in layers]), layers, strict=True)]
        return torch.cat([part.flatten() for part in self._products(layers, parts)])

    def _products(self, layers: list[nn.Parameter], vectors: list[Tensor]) -> list[Tensor]:
        totals = [torch.zeros_like(p) for p in layers]
        for loss in self._losses:
            # Fused attention has no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                gradients = torch.autograd.grad(loss(), layers, create_graph=True, allow_unused=True)
                pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g is not None and g.requires_grad]
                if not pairs:
                    continue
                along = torch.stack([(g * v).sum() for g, v in pairs]).sum()
                found = torch.autograd.grad(along, layers, allow_unused=True)
            for total, product in zip(totals, found, strict=True):
                if product is not None:
                    total += product
        return totals


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What was measured, by layer, in the model's order."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    block_curvatures: tuple[float, ...]
    """l_i = ||H_ii||, or 1e-4 of the largest where it is less."""
    coupling: float
    """c."""
    gradient_norms: tuple[float, ...]
    """|grad_i f|, of the whole batch."""
    deviations: tuple[float, ...]
    """sigma_i of one sample."""
    coordinate_deviations: tuple[float, ...]
    """sum_j sigma_ij of one sample; that the root of a variance of few parts is too small is corrected for as of normal
    numbers (c4)."""
    largest_gradient: float
    """The largest coordinate of a part's mean gradient that was seen: no bound on others, nor on smaller parts."""
    loss: float

    def constants(self, *, optimistic: bool = False) -> Constants:
        """Return what the bounds take, with f* = 0 and so D = f; optimistic is l_i for L_i.

        Raises:
            ValueError: the loss curves upwards in no direction here, or is not above 0.
        """
        if not self.coupling > 0:
            raise ValueError(f"c is {self.coupling}: the loss curves upwards in no direction here, which has no bound")
        scale = 1.0 if optimistic else self.coupling
        return Constants(
            gap=self.loss,
            curvatures=tuple(scale * value for value in self.block_curvatures),
            deviations=self.deviations,
            coordinate_deviations=self.coordinate_deviations,
            sizes=self.sizes,
            largest_gradient=self.largest_gradient or math.inf,
        )

    def densities(self) -> Density:
        """Return how evenly gradient, curvature and noise lie over the layers."""
        return densities(self.constants(), self.gradient_norms)


def measure(
    model: nn.Module,
    losses: Sequence[Loss],
    samples: Sequence[int],
    *,
    most_products: int = 60,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Layers:
    """Measure curvature and noise of a model where it is; parameters that need no gradient are left out.

    Takes about (layers + 1) times twenty products, each of two backward passes over the batch.

    Args:
        model: without dropout, or in eval mode: its loss must be the same each time.
        losses: one for each part of the batch; together they are its mean loss.
        samples: of each part.
        most_products: for each layer, and for all together.
        tolerance: relative, of the eigenvalues.
        seed: of the vectors to begin with.

    Raises:
        ValueError: fewer than two parts, of which no noise can be told.
    """
    if len(losses) < 2 or len(losses) != len(samples):
        raise ValueError(
            f"there are {len(losses)} losses and {len(samples)} sizes, allowed is 2 parts or more, as many"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    products = HessianProducts(parameters, losses)
    device = next(iter(parameters.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    blocks = []
    for name, p in parameters.items():
        start = torch.randn(p.numel(), generator=generator, device=device, dtype=p.dtype)
        ends = extreme_eigenvalues(
            lambda v, name=name: products.of_layer(name, v), start, most_products=most_products, tolerance=tolerance
        )
        blocks.append(max(map(abs, ends)))
    # Where no block has any, as of x y, all are taken for alike: c is then the curvature.
    blocks = [max(block, _LEAST_SHARE * max(blocks)) if max(blocks) > 0 else 1.0 for block in blocks]
    noise = _noise(parameters, losses, samples)
    return Layers(
        names=tuple(parameters),
        sizes=tuple(p.numel() for p in parameters.values()),
        block_curvatures=tuple(blocks),
        coupling=_coupling(products, blocks, generator, most_products, tolerance),
        gradient_norms=noise.gradient_norms,
        deviations=noise.deviations,
        coordinate_deviations=noise.coordinate_deviations,
        largest_gradient=noise.largest_gradient,
        loss=noise.loss,
    )


def _coupling(
    products: HessianProducts, blocks: Sequence[float], generator: torch.Generator, most: int, tolerance: float
) -> float:
    """Return c; not above 0 where f curves upwards nowhere."""
    scales = torch.cat(
        [
            torch.full_like(p, 1 / math.sqrt(block) if block > 0 else 0.0).detach().flatten()
            for p, block in zip(products.parameters.values(), blocks, strict=True)
        ]
    )
    start = torch.randn(len(scales), generator=generator, device=scales.device, dtype=scales.dtype)
    _, largest = extreme_eigenvalues(
        lambda v: scales * products.of_all(scales * v),
        start,
        most_products=most,
        tolerance=tolerance,
        upper=True,
    )
    return largest


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """What one backward pass over each part tells, as `Layers` has it."""

    gradient_norms: tuple[float, ...]
    deviations: tuple[float, ...]
    coordinate_deviations: tuple[float, ...]
    largest_gradient: float
    loss: float


def _noise(parameters: Mapping[str, nn.Parameter], losses: Sequence[Loss], samples: Sequence[int]) -> _Noise:
    layers = list(parameters.values())
    wholes, squares = [torch.zeros_like(p) for p in layers], [torch.zeros_like(p) for p in layers]
    largest = total_loss = 0.0
    total = sum(samples)
    for loss, count in zip(losses, samples, strict=True):
        value = loss()
        total_loss += float(value.detach())
        for place, g in enumerate(torch.autograd.grad(value, layers, allow_unused=True)):
            if g is not None:
                wholes[place] += g
                squares[place] += g.square()
                largest = max(largest, float(g.abs().max()) * total / count)
    squared_sizes = sum(count**2 for count in samples)
    share = squared_sizes / total**2
    of_layers = [
        from_parts(total, squared_sizes, float(s.sum(dtype=torch.float64)), float(g.square().sum(dtype=torch.float64)))
        for g, s in zip(wholes, squares, strict=True)
    ]
    variances = [
        (total * (s - share * g.square()) / (1 - share)).clamp(min=0) for g, s in zip(wholes, squares, strict=True)
    ]
    n = len(losses)
    c4 = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    return _Noise(
        gradient_norms=tuple(float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in wholes),
        deviations=tuple(math.sqrt(max(one.covariance_trace, 0.0)) for one in of_layers),
        coordinate_deviations=tuple(float(v.sqrt().sum(dtype=torch.float64)) / c4 for v in variances),
        largest_gradient=largest,
        loss=total_loss,
    )
