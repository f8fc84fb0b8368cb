"""Optimizers as choices of a run: frozen options that the command line can override, and that build for a model."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from largebatch.optim import LAMB, LARS, Layerwise, layer_groups


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """LAMB over two kinds of parameters: matrices decay and adapt, biases and norm layers do neither."""

    name: ClassVar[str] = "LAMB"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment; a stage may have its own."""
    eps: float = 1e-6
    """Added to the root of the second moment, outside the root."""
    weight_decay: float = 0.01
    """Decay inside the direction and inside its norm."""
    bias_correction: bool = True
    """Correct the moments for their start at zero, as versions 4 and 5 of the paper do."""
    norm: Literal["1", "2", "inf"] = "2"
    """Norm of weights and direction in the ratio."""
    nesterov: Literal["none", "first", "both"] = "none"
    """Look one step ahead: with the first moment is N-LAMB, with both NN-LAMB."""
    max_grad_norm: float | None = 1.0
    """Clip the global l2 norm of the gradient to this; None switches it off."""
    foreach: bool | None = None
    """Update many tensors in one operation; None takes what is faster."""

    def build(self, model: nn.Module) -> LAMB:
        """Return LAMB over the model's parameters, by name; the loop sets the learning rate before each step."""
        return _lamb(
            self,
            layer_groups(model, weight_decay=self.weight_decay),
            norm="inf" if self.norm == "inf" else int(self.norm),
            nesterov=None if self.nesterov == "none" else self.nesterov,
        )


@dataclass(frozen=True, kw_only=True)
class Adamw:
    """AdamW: LAMB's moments and direction, all trust ratios at 1. Matrices decay, biases and norm layers do not."""

    name: ClassVar[str] = "AdamW"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment; a stage may have its own."""
    eps: float = 1e-6
    """Added to the root of the second moment, outside the root."""
    weight_decay: float = 0.01
    """Decoupled decay."""
    bias_correction: bool = True
    """Correct the moments for their start at zero; BERT's own fine-tuning did not."""
    max_grad_norm: float | None = 1.0
    """Clip the global l2 norm of the gradient to this; None switches it off."""
    foreach: bool | None = None
    """Update many tensors in one operation; None takes what is faster."""

    def build(self, model: nn.Module) -> LAMB:
        """Return the optimizer over the model's parameters, by name; the loop sets the rate before each step."""
        return _lamb(self, _not_adapted(model, self.weight_decay))


@dataclass(frozen=True, kw_only=True)
class Lars:
    """LARS: matrices decay and adapt, biases and norm layers do neither."""

    name: ClassVar[str] = "LARS"

    rule: Literal["algorithm1", "2017", "2017-lr-outside"] = "algorithm1"
    """The paper's algorithm 1, or the rule of 2017 with the rate inside or outside of the momentum."""
    momentum: float = 0.9
    """Decay rate of the momentum."""
    weight_decay: float = 1e-4
    """Added to the gradient, times the weights."""
    trust_coefficient: float | None = None
    """Factor of the ratio; None is 1 for algorithm 1 and 0.001 for 2017."""
    nesterov: bool = False
    """Go one step ahead of the momentum."""
    max_grad_norm: float | None = None
    """Clip the global l2 norm of the gradient to this; None switches it off."""

    def build(self, model: nn.Module) -> LARS:
        """Return LARS over the model's parameters, by name; the loop sets the learning rate before each step."""
        return LARS(
            layer_groups(model, weight_decay=self.weight_decay),
            lr=0.0,
            momentum=self.momentum,
            rule=self.rule,
            trust_coefficient=self.trust_coefficient,
            nesterov=self.nesterov,
            max_grad_norm=self.max_grad_norm,
        )


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """SGD with momentum, v <- mu v + g + decay x, x <- x - lr v: LARS of 2017, all ratios at 1. Matrices decay."""

    name: ClassVar[str] = "SGD with momentum"

    momentum: float = 0.9
    """Decay rate of the momentum; 0 is plain SGD."""
    weight_decay: float = 1e-4
    """Added to the gradient, times the weights."""
    nesterov: bool = False
    """Go one step ahead of the momentum."""
    max_grad_norm: float | None = None
    """Clip the global l2 norm of the gradient to this; None switches it off."""

    def build(self, model: nn.Module) -> LARS:
        """Return the optimizer over the model's parameters, by name; the loop sets the rate before each step."""
        return LARS(
            _not_adapted(model, self.weight_decay),
            lr=0.0,
            momentum=self.momentum,
            rule="2017-lr-outside",
            nesterov=self.nesterov,
            max_grad_norm=self.max_grad_norm,
        )


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with the decay added to the gradient, of matrices alone."""

    name: ClassVar[str] = "Adam"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment; a stage may have its own."""
    eps: float = 1e-8
    """Added to the root of the second moment, outside the root."""
    weight_decay: float = 1e-4
    """Added to the gradient, times the weights."""
    max_grad_norm: float | None = None
    """Clip the global l2 norm of the gradient to this; None switches it off."""

    def build(self, model: nn.Module) -> Layerwise:
        """Return PyTorch's Adam over the model's parameters; the loop sets the learning rate before each step."""
        base = torch.optim.Adam(_not_adapted(model, self.weight_decay), betas=self.betas, eps=self.eps)
        return Layerwise(base, max_grad_norm=self.max_grad_norm)


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """AdaGrad with the decay added to the gradient, of matrices alone."""

    name: ClassVar[str] = "AdaGrad"

    eps: float = 1e-10
    """Added to the root of the sum of squares."""
    initial_accumulator_value: float = 0.0
    """What that sum begins with."""
    weight_decay: float = 1e-4
    """Added to the gradient, times the weights."""
    max_grad_norm: float | None = None
    """Clip the global l2 norm of the gradient to this; None switches it off."""

    def build(self, model: nn.Module) -> Layerwise:
        """Return PyTorch's Adagrad over the model's parameters; the loop sets the learning rate before each step."""
        base = torch.optim.Adagrad(
            _not_adapted(model, self.weight_decay),
            eps=self.eps,
            initial_accumulator_value=self.initial_accumulator_value,
        )
        return Layerwise(base, max_grad_norm=self.max_grad_norm)


def _not_adapted(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups without trust ratios."""
    return [{**group, "adapt": False} for group in layer_groups(model, weight_decay=weight_decay)]


def _lamb(choice: Lamb | Adamw, groups: list[dict[str, Any]], **options: Any) -> LAMB:
    return LAMB(
        groups,
        **options,
        lr=0.0,
        betas=choice.betas,
        eps=choice.eps,
        bias_correction=choice.bias_correction,
        max_grad_norm=choice.max_grad_norm,
        foreach=choice.foreach,
    )
