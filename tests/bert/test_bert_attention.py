"""Our attention is attention, and the way that is faster is the one that is taken."""

from typing import Any

import pytest
import torch
from torch import Tensor

from largebatch.bert import attention as module
from largebatch.bert.attention import attention


def _inputs(dtype: torch.dtype = torch.float64, length: int = 9) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, 3, 2, length, 8, generator=generator, dtype=torch.float64).to(dtype)
    query, key, value = (a.detach().requires_grad_() for a in made)
    mask = torch.arange(length) < torch.tensor([length, 4, 1])[:, None]
    return (query, key, value), mask


def _exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(2, 3)) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1) @ value).transpose(1, 2)


def _gradients(dtype: torch.dtype, mask: Tensor | None = None) -> list[Tensor]:
    """Return the output and the gradients of attention in a dtype, in float64."""
    inputs, own = _inputs(dtype)
    found = attention(*inputs, own if mask is None else mask, dropout=0.0)
    grads = torch.autograd.grad(found.double().sin().sum(), inputs)
    return [a.detach().double() for a in (found, *grads)]


def _errors(dtype: torch.dtype, mask: Tensor | None = None) -> list[float]:
    inputs, own = _inputs()
    wanted = _exact(*inputs, own)
    exact = [wanted.detach(), *torch.autograd.grad(wanted.sin().sum(), inputs)]
    return [float((a - b).norm() / b.norm()) for a, b in zip(_gradients(dtype, mask), exact, strict=True)]


@pytest.mark.parametrize("longest", [8, 9])
def test_both_ways_are_attention(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    monkeypatch.setattr(module, "LONGEST_PLAIN", longest)
    assert max(_errors(torch.float64)) < 1e-12
    assert max(_errors(torch.float32)) < 1e-5
    assert max(_errors(torch.bfloat16)) < 0.02
    unmasked = torch.ones_like(_inputs()[1])
    assert max(_errors(torch.float64, unmasked)) > 0.1, "a mask that is left out is noticed"


def test_in_half_precision_the_plain_one_is_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _errors(torch.bfloat16)
    monkeypatch.setattr(module, "LONGEST_PLAIN", 0)
    fused = _errors(torch.bfloat16)
    assert all(a < 1.5 * b for a, b in zip(plain, fused, strict=True))


@pytest.mark.parametrize(
    ("dtype", "length", "dropout", "plain"),
    [
        (torch.float32, 9, 0.0, False),
        (torch.float32, 9, 0.1, True),
        (torch.bfloat16, 9, 0.0, True),
        (torch.bfloat16, 512, 0.0, True),
        (torch.bfloat16, 513, 0.0, False),
        (torch.bfloat16, 513, 0.1, True),
    ],
)
def test_the_faster_way_is_taken(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int, dropout: float, plain: bool
) -> None:
    calls: list[str] = []

    def fused(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append("fused")
        return query

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", fused)
    inputs, mask = _inputs(dtype, length)
    attention(*inputs, mask, dropout=dropout)
    assert calls == ([] if plain else ["fused"])


def test_dropout_of_weights_keeps_the_mean() -> None:
    inputs, mask = _inputs(torch.float32)
    torch.manual_seed(0)
    drawn = torch.stack([attention(*inputs, mask, dropout=0.2).detach() for _ in range(3000)])
    exact = _exact(*inputs, mask).detach()
    distance = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 3000**0.5 + 1e-9)
    assert float(distance.max()) < 5
    assert not torch.equal(drawn[0], drawn[1])
