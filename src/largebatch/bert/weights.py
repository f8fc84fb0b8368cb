"""Weights of BERTs of transformers, from a folder."""

import logging
from pathlib import Path
from typing import Any

import torch

from largebatch.errors import InputError
from largebatch.networks import quiet, seeded

try:
    from transformers import BertConfig as BertConfig
    from transformers import BertForPreTraining as BertForPreTraining
    from transformers import BertForQuestionAnswering as BertForQuestionAnswering
except ModuleNotFoundError as error:
    raise InputError(
        f"BERT needs the package {error.name}, which is not installed: pip install 'largebatch[train]'"
    ) from None

_log = logging.getLogger(__name__)


def load(
    kind: Any, folder: Path, seed: int, *, dropout: float, attention_dropout: float, heads_needed: bool = False
) -> Any:
    """Return a network in float32 on the CPU with the configuration and weights of a Hugging Face folder.

    The folder may hold any model with a BERT encoder: ``BertForPreTraining``, ``BertForMaskedLM``, ``BertModel``.
    Heads that it lacks start at random, the same for a seed, and one line of the log names them. The state of
    PyTorch's global generator is left as it was.

    Args:
        kind: a class of transformers with a BERT encoder.
        folder: of the weights.
        seed: of what starts at random.
        dropout: of hidden states.
        attention_dropout: of attention weights.
        heads_needed: whether a head that the folder lacks is an error.

    Raises:
        InputError: if the weights cannot be read, or parts of the encoder, or a head that is needed, are missing.
    """
    try:
        with seeded(seed), quiet():
            network, found = kind.from_pretrained(
                folder,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=attention_dropout,
                is_decoder=False,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
    except Exception as error:  # torn files: of three libraries and of no common kind
        raise InputError(f"{folder} cannot be loaded: {' '.join(str(error).split()) or type(error).__name__}") from None
    if found["mismatched_keys"]:
        name, theirs, ours = min(found["mismatched_keys"])
        raise InputError(
            f"{folder}: {name} has the shape {tuple(theirs)}, by its config.json it should be {tuple(ours)}"
        )
    missing = sorted(found["missing_keys"])
    lost = [name for name in missing if name.startswith("bert.") and not name.startswith("bert.pooler.")]
    if lost:
        raise InputError(f"{folder} is not a BERT encoder: it has no weights for {', '.join(lost[:3])}")
    if missing:
        heads = sorted({".".join(name.split(".")[:2]) for name in missing})
        if heads_needed:
            raise InputError(f"the model in {folder} has no {', '.join(heads)}; fine-tune it first")
        _log.warning("%s has no weights for %s: they start at random", folder, ", ".join(heads))
    return network.train()
