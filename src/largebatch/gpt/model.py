"""GPT-2 with its loss as a sum over tokens, taken in portions so that no logits of a whole batch are kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from largebatch.errors import InputError
from largebatch.networks import seeded

try:
    from transformers import GPT2Config as GPT2Config
    from transformers import GPT2LMHeadModel
except ModuleNotFoundError as error:
    raise InputError(
        f"GPT needs the package {error.name}, which is not installed: pip install 'largebatch[train]'"
    ) from None

_TOKENS_AT_ONCE = 1024


class CausalModel(nn.Module):
    """``GPT2LMHeadModel`` and the cross-entropy of each token given those before it."""

    def __init__(self, network: GPT2LMHeadModel) -> None:
        super().__init__()
        self.network = network

    def blocks(self) -> list[list[nn.Module]]:
        """Return the layers, each by itself, for FSDP."""
        transformer: Any = self.network.transformer
        return [[layer] for layer in transformer.h]

    def recompute_activations(self) -> None:
        """Keep the inputs of layers alone between passes."""
        self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, input_ids: Tensor, targets: Tensor, count_correct: bool = False) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies, in nats, float32 also under autocast.

        Args:
            input_ids: int64 [B, L].
            targets: int64 [B, L], the token after each.
            count_correct: also return how many tokens have the highest logit.

        Returns:
            "lm", 0-dim and differentiable; with ``count_correct`` also "correct".
        """
        hidden = self.network.transformer(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        flat = targets.flatten()
        total = hidden.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        for first in range(0, len(flat), _TOKENS_AT_ONCE):
            part, wanted = hidden[first : first + _TOKENS_AT_ONCE], flat[first : first + _TOKENS_AT_ONCE]
            if count_correct:
                logits = self.network.lm_head(part).float()
                correct += (logits.argmax(dim=-1) == wanted).sum()
                total = total + F.cross_entropy(logits, wanted, reduction="sum")
            elif torch.is_grad_enabled():
                # The logits are made again in the backward pass: they are a vocabulary wide.
                total = total + checkpoint(self._loss, part, wanted, use_reentrant=False, preserve_rng_state=False)
            else:
                total = total + self._loss(part, wanted)
        return {"lm": total, "correct": correct} if count_correct else {"lm": total}

    def _loss(self, hidden: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(self.network.lm_head(hidden).float(), targets, reduction="sum")


def random_model(config: GPT2Config, seed: int) -> CausalModel:
    """Return a float32 model on the CPU with GPT-2's initial weights, the same for a seed.

    The state of PyTorch's global generator is left as it was.
    """
    with seeded(seed):
        network = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return CausalModel(network)
