"""The networks of transformers, whichever they are: the same for the same seed, and written in silence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from largebatch.errors import InputError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator, from which new weights are drawn, and restore it afterwards."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and tables of missing weights."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def save_network(model: nn.Module, kind: type[nn.Module], folder: Path) -> None:
    """Write a model's network in Hugging Face's format.

    Args:
        model: a `kind`, or one that is wrapped (distributed, compiled).
        kind: a class whose `network` is to be written.
        folder: where to.

    Raises:
        InputError: if the disk does not take it.
    """
    from safetensors import SafetensorError

    inner: Any = next(module for module in model.modules() if isinstance(module, kind))
    try:
        with quiet():
            inner.network.save_pretrained(folder)
    except SafetensorError as error:  # which hides the operating system's error in its text
        raise InputError(f"the model could not be written to {folder}: {error}") from error


def check_heads(hidden_size: int, attention_heads: int) -> None:
    """Raise InputError unless the heads of an attention divide the hidden size."""
    if hidden_size % attention_heads:
        raise InputError(
            f"hidden_size is {hidden_size} and attention_heads {attention_heads}: the heads must divide the hidden size"
        )
