"""The attention that our BERTs take: PyTorch's fused one, or, where that is slower, the plain one.

On a CPU PyTorch's fused attention has no dropout (it then falls back to operations in float32 with many passes), and
in bfloat16 its backward pass is slow. Milliseconds of a forward and backward pass over 2,048 tokens, 12 heads of 64,
fused to plain (AMD EPYC, AVX512-BF16, 2 threads, 2026-11-25):

    length              64        128        192        384         512
    bf16            38 to 11   80 to 24   41 to 23   63 to 40   102 to 73
    bf16, dropout   56 to 19   76 to 20   86 to 25  214 to 57   367 to 98
    fp32            33 to 34   36 to 43   41 to 53   59 to 101   84 to 194
    fp32, dropout   48 to 36   70 to 58   82 to 62  189 to 168  396 to 268

The plain one keeps [heads, L, L] of every sequence and layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from largebatch.bert.dropout import dropout as dropped

ATTENTION = "largebatch"
"""The name by which transformers knows it."""
_HALF = (torch.bfloat16, torch.float16)
LONGEST_PLAIN = 512
"""In half precision without dropout the plain one is taken up to this length; longer ones were not measured."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return softmax(q k^T / sqrt(d) + mask) v, as transformers wants it.

    Args:
        module: the layer.
        query: [B, heads, L, d].
        key: the same.
        value: the same.
        attention_mask: bool [B, 1, 1, L], False at padding; None for none.
        dropout: of the weights; 0 outside of training.
        scaling: for 1 / sqrt(d).
        others: what transformers hands on.

    Returns:
        [B, L, heads, d], and None for the weights.
    """
    if not _plain_is_faster(query, dropout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )  # pyright: ignore[reportReturnType]
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(2, 3))
    if attention_mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores += torch.zeros(attention_mask.shape, dtype=scores.dtype).masked_fill(~attention_mask, lowest)
    weights = dropped(scores.softmax(dim=-1), dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def _plain_is_faster(query: Tensor, dropout: float) -> bool:
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return dropout > 0 or (query.dtype in _HALF and query.shape[2] <= LONGEST_PLAIN)


AttentionInterface.register(ATTENTION, attention)
# Where a network is called with a mask of two dimensions, it makes one of four; for a name that it does not know, none.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def spread(attention_mask: Tensor) -> Tensor:
    """Return a mask, bool [B, L], in the form that attention takes, [B, 1, 1, L].

    Given with four dimensions the mask is taken as it is; given with two, it would be inspected on the host (a
    synchronisation on a GPU) and spread to [B, 1, L, L]. Attention broadcasts it.
    """
    return attention_mask[:, None, None, :]
