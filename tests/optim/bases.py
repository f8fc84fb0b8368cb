"""Bases for the general strategy: torch's, third parties', and helpers to run them."""

from typing import Any

import torch
from peers import timm_lion
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)


def parameters(dtype: torch.dtype = torch.float64, count: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(4, 3, generator=generator).to(dtype)) for _ in range(count)]


def run(optimizer: Any, made: list[nn.Parameter], steps: int = 50, size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(step / 10, (51 - step) / 41)
        for p in made:
            p.grad = (size * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in made]


class EachParameter(SGD):
    """A base with a rule of its own, `move_`, for each parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move_(p, p.grad, group)

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class Lion(Optimizer):
    """A base from elsewhere: the sign of an average, with a decay of its own."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.sub_(group["lr"] * (0.1 * p + (0.9 * m + 0.1 * p.grad).sign()))
                    m.lerp_(p.grad, 0.01)


BASES: dict[str, Any] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam L2": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    "AdamW amsgrad": lambda p: AdamW(p, lr=0.1, amsgrad=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
    "RMSprop": lambda p: RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Adamax": lambda p: Adamax(p, lr=0.1),
    "Adadelta": lambda p: Adadelta(p, lr=0.1),
    "NAdam": lambda p: NAdam(p, lr=0.1),
    "RAdam": lambda p: RAdam(p, lr=0.1),
    "Muon": lambda p: Muon(p, lr=0.1),
    "timm Lion": lambda p: timm_lion()(p, lr=0.1),
    "own": lambda p: Lion(p, lr=0.1),
}
