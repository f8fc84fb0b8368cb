"""BERT with its two pre-training heads, and their losses as sums; built at random or from a folder of weights.

The network is Hugging Face's ``BertForPreTraining``, unchanged. What is added is the order of work: its own forward
pass projects every position onto the vocabulary, here only the predicted ones are, about one in seven. Losses and
gradients are the same, since a position without a label adds nothing to either.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.bert.masking import IGNORED
from largebatch.errors import InputError

try:
    from safetensors import SafetensorError
    from transformers import BertConfig, BertForPreTraining
    from transformers.utils import logging as transformers_logging
except ModuleNotFoundError as error:
    raise InputError(
        f"BERT needs the package {error.name}, which is not installed: pip install 'largebatch[train]'"
    ) from None

_log = logging.getLogger(__name__)

# The fused attention's backward pass in bf16 on a CPU takes a quarter of the demo's time. Sequences per second of
# whole steps, unfused to fused, at 2 x 128: 1.32 at length 64, 1.30 at length 128 (AMD EPYC, AVX512-BF16, 2 threads).
# Longer sequences were not measured; the unfused one keeps [heads, L, L] of every sequence and layer.
LONGEST_UNFUSED = 128


class PretrainingModel(nn.Module):
    """``BertForPreTraining`` with the vocabulary projection at predicted positions only."""

    def __init__(self, network: BertForPreTraining) -> None:
        super().__init__()
        self.network = network
        self._attention = "sdpa"
        network.set_attn_implementation(self._attention)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        masked_positions: Tensor,
        masked_labels: Tensor,
        next_sentence_labels: Tensor,
        count_correct: bool = False,
    ) -> dict[str, Tensor]:
        """Return the sums of the two cross-entropies, in nats, float32 also under autocast.

        Args:
            input_ids: int64 [B, L].
            token_type_ids: int64 [B, L], 0 or 1.
            attention_mask: bool [B, L], False at padding.
            masked_positions: int64 [M], row * L + position.
            masked_labels: int64 [M]; ``IGNORED`` adds nothing.
            next_sentence_labels: int64 [B], 1 where B is from another document.
            count_correct: also return how many predictions hit their label.

        Returns:
            "mlm" and "nsp", 0-dim and differentiable; with ``count_correct`` also "mlm_correct" and "nsp_correct".
        """
        # Given with four dimensions the mask is taken as it is; given with two, it would be inspected on the host
        # (a synchronisation on a GPU) and spread to [B, 1, L, L]. Attention broadcasts it.
        mask = attention_mask[:, None, None, :]
        if self._choose_attention(input_ids) == "eager":
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        encoded = self.network.bert(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=mask)
        heads = self.network.cls
        predicted = encoded.last_hidden_state.flatten(0, 1).index_select(0, masked_positions)
        # Cross-entropy over a vocabulary loses too much in half precision, whatever autocast thinks of it.
        token_logits = heads.predictions(predicted).float()
        pair_logits = heads.seq_relationship(encoded.pooler_output).float()
        sums = {
            "mlm": F.cross_entropy(token_logits, masked_labels, ignore_index=IGNORED, reduction="sum"),
            "nsp": F.cross_entropy(pair_logits, next_sentence_labels, reduction="sum"),
        }
        if count_correct:
            sums["mlm_correct"] = (token_logits.argmax(dim=-1) == masked_labels).sum()
            sums["nsp_correct"] = (pair_logits.argmax(dim=-1) == next_sentence_labels).sum()
        return sums

    def _choose_attention(self, input_ids: Tensor) -> str:
        """Take the attention that is faster: in bf16 on a CPU, for short sequences, that is the unfused one."""
        short = input_ids.shape[1] <= LONGEST_UNFUSED
        unfused = short and input_ids.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        wanted = "eager" if unfused else "sdpa"
        if wanted != self._attention:
            self.network.set_attn_implementation(wanted)
            self._attention = wanted
        return wanted


def random_model(config: BertConfig, seed: int) -> PretrainingModel:
    """Return a float32 model on the CPU with BERT's initial weights (normal, sigma 0.02), the same for a seed.

    The state of PyTorch's global generator is left as it was.
    """
    with _seeded(seed):
        network = BertForPreTraining._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return PretrainingModel(network)


def pretrained_model(folder: Path, seed: int, *, dropout: float, attention_dropout: float) -> PretrainingModel:
    """Return a model in float32 on the CPU with the configuration and weights of a Hugging Face folder.

    The folder may hold any model with a BERT encoder: ``BertForPreTraining``, ``BertForMaskedLM``, ``BertModel``.
    Heads that it lacks start at random as in ``random_model``, and one line of the log names them.

    Raises:
        InputError: if the weights cannot be read, or parts of the encoder are missing.
    """
    try:
        with _seeded(seed), _quiet():
            loaded: Any = BertForPreTraining.from_pretrained(
                folder,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=attention_dropout,
                is_decoder=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"init_from {folder} cannot be loaded: {' '.join(str(error).split())}") from None
    network, found = loaded
    if found["mismatched_keys"]:
        name, theirs, ours = min(found["mismatched_keys"])
        raise InputError(
            f"init_from {folder}: {name} has the shape {tuple(theirs)}, by its config.json it should be {tuple(ours)}"
        )
    missing = sorted(found["missing_keys"])
    lost = [name for name in missing if name.startswith("bert.") and not name.startswith("bert.pooler.")]
    if lost:
        raise InputError(f"init_from {folder} is not a BERT encoder: it has no weights for {', '.join(lost[:3])}")
    if missing:
        heads = sorted({".".join(name.split(".")[:2]) for name in missing})
        _log.warning("init_from %s has no weights for %s: they start at random", folder, ", ".join(heads))
    network.tie_weights()
    return PretrainingModel(network.train())


def save(model: nn.Module, folder: Path) -> None:
    """Write the network in Hugging Face's format; ``model`` may be wrapped (distributed, compiled).

    Raises:
        InputError: if the disk does not take it.
    """
    inner = next(module for module in model.modules() if isinstance(module, PretrainingModel))
    try:
        with _quiet():
            inner.network.save_pretrained(folder)
    except SafetensorError as error:  # which hides the operating system's error in its text
        raise InputError(f"the model could not be written to {folder}: {error}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator, from which new weights are drawn, and restore it afterwards."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and tables of missing weights, which are reported here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
