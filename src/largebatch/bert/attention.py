"""Which attention a BERT takes: the fused one, or, where that is slower, the plain one."""

from typing import Any

import torch
from torch import Tensor

# The fused attention's backward pass in bf16 on a CPU takes a quarter of the demo's time. Sequences per second of
# whole steps, unfused to fused, at 2 x 128: 1.32 at length 64, 1.30 at length 128 (AMD EPYC, AVX512-BF16, 2 threads).
# Longer sequences were not measured; the unfused one keeps [heads, L, L] of every sequence and layer.
LONGEST_UNFUSED = 128


def choose_attention(network: Any, attention_mask: Tensor) -> Tensor:
    """Switch a BERT of transformers to the attention that is faster, and return the mask in the form that it takes.

    Given with four dimensions the mask is taken as it is; given with two, it would be inspected on the host (a
    synchronisation on a GPU) and spread to [B, 1, L, L]. Attention broadcasts it.

    Args:
        network: the model.
        attention_mask: bool [B, L], False at padding.

    Returns:
        [B, 1, 1, L]: bool, or for the unfused attention what is added to its logits.
    """
    short = attention_mask.shape[1] <= LONGEST_UNFUSED
    unfused = short and attention_mask.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    wanted = "eager" if unfused else "sdpa"
    if wanted != network.config._attn_implementation:
        network.set_attn_implementation(wanted)
    mask = attention_mask[:, None, None, :]
    if unfused:
        mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
    return mask
