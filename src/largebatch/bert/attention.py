"""Attention without a causal mask: PyTorch's fused one, or, where that is slower, the plain one.

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

import torch
from torch import Tensor
from torch.nn import functional as F

from largebatch.bert.dropout import dropout as dropped

_HALF = (torch.bfloat16, torch.float16)
LONGEST_PLAIN = 512
"""In half precision without dropout the plain one is taken up to this length; longer ones were not measured."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, dropout: float) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v, [B, L, heads, d].

    Args:
        query: [B, heads, L, d].
        key: the same.
        value: the same.
        mask: bool [B, L], False at padding, to which no position attends.
        dropout: of the weights; 0 outside of training.
    """
    mask = mask[:, None, None, :]
    if not _plain_is_faster(query, dropout):
        brought = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return brought.transpose(1, 2)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3))
    lowest = torch.finfo(scores.dtype).min
    scores += torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, lowest)
    weights = dropped(scores.softmax(dim=-1), dropout)
    return torch.matmul(weights, value).transpose(1, 2)


def _plain_is_faster(query: Tensor, dropout: float) -> bool:
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return dropout > 0 or (query.dtype in _HALF and query.shape[2] <= LONGEST_PLAIN)
