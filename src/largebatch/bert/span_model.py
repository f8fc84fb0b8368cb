"""BERT that points at the start and the end of an answer, and its loss."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from largebatch.bert import weights
from largebatch.bert.encoder import OverBert, TokenPlaces, encode
from largebatch.bert.weights import BertConfig, BertForQuestionAnswering
from largebatch.errors import InputError
from largebatch.networks import seeded


class SpanModel(OverBert):
    """``BertForQuestionAnswering``: two logits for each position."""

    network: BertForQuestionAnswering

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of each position as start and as end, float32 [B, L] also under autocast.

        Args:
            input_ids: int64 [B, L].
            token_type_ids: int64 [B, L], 0 for the question and 1 for the context.
            attention_mask: bool [B, L], False at padding, whose logits are minus infinity.
        """
        places = TokenPlaces(attention_mask)
        encoded = encode(self.network.bert, input_ids, token_type_ids, places, recompute=self._recompute)
        logits = places.padded(self.network.qa_outputs(encoded).float()).view(*attention_mask.shape, 2)
        starts, ends = logits.masked_fill(~attention_mask[:, :, None], -torch.inf).unbind(-1)
        return starts, ends


def span_loss(starts: Tensor, ends: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the sum over windows of the mean cross-entropy of start and end, in nats.

    Args:
        starts: logits [B, L].
        ends: logits [B, L].
        start: positions, int64 [B]; 0 where the answer is not in the window.
        end: positions, int64 [B].
    """
    return (F.cross_entropy(starts, start, reduction="sum") + F.cross_entropy(ends, end, reduction="sum")) / 2


def span_model(folder: Path, seed: int, *, dropout: float, attention_dropout: float) -> SpanModel:
    """Return a model in float32 on the CPU with the encoder of a Hugging Face folder, and its span head if it has one.

    See `weights.load`, which also says what it raises.
    """
    return SpanModel(
        weights.load(BertForQuestionAnswering, folder, seed, dropout=dropout, attention_dropout=attention_dropout)
    )


def untrained_span_model(folder: Path, seed: int, *, dropout: float, attention_dropout: float) -> SpanModel:
    """Return a model in float32 on the CPU with the sizes of a folder's BERT and BERT's initial weights.

    Raises:
        InputError: the folder has no configuration.
    """
    try:
        config = BertConfig.from_pretrained(
            folder, hidden_dropout_prob=dropout, attention_probs_dropout_prob=attention_dropout, is_decoder=False
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no configuration of a BERT: {' '.join(str(error).split())}") from None
    with seeded(seed):
        network = BertForQuestionAnswering._from_config(config, dtype=torch.float32)
    return SpanModel(network.train())


def trained_span_model(folder: Path) -> SpanModel:
    """Return the model of a folder for answering, without dropout.

    Raises:
        InputError: there is none, or it has no trained span head.
    """
    network = weights.load(BertForQuestionAnswering, folder, 0, dropout=0.0, attention_dropout=0.0, heads_needed=True)
    return SpanModel(network.eval())
