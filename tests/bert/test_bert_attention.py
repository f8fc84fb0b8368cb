"""Our attention is transformers' attention, and the way that is faster is the one that is taken."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from largebatch.bert import attention as module
from largebatch.bert.attention import ATTENTION, attention, spread

LAYER: Any = SimpleNamespace(is_causal=False, training=True)


def _inputs(dtype: torch.dtype = torch.float64, length: int = 9) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, 3, 2, length, 8, generator=generator, dtype=torch.float64).to(dtype)
    query, key, value = (a.detach().requires_grad_() for a in made)
    mask = torch.arange(length) < torch.tensor([length, 4, 1])[:, None]
    return (query, key, value), spread(mask)


def _exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(2, 3)) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def _gradients(dtype: torch.dtype, mask: Tensor | None = None) -> list[Tensor]:
    """Return the output and the gradients of attention in a dtype, in float64."""
    inputs, own = _inputs(dtype)
    found, _ = attention(LAYER, *inputs, own if mask is None else mask)
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

    def fused(layer: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        calls.append("fused")
        return query.transpose(1, 2), None

    monkeypatch.setattr(module, "sdpa_attention_forward", fused)
    inputs, mask = _inputs(dtype, length)
    attention(LAYER, *inputs, mask, dropout=dropout)
    assert calls == ([] if plain else ["fused"])


def test_a_bert_of_transformers_takes_it() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    theirs = BertModel(config).double().eval()
    ours = BertModel(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    ours.set_attn_implementation(ATTENTION)
    ids = torch.randint(0, 30, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    wanted = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = ours(input_ids=ids, attention_mask=spread(mask)).last_hidden_state
    torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-12, atol=1e-12)
    itself = ours(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(itself[mask], wanted[mask], rtol=1e-12, atol=1e-12)
    wrong = ours(input_ids=ids, attention_mask=spread(torch.ones_like(mask))).last_hidden_state
    assert not torch.allclose(wrong[mask], wanted[mask], rtol=1e-3)


def test_dropout_of_weights_keeps_the_mean() -> None:
    inputs, mask = _inputs(torch.float32)
    torch.manual_seed(0)
    drawn = torch.stack([attention(LAYER, *inputs, mask, dropout=0.2)[0].detach() for _ in range(3000)])
    exact = _exact(*inputs, mask).detach()
    distance = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 3000**0.5 + 1e-9)
    assert float(distance.max()) < 5
    assert not torch.equal(drawn[0], drawn[1])
