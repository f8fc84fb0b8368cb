"""Causal language modelling as a task for the training loop: each token from those before it, on packed sequences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.errors import InputError, check_at_least, check_dropout
from largebatch.gpt.packed import Integers, PackedSequences
from largebatch.networks import check_heads, save_network
from largebatch.stage_view import StageView
from largebatch.text.shards import DocumentStore, PreparedCorpus
from largebatch.text.unigrams import surprise
from largebatch.text.vocabulary import copy_tokenizer


@dataclass(frozen=True, kw_only=True)
class CausalLanguageModel:
    """GPT-2 trained from scratch on a prepared corpus (Radford et al., 2019).

    Satisfies ``largebatch.train.task.Task``. Its loss has one term, "lm", counted in tokens. The defaults are GPT-2's.
    """

    corpus: str
    """Folder that `largebatch prepare --tokenizer bpe` wrote; one of WordPiece does too."""
    hidden_size: int = 768
    """Width of the hidden states."""
    layers: int = 12
    """Number of layers."""
    attention_heads: int = 12
    """Attention heads in each layer; they divide the hidden size."""
    max_position_embeddings: int = 1024
    """Longest sequence that the model can take, in tokens."""
    dropout: float = 0.0
    """Probability of dropping an element of the hidden states or an attention weight, 0 is off; GPT-2 had 0.1."""
    held_out_sequences: int = 512
    """Most held-out sequences in an evaluation, spread evenly over the held-out text."""

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {"lm": 1.0}

    def check(self, stages: Sequence[StageView]) -> None:
        """Raise InputError for anything in the fields, the corpus or the stages that cannot work."""
        check_at_least(
            self, hidden_size=1, layers=1, attention_heads=1, max_position_embeddings=1, held_out_sequences=1
        )
        check_heads(self.hidden_size, self.attention_heads)
        check_dropout(self, "dropout")
        self._corpus.tokenizer()
        for stage in stages:
            length = self._length(stage)
            for name, store in (("training", self._corpus.train), ("held-out", self._corpus.held_out)):
                if not len(PackedSequences(store, self._corpus.end_id, length)):
                    raise InputError(
                        f"the {name} part of {self.corpus} has not the {length + 1} tokens of one sequence of stage "
                        f"{stage.name!r}: prepare more text or a larger held-out part"
                    )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the corpus's manifest, which holds the checksums of all its files."""
        return self._corpus.fingerprint()

    def build_model(self, seed: int) -> nn.Module:
        """Return a ``CausalModel`` with random weights, in float32 on the CPU."""
        from largebatch.gpt.model import GPT2Config, random_model

        end = self._corpus.end_id
        return random_model(
            GPT2Config(
                vocab_size=self._corpus.vocabulary_size,
                n_positions=self.max_position_embeddings,
                n_embd=self.hidden_size,
                n_layer=self.layers,
                n_head=self.attention_heads,
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
                bos_token_id=end,
                eos_token_id=end,
            ),
            seed,
        )

    def dataset(self, stage: StageView, seed: int) -> PackedSequences:
        """Return the training sequences of a stage, the same for every seed."""
        del seed
        return self._packed(self._corpus.train, stage, None)

    def evaluation_dataset(self, stage: StageView, seed: int) -> PackedSequences:
        """Return the held-out sequences, at most ``held_out_sequences``, the same for every seed."""
        del seed
        return self._packed(self._corpus.held_out, stage, self.held_out_sequences)

    def collate(self, samples: Sequence[Integers]) -> dict[str, Tensor]:
        """Join the sequences of one microbatch: ``input_ids`` and ``targets``, int64 [B, L]."""
        tokens = torch.from_numpy(np.stack(samples))
        return {"input_ids": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many tokens are predicted."""
        return {"lm": batch["targets"].numel()}

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many tokens are read."""
        return batch["input_ids"].numel()

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Return the operations of a forward and backward pass, multiplication and addition counted as two.

        Forward, for B sequences of L tokens with hidden size H and vocabulary V:
        ``B * (layers * (24 L H^2 + 2 H L^2) + 2 L H V)``, attention counted up to each token.
        """
        rows, length = batch["input_ids"].shape
        hidden = self.hidden_size
        layer = 24 * length * hidden**2 + 2 * hidden * length**2
        return 3.0 * rows * (self.layers * layer + 2 * length * hidden * self._corpus.vocabulary_size)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies over tokens, in nats."""
        return model(**batch)

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums and counts of one held-out microbatch; ``summarise`` divides them."""
        sums = model(**batch, count_correct=True)
        targets = batch["targets"]
        results = {
            "loss": sums["lm"],
            "correct": sums["correct"],
            "unigram_loss": self._unigram_surprise.to(targets.device)[targets].sum(),
            "tokens": torch.tensor(targets.numel()),
        }
        return {name: value.to(targets.device, torch.float64) for name, value in results.items()}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the held-out loss in nats a token, and the metrics.

        ``perplexity`` is exp of that loss, ``accuracy`` the share of tokens that had the highest logit, and
        ``unigram_perplexity`` that of a model that knows only how often each token occurs in training.
        """
        loss = sums["loss"] / sums["tokens"]
        return loss, {
            "perplexity": _exp(loss),
            "unigram_perplexity": _exp(sums["unigram_loss"] / sums["tokens"]),
            "accuracy": sums["correct"] / sums["tokens"],
        }

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer so that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load the folder."""
        from largebatch.gpt.model import CausalModel

        save_network(model, CausalModel, folder)
        copy_tokenizer(self._corpus.folder, folder)

    @cached_property
    def _corpus(self) -> PreparedCorpus:
        return PreparedCorpus.open(self.corpus)

    @cached_property
    def _unigram_surprise(self) -> Tensor:
        """-ln of each token's share of the training stream, float64 [vocabulary_size]; unseen ones count once."""
        counts = self._corpus.token_counts()
        counts[self._corpus.end_id] += self._corpus.train.documents
        return torch.from_numpy(surprise(counts))

    def _packed(self, store: DocumentStore, stage: StageView, limit: int | None) -> PackedSequences:
        return PackedSequences(store, self._corpus.end_id, self._length(stage), limit)

    def _length(self, stage: StageView) -> int:
        """Return the sequence length of a stage; raises InputError for other options or a length out of range."""
        options = stage.task_options
        length = options.get("sequence_length")
        if set(options) != {"sequence_length"} or not isinstance(length, int):
            raise InputError(
                f"stage {stage.name!r}: task_options are {dict(options)}, allowed is sequence_length alone"
            )
        if not 1 <= length <= self.max_position_embeddings:
            raise InputError(
                f"stage {stage.name!r}: sequence_length is {length}, allowed is 1 up to max_position_embeddings, "
                f"{self.max_position_embeddings}"
            )
        return length


def _exp(nats: float) -> float:
    """Return a perplexity; infinite where a float cannot hold it."""
    return math.exp(nats) if nats < 700 else math.inf
