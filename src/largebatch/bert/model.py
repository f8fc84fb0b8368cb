"""BERT with its two pre-training heads, and their losses as sums; built at random or from a folder of weights.

The network is Hugging Face's ``BertForPreTraining``, its weights and their names unchanged. What is added is the order
of work: its own forward pass projects every position onto the vocabulary and takes it through the whole last layer,
here only the predicted ones are, about one in seven, and padding through none. Losses and gradients are the same, since
a position without a label adds nothing to either.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.bert import weights
from largebatch.bert.encoder import OverBert, TokenPlaces, encode_at
from largebatch.bert.masking import IGNORED
from largebatch.bert.weights import BertConfig, BertForPreTraining
from largebatch.networks import seeded


class PretrainingModel(OverBert):
    """``BertForPreTraining`` with the vocabulary projection at predicted positions only."""

    network: BertForPreTraining

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
        bert: Any = self.network.bert
        heads = self.network.cls
        rows, length = input_ids.shape
        first = torch.arange(0, rows * length, length, device=input_ids.device)
        wanted = torch.cat([first, masked_positions])
        places = TokenPlaces(attention_mask)
        encoded = encode_at(bert, input_ids, token_type_ids, places, wanted, recompute=self._recompute)
        predicted = encoded[rows:]
        # Cross-entropy over a vocabulary loses too much in half precision, whatever autocast thinks of it.
        token_logits = heads.predictions(predicted).float()
        pair_logits = heads.seq_relationship(bert.pooler(encoded[:rows, None])).float()
        sums = {
            "mlm": F.cross_entropy(token_logits, masked_labels, ignore_index=IGNORED, reduction="sum"),
            "nsp": F.cross_entropy(pair_logits, next_sentence_labels, reduction="sum"),
        }
        if count_correct:
            sums["mlm_correct"] = (token_logits.argmax(dim=-1) == masked_labels).sum()
            sums["nsp_correct"] = (pair_logits.argmax(dim=-1) == next_sentence_labels).sum()
        return sums


def random_model(config: BertConfig, seed: int, *, encoder_init_std: float | None = None) -> PretrainingModel:
    """Return a float32 model on the CPU with BERT's initial weights (normal, sigma 0.02), the same for a seed.

    With ``encoder_init_std`` the matrices of the encoder's linear layers, of the pooler and of the head for pairs have
    that sigma instead. The state of PyTorch's global generator is left as it was.
    """
    with seeded(seed):
        network = BertForPreTraining._from_config(config, dtype=torch.float32)
    if encoder_init_std is not None:
        with torch.no_grad():
            bert: Any = network.bert
            for part in (bert.encoder, bert.pooler, network.cls.seq_relationship):
                for module in part.modules():
                    if isinstance(module, nn.Linear):
                        module.weight *= encoder_init_std / config.initializer_range
    return PretrainingModel(network)


def pretrained_model(folder: Path, seed: int, *, dropout: float, attention_dropout: float) -> PretrainingModel:
    """Return a model in float32 on the CPU with the configuration and weights of a Hugging Face folder.

    See `weights.load`, which also says what it raises.
    """
    network: BertForPreTraining = weights.load(
        BertForPreTraining, folder, seed, dropout=dropout, attention_dropout=attention_dropout
    )
    network.tie_weights()
    return PretrainingModel(network)
