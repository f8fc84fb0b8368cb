"""Steps that autograd sees: their derivatives against finite differences."""

from typing import Any

import pytest
import torch
from rules import MAKERS
from torch import Tensor

STATES = {
    "LAMB": ("exp_avg", "exp_avg_sq"),
    "LANS": ("exp_avg", "exp_avg_sq"),
    "LARS": ("momentum_buffer",),
    "LARS 2017": ("momentum_buffer",),
    "LARS outside": ("momentum_buffer",),
    "Layerwise AdamW": ("exp_avg", "exp_avg_sq"),
    "Layerwise SGD": ("momentum_buffer",),
}
"""The state tensors whose derivatives are tried too, in the order of their values."""
OPTIONS: dict[str, dict[str, Any]] = {
    "LAMB": {"weight_decay": 0.1, "max_grad_norm": 0.5, "nesterov": "both"},
    "LANS": {"weight_decay": 0.1, "stacked": (0, 2)},
    "LARS": {"weight_decay": 0.1, "max_grad_norm": 0.5, "nesterov": True},
    "LARS 2017": {"weight_decay": 0.1, "trust_coefficient": 0.3, "eps": 0.1},
    "LARS outside": {"weight_decay": 0.1, "trust_coefficient": 0.3, "norm": 1, "nesterov": True},
    "Layerwise AdamW": {"weight_decay": 0.1, "max_grad_norm": 0.5},
    "Layerwise SGD": {"weight_decay": 0.1, "max_grad_norm": 0.5},
}


@pytest.mark.parametrize("name", STATES)
def test_differentiable_steps_have_the_right_gradient(name: str) -> None:
    torch.manual_seed(3)
    g = torch.randn(2, 3, dtype=torch.float64)

    def moved(x: Tensor, g: Tensor, lr: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        x = x.clone()
        x.grad = g
        optimizer = MAKERS[name]([x], differentiable=True, **OPTIONS[name])
        optimizer.param_groups[0]["lr"] = lr
        counts = {"step": torch.tensor(3.0)} if len(STATES[name]) == 2 else {}
        optimizer.state[x] = {**counts, **{key: a.clone() for key, a in zip(STATES[name], states, strict=True)}}
        optimizer.step()
        assert not any(ratio.requires_grad for ratio in optimizer.trust_ratios().values())
        return (x, *(optimizer.state[x][key] for key in STATES[name]))

    states = [0.1 * g, 0.1 + g * g][: len(STATES[name])]
    inputs = [torch.randn(2, 3, dtype=torch.float64), g, torch.tensor(0.1, dtype=torch.float64), *states]
    assert torch.autograd.gradcheck(moved, [a.clone().requires_grad_() for a in inputs])


@pytest.mark.parametrize("name", STATES)
def test_two_steps_in_a_row_can_be_differentiated(name: str) -> None:
    """Both the learning rate of the first step and the start are seen through the second."""

    def loss(lr: Tensor, start: Tensor) -> Tensor:
        x = start.clone()
        optimizer = MAKERS[name]([x], differentiable=True)
        optimizer.param_groups[0]["lr"] = lr
        for factor in (1.0, 2.0):
            x.grad = factor * x.detach() ** 3 + 1
            optimizer.step()
        return (x**2).sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(loss(lr, start), (lr, start))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", STATES)
def test_a_differentiable_step_of_a_zero_layer_has_a_finite_gradient(name: str) -> None:
    g = torch.ones(3, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = start.clone()
    moved.grad = g
    MAKERS[name]([moved], lr=0.1, differentiable=True).step()
    # torch's SGD detaches the buffer that it makes of its first gradient.
    for gradient in torch.autograd.grad(moved.sum(), (start, g), allow_unused=name == "Layerwise SGD"):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", ["LARS", "LARS 2017", "Layerwise SGD", "LAMB"])
def test_a_differentiable_step_along_a_zero_direction_has_a_finite_gradient(name: str) -> None:
    start = torch.ones(3, dtype=torch.float64, requires_grad=True)
    g = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = start.clone()
    moved.grad = g * 1
    MAKERS[name]([moved], lr=0.1, differentiable=True, weight_decay=0.0).step()
    (gradient,) = torch.autograd.grad(moved.sum(), start)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", STATES)
def test_otherwise_autograd_does_not_see_the_step(name: str) -> None:
    x = torch.nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3, requires_grad=True)
    optimizer = MAKERS[name]([x], lr=0.1)
    optimizer.step()
    assert x.is_leaf
    assert all(not value.requires_grad for value in optimizer.state[x].values())
