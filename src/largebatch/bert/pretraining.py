"""BERT's pre-training as a task for the training loop: masked tokens and sentence pairs, each with its own count."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.bert import dataset, starting_weights
from largebatch.bert.dataset import MaskedPair, MaskedPairs
from largebatch.bert.flops import BertSizes
from largebatch.bert.masking import IGNORED, Masking
from largebatch.bert.pairs import SHORTEST_SEQUENCE, SentencePairs
from largebatch.errors import InputError, check_at_least, check_dropout
from largebatch.networks import check_heads, save_network
from largebatch.stage_view import StageView
from largebatch.text.shards import DocumentStore, PreparedCorpus
from largebatch.text.unigrams import surprise
from largebatch.text.vocabulary import copy_tokenizer

if TYPE_CHECKING:
    from transformers import BertConfig

_HELD_OUT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The task's options of one stage."""

    sequence_length: int
    """Tokens of a pair, [CLS] and two [SEP] included."""
    max_predictions: int
    """Most predicted tokens in a pair; BERT took 20 of 128 and 80 of 512."""

    @classmethod
    def of(cls, stage: StageView) -> "StageOptions":
        """Read the options of a stage; raises InputError for a name or a value that is not allowed."""
        names = [field.name for field in dataclasses.fields(cls)]
        given = stage.task_options
        if set(given) != set(names):
            raise InputError(f"stage {stage.name!r}: task_options are {sorted(given)}, they must be {names}")
        for name, least in (("sequence_length", SHORTEST_SEQUENCE), ("max_predictions", 1)):
            if not isinstance(given[name], int) or given[name] < least:
                raise InputError(f"stage {stage.name!r}: {name} is {given[name]!r}, allowed is {least} or more")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class BertPretraining:
    """Masked language modelling and next-sentence prediction on a prepared corpus (Devlin et al., NAACL 2019).

    Satisfies ``largebatch.train.task.Task``. Its loss has two terms, both with weight 1: "mlm", counted in predicted
    tokens, and "nsp", counted in pairs. The defaults are BERT-base.
    """

    corpus: str
    """Folder that `largebatch prepare` wrote."""
    hidden_size: int = 768
    """Width of the hidden states."""
    layers: int = 12
    """Number of encoder layers."""
    attention_heads: int = 12
    """Attention heads in each layer; they divide the hidden size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    max_position_embeddings: int = 512
    """Longest sequence that the model can take, in tokens."""
    encoder_init_std: float = 0.02
    """Standard deviation of the initial weights of the encoder, the pooler and the head for pairs; embeddings and the
    head for tokens have BERT's 0.02. A narrow encoder learns from context sooner with about 1 / sqrt(hidden_size)."""
    dropout: float = 0.1
    """Probability of dropping an element of the hidden states, 0 is off."""
    attention_dropout: float = 0.1
    """Probability of dropping an attention weight, 0 is off; on a CPU attention is up to twice as fast at 0."""
    masked_fraction: float = 0.15
    """Share of the tokens that are predicted, special tokens aside."""
    whole_word_masking: bool = False
    """Mask whole words instead of single pieces."""
    short_sequence_probability: float = 0.1
    """Share of the documents whose pairs are made shorter, at random, than the sequence length."""
    held_out_pairs: int = 1024
    """Most held-out pairs in an evaluation, spread evenly over the held-out documents."""
    fixed_shapes: bool = False
    """Give every pair the same number of prediction slots, for compiled GPU models; on a CPU it costs time."""
    init_from: str | None = None
    """Folder of a Hugging Face BERT whose weights to start from; the sizes above must be those of that model."""

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {"mlm": 1.0, "nsp": 1.0}

    def check(self, stages: Sequence[StageView]) -> None:
        """Raise InputError for anything in the fields, the corpus, the stages or ``init_from`` that cannot work."""
        self._check_fields()
        corpus = self._corpus
        corpus.tokenizer()
        for name, part in (("training", corpus.train), ("held-out", corpus.held_out)):
            if part.documents < 2:
                raise InputError(
                    f"the {name} part of {corpus.folder} holds {part.documents} of the 2 or more documents that "
                    "next-sentence prediction needs, to draw sentences from another one: prepare more text or a "
                    "larger held-out part"
                )
        if self.whole_word_masking and not self._continuations().any():
            raise InputError(
                f"whole_word_masking needs a WordPiece vocabulary: no token of {corpus.folder} begins with ##"
            )
        for stage in stages:
            length = StageOptions.of(stage).sequence_length
            if length > self.max_position_embeddings:
                raise InputError(
                    f"stage {stage.name!r}: sequence_length is {length}, the model's max_position_embeddings allow "
                    f"{self.max_position_embeddings}"
                )
        if self.init_from is not None:
            theirs = starting_weights.sizes(Path(self.init_from))
            differing = [f"{name} {size}" for name, size in theirs.items() if getattr(self, name) != size]
            if differing:
                raise InputError(
                    f"the model in init_from {self.init_from} has {', '.join(differing)}, the task other sizes: "
                    "give it those"
                )
            starting_weights.check_vocabulary(Path(self.init_from), corpus)

    def starting_from(self, folder: str) -> "BertPretraining":
        """Return this task with the weights and the sizes of a Hugging Face folder; raises InputError."""
        return dataclasses.replace(self, init_from=folder, **starting_weights.sizes(Path(folder)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the corpus's manifest, which holds the checksums of all its files."""
        return self._corpus.fingerprint()

    def build_model(self, seed: int) -> nn.Module:
        """Return a ``PretrainingModel`` in float32 on the CPU: random weights, or those of ``init_from``."""
        from largebatch.bert import model

        if self.init_from is not None:
            return model.pretrained_model(
                Path(self.init_from), seed, dropout=self.dropout, attention_dropout=self.attention_dropout
            )
        return model.random_model(self._config(), seed, encoder_init_std=self.encoder_init_std)

    def dataset(self, stage: StageView, seed: int) -> MaskedPairs:
        """Return the training pairs of a stage; masks and random continuations are fresh in every epoch."""
        return self._masked_pairs(self._corpus.train, stage, seed, None)

    def evaluation_dataset(self, stage: StageView, seed: int) -> MaskedPairs:
        """Return the held-out pairs, at most ``held_out_pairs``.

        Pairs and masks are the same for every ``seed``, so that runs with different seeds are judged on the same
        tokens.
        """
        del seed
        return self._masked_pairs(self._corpus.held_out, stage, _HELD_OUT_SEED, self.held_out_pairs)

    def collate(self, samples: Sequence[MaskedPair]) -> dict[str, Tensor]:
        """Join the samples of one microbatch; see ``bert.dataset.collate``."""
        return dataset.collate(samples, fixed_shapes=self.fixed_shapes)

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many tokens are predicted and how many pairs there are."""
        predicted = int((batch["masked_labels"] != IGNORED).sum())
        return {"mlm": predicted, "nsp": len(batch["next_sentence_labels"])}

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many tokens are not padding, special tokens included."""
        return int(batch["attention_mask"].sum())

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Return the operations of a forward and backward pass; see ``bert.flops``."""
        sizes = BertSizes(layers=self.layers, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size)
        return sizes.pretraining(batch["attention_mask"], self.counts(batch)["mlm"], self._corpus.vocabulary_size)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of the cross-entropies, "mlm" over predicted tokens and "nsp" over pairs, in nats."""
        return model(**batch)

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums and counts of one held-out microbatch; ``summarise`` divides them."""
        sums = model(**batch, count_correct=True)
        labels = batch["masked_labels"]
        labels = labels[labels != IGNORED]
        surprise = self._unigram_surprise.to(labels.device)
        results = {
            "mlm_loss": sums["mlm"],
            "mlm_correct": sums["mlm_correct"],
            "nsp_loss": sums["nsp"],
            "nsp_correct": sums["nsp_correct"],
            "unigram_loss": surprise[labels].sum(),
            "most_frequent_correct": (labels == surprise.argmin()).sum(),
            "predicted_tokens": torch.tensor(len(labels)),
            "random_pairs": batch["next_sentence_labels"].sum(),
            "pairs": torch.tensor(len(batch["next_sentence_labels"])),
        }
        return {name: value.to(labels.device, torch.float64) for name, value in results.items()}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the held-out loss, weighted as in training, and the metrics.

        ``mlm_loss`` and ``nsp_loss`` are in nats, accuracies in [0, 1]. ``unigram_loss`` is the cross-entropy, on
        the same held-out tokens, of a model that knows only how often each token occurs in training:
        -ln( c(t) / sum over the vocabulary of c ), with c(t) the count of token t, or 1 if it never occurs.
        ``most_frequent_accuracy`` is the accuracy of always naming the most frequent training token, and
        ``nsp_majority_accuracy`` that of always giving the more frequent answer on the pairs: it is above one half
        where many chunks are a single sentence, which always gets a random B.
        """
        tokens, pairs = sums["predicted_tokens"], sums["pairs"]
        metrics = {
            "mlm_loss": sums["mlm_loss"] / tokens,
            "mlm_accuracy": sums["mlm_correct"] / tokens,
            "nsp_loss": sums["nsp_loss"] / pairs,
            "nsp_accuracy": sums["nsp_correct"] / pairs,
            "unigram_loss": sums["unigram_loss"] / tokens,
            "most_frequent_accuracy": sums["most_frequent_correct"] / tokens,
            "nsp_majority_accuracy": max(sums["random_pairs"], pairs - sums["random_pairs"]) / pairs,
        }
        loss = sum(weight * metrics[f"{term}_loss"] for term, weight in self.weights.items())
        return loss, metrics

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer so that ``AutoModelForPreTraining`` and ``AutoTokenizer`` load the folder."""
        from largebatch.bert.model import PretrainingModel

        save_network(model, PretrainingModel, folder)
        copy_tokenizer(self._corpus.folder, folder)

    @cached_property
    def _corpus(self) -> PreparedCorpus:
        return PreparedCorpus.open(self.corpus)

    @cached_property
    def _unigram_surprise(self) -> Tensor:
        """-ln of each token's share of the training tokens, unseen ones counted once, float64 [vocabulary_size]."""
        return torch.from_numpy(surprise(self._corpus.token_counts()))

    def _masked_pairs(self, store: DocumentStore, stage: StageView, seed: int, limit: int | None) -> MaskedPairs:
        options, corpus = StageOptions.of(stage), self._corpus
        pairs = SentencePairs(
            store,
            corpus.special_ids,
            sequence_length=options.sequence_length,
            seed=seed,
            short_sequence_probability=self.short_sequence_probability,
        )
        masking = Masking(
            mask_id=corpus.special_ids.mask,
            vocabulary_size=corpus.vocabulary_size,
            max_predictions=options.max_predictions,
            fraction=self.masked_fraction,
            continuations=self._continuations() if self.whole_word_masking else None,
        )
        return MaskedPairs(pairs, masking, limit)

    def _continuations(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which tokens begin with ``##``, bool [vocabulary_size]."""
        table = np.zeros(self._corpus.vocabulary_size, dtype=bool)
        for token, number in self._corpus.tokenizer().get_vocab().items():
            table[number] = token.startswith("##")
        return table

    def _config(self) -> "BertConfig":
        from largebatch.bert.model import BertConfig

        return BertConfig(
            vocab_size=self._corpus.vocabulary_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            pad_token_id=self._corpus.special_ids.pad,
        )

    def _check_fields(self) -> None:
        check_at_least(
            self,
            hidden_size=1,
            layers=1,
            attention_heads=1,
            intermediate_size=1,
            max_position_embeddings=SHORTEST_SEQUENCE,
            held_out_pairs=1,
        )
        check_heads(self.hidden_size, self.attention_heads)
        check_dropout(self, "dropout", "attention_dropout")
        if not 0 < self.encoder_init_std < math.inf:
            raise InputError(f"encoder_init_std is {self.encoder_init_std}, allowed is more than 0")
        if not 0 < self.masked_fraction <= 1:
            raise InputError(f"masked_fraction is {self.masked_fraction}, allowed is more than 0 and up to 1")
        if not 0 <= self.short_sequence_probability <= 1:
            raise InputError(f"short_sequence_probability is {self.short_sequence_probability}, allowed is from 0 to 1")
