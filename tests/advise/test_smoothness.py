"""Curvature and noise of small networks, against Hessians and per-sample gradients that are made whole."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.advise.smoothness import HessianProducts, Layers, extreme_eigenvalues, measure
from largebatch.recipes.mnist import digits

SAMPLES = 24


class Small(nn.Module):
    """Three layers of which one is used twice, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        once = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.middle(once)))


def network_and_data() -> tuple[Small, Tensor, Tensor]:
    torch.manual_seed(3)
    model = Small().double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model, torch.randn(SAMPLES, 5, dtype=torch.float64), torch.randint(3, (SAMPLES,))


def parts(model: nn.Module, x: Tensor, y: Tensor, size: int) -> tuple[list[Callable[[], Tensor]], list[int]]:
    """Return the losses of parts of so many samples, and their sizes."""

    def loss(at: slice) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(model(x[at]), y[at], reduction="sum") / len(x)

    spans = [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]
    return [loss(span) for span in spans], [span.stop - span.start for span in spans]


def whole_hessian(model: nn.Module, loss: Callable[[], Tensor]) -> np.ndarray:
    layers = list(model.parameters())
    gradients = torch.autograd.grad(loss(), layers, create_graph=True, allow_unused=True)
    flat = torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, layers, strict=True)]
    )
    rows = []
    for entry in flat:
        found = (
            torch.autograd.grad(entry, layers, retain_graph=True, allow_unused=True)
            if entry.requires_grad
            else [None] * len(layers)
        )
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, layers, strict=True)])
        )
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def measured() -> tuple[Layers, np.ndarray]:
    model, x, y = network_and_data()
    losses, sizes = parts(model, x, y, 7)
    whole = whole_hessian(model, lambda: F.cross_entropy(model(x), y))
    return measure(model, losses, sizes, tolerance=1e-4), whole


def spans(sizes: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def test_blocks_have_the_curvature_of_the_exact_hessian(measured: tuple[Layers, np.ndarray]) -> None:
    found, whole = measured
    assert found.names[-1] == "last.bias"
    exact = [np.abs(np.linalg.eigvalsh(whole[at, at])).max() for at in spans(found.sizes)]
    floor = 1e-4 * max(exact)
    assert found.block_curvatures == pytest.approx([max(value, floor) for value in exact], rel=0.01)


def test_layers_are_bounded_together(measured: tuple[Layers, np.ndarray]) -> None:
    found, whole = measured
    scales = np.repeat(1 / np.sqrt(found.block_curvatures), found.sizes)
    exact = np.linalg.eigvalsh(scales[:, None] * whole * scales).max()
    assert found.coupling == pytest.approx(exact, rel=0.01)
    bounded = np.diag(np.repeat(found.constants().curvatures, found.sizes)) - whole
    assert np.linalg.eigvalsh(bounded).min() >= -0.01 * max(found.constants().curvatures)
    optimistic = np.diag(np.repeat(found.constants(optimistic=True).curvatures, found.sizes)) - whole
    assert np.linalg.eigvalsh(optimistic).min() < -0.1 * max(found.constants().curvatures), (
        "and not by their own blocks"
    )


def test_noise_is_that_of_gradients_taken_one_by_one() -> None:
    model, x, y = network_and_data()
    layers = list(model.parameters())
    each = []
    for row in range(SAMPLES):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(x[row : row + 1]), y[row : row + 1]), layers, allow_unused=True
        )
        flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, layers, strict=True)]
        each.append(torch.cat(flat).numpy())
    single = np.stack(each)
    losses, sizes = parts(model, x, y, 1)
    found = measure(model, losses, sizes, most_products=2)
    variances = single.var(axis=0, ddof=1)
    for at, deviation, by_coordinate, norm in zip(
        spans(found.sizes), found.deviations, found.coordinate_deviations, found.gradient_norms, strict=True
    ):
        assert deviation == pytest.approx(math.sqrt(variances[at].sum()), rel=1e-9)
        c4 = math.sqrt(2 / 23) * math.gamma(12) / math.gamma(11.5)
        assert by_coordinate == pytest.approx(np.sqrt(variances[at]).sum() / c4, rel=1e-9)
        assert norm == pytest.approx(np.linalg.norm(single.mean(axis=0)[at]), rel=1e-9)
    assert found.largest_gradient == pytest.approx(np.abs(single).max(), rel=1e-9)
    assert found.loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-12)


def test_it_stops_where_enough_is_known_and_repeats() -> None:
    model, x, y = network_and_data()
    losses, sizes = parts(model, x, y, 12)
    assert measure(model, losses, sizes) == measure(model, losses, sizes)
    calls = 0

    def product(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return v * torch.linspace(-3, 2, 500, dtype=torch.float64)

    low, high = extreme_eigenvalues(product, torch.ones(500, dtype=torch.float64), tolerance=1e-3)
    assert (low, high) == (pytest.approx(-3, rel=0.01), pytest.approx(2, rel=0.01))
    assert calls < 60


def test_a_product_of_a_layer_is_that_of_its_block() -> None:
    model, x, y = network_and_data()
    losses, _ = parts(model, x, y, 10)
    named = dict(model.named_parameters())
    products = HessianProducts(named, losses)
    whole = whole_hessian(model, lambda: F.cross_entropy(model(x), y))
    order = spans(tuple(p.numel() for p in named.values()))
    generator = torch.Generator().manual_seed(0)
    for at, (name, p) in zip(order, named.items(), strict=True):
        v = torch.randn(p.numel(), generator=generator, dtype=torch.float64)
        np.testing.assert_allclose(products.of_layer(name, v).numpy(), whole[at, at] @ v.numpy(), atol=1e-12)
    v = torch.randn(len(whole), generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(products.of_all(v).numpy(), whole @ v.numpy(), atol=1e-12)


def test_a_network_of_a_recipe_is_measured() -> None:
    run = digits(batch=64)
    model = run.task.build_model(0)
    data = run.task.dataset(run.stages[0], 0)
    batches = [run.task.collate([data[0, index] for index in range(at, at + 32)]) for at in (0, 32)]
    losses = [lambda batch=batch: run.task.loss(model, batch)["class"] / 64 for batch in batches]
    found = measure(model, losses, [32, 32], most_products=12)
    assert all(value > 0 for value in found.block_curvatures)
    assert found.coupling >= 0.9
    assert 0 < found.densities().gradient <= 1


class Product(nn.Module):
    """x y: no block curves, both together do."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = (nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (0.5, 2.0))

    def forward(self) -> Tensor:
        return (self.x * self.y).sum()


def test_layers_that_curve_only_together_are_seen() -> None:
    model = Product()
    found = measure(model, [lambda: model() / 2] * 2, [1, 1])
    assert found.block_curvatures == (1.0, 1.0)
    assert found.coupling == pytest.approx(1.0)
    down = measure(model, [lambda: -model.x.square().sum() - model.y.square().sum()] * 2, [1, 1])
    with pytest.raises(ValueError, match="curves upwards in no direction"):
        down.constants()


def test_a_small_upper_end_is_found_beside_a_large_lower_one() -> None:
    spectrum = torch.linspace(-1, 0.01, 2000, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2000, generator=generator, dtype=torch.float64)
    _, high = extreme_eigenvalues(lambda v: spectrum * v, start, most_products=300, tolerance=1e-4, upper=True)
    assert high == pytest.approx(0.01, rel=0.05)
    _, early = extreme_eigenvalues(lambda v: spectrum * v, start, most_products=300)
    assert early != pytest.approx(0.01, rel=0.1)


def test_one_part_has_nothing_to_be_compared_with() -> None:
    model, x, y = network_and_data()
    losses, sizes = parts(model, x, y, SAMPLES)
    with pytest.raises(ValueError, match="1 losses and 1 sizes"):
        measure(model, losses, sizes)
