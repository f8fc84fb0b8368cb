"""Optimizers as choices of a run: frozen options that the command line can override, and that build for a model."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from largebatch.optim import LAMB, layer_groups


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """LAMB over two kinds of parameters: matrices decay and adapt, biases and norm layers do neither."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment; a stage may have its own."""
    eps: float = 1e-6
    """Added to the root of the second moment, outside the root."""
    weight_decay: float = 0.01
    """Decay inside the direction and inside its norm."""
    bias_correction: bool = True
    """Correct the moments for their start at zero, as versions 4 and 5 of the paper do."""
    max_grad_norm: float | None = 1.0
    """Clip the global l2 norm of the gradient to this; None switches it off."""
    foreach: bool | None = None
    """Update many tensors in one operation; None takes what is faster."""

    def build(self, model: nn.Module) -> LAMB:
        """Return LAMB over the model's parameters, by name; the loop sets the learning rate before each step."""
        return _lamb(self, layer_groups(model, weight_decay=self.weight_decay))


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
        groups = layer_groups(model, weight_decay=self.weight_decay)
        return _lamb(self, [{**group, "adapt": False} for group in groups])


def _lamb(choice: Lamb | Adamw, groups: list[dict[str, Any]]) -> LAMB:
    return LAMB(
        groups,
        lr=0.0,
        betas=choice.betas,
        eps=choice.eps,
        bias_correction=choice.bias_correction,
        max_grad_norm=choice.max_grad_norm,
        foreach=choice.foreach,
    )
