"""Fine-tuning on SQuAD as a task for the training loop: a BERT learns to point at answers."""

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from largebatch.bert import starting_weights, tokenizer_files
from largebatch.bert.flops import BertSizes
from largebatch.bert.squad_answers import AnswerOptions
from largebatch.bert.squad_batches import (
    JudgedQuestions,
    QuestionWindows,
    TrainingWindows,
    collate_questions,
    collate_windows,
)
from largebatch.bert.squad_metrics import scores
from largebatch.bert.squad_questions import Question, read_questions, spread
from largebatch.bert.squad_windows import EncodedQuestions, Window, WindowSizes
from largebatch.errors import InputError, check_at_least, check_dropout
from largebatch.networks import save_network
from largebatch.stage_view import StageView
from largebatch.text.vocabulary import copy_tokenizer

_log = logging.getLogger(__name__)

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True)
class SquadFineTuning:
    """Answers as spans of a context, SQuAD v1.1 and v2 (Devlin et al., NAACL 2019, sections 4.2 and 4.3).

    Satisfies ``largebatch.train.task.Task``. Its loss has one term, "span": the mean of the cross-entropies of start
    and end, counted in windows. The defaults are BERT's.
    """

    train: str = "hf:rajpurkar/squad"
    """Training questions: SQuAD's JSON at a path or URL, or hf:NAME for the split train of a Hugging Face dataset."""
    dev: str = "hf:rajpurkar/squad"
    """Questions to be judged by: the same, for the split validation."""
    init_from: str = "model"
    """Folder of a Hugging Face BERT to start from, such as the model/ of a pre-training run."""
    random_weights: bool = False
    """Take only configuration and tokenizer from there, for comparison: the weights start at random."""
    train_questions: int | None = None
    """Use only so many of the training questions, spread evenly over them; None takes all."""
    dev_questions: int | None = None
    """Be judged by only so many; None takes all."""
    sequence_length: int = 384
    """Most tokens of a window: question, its part of the context, [CLS] and two [SEP]."""
    stride: int = 128
    """How many tokens the windows over a long context are apart."""
    question_length: int = 64
    """Most tokens of a question; a longer one loses its end."""
    answer_length: int = 30
    """Most tokens of an answer that is given."""
    null_threshold: float = 0.0
    """In v2: by how much the score of no answer has to exceed that of the best answer to be given."""
    dropout: float = 0.1
    """Probability of dropping an element of the hidden states, 0 is off."""
    attention_dropout: float = 0.1
    """Probability of dropping an attention weight, 0 is off; on a CPU attention is up to twice as fast at 0."""

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {"span": 1.0}

    def check(self, stages: Sequence[StageView]) -> None:
        """Raise InputError for anything in the fields, the questions, the model or the stages that cannot work.

        What is wrong with single questions is logged, the first few with their ids.
        """
        check_at_least(self, train_questions=1, dev_questions=1)
        check_dropout(self, "dropout", "attention_dropout")
        self._answer_options(may_be_impossible=False)
        longest = starting_weights.sizes(Path(self.init_from))["max_position_embeddings"]
        self._sizes.check_fit(longest, f"the model in {self.init_from}")
        for stage in stages:
            if stage.task_options:
                raise InputError(
                    f"stage {stage.name!r}: task_options are {sorted(stage.task_options)}, allowed is none"
                )
        vocabulary = tokenizer_files.tokenizer_of(Path(self.init_from)).get_vocab_size()
        embedded = starting_weights.configuration(Path(self.init_from))["vocab_size"]
        if vocabulary > embedded:
            raise InputError(
                f"the tokenizer in {self.init_from} has {vocabulary} tokens, but its model only {embedded}"
            )
        self._encoded_training()
        self._encoded_dev()
        if self.null_threshold and not self._is_v2:
            raise InputError(
                f"null_threshold is {self.null_threshold}, but every question of {self.dev} has an answer: leave it out"
            )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all questions, contexts and answers."""
        state = hashlib.sha256()
        for encoded in (self._encoded_training(), self._encoded_dev()):
            for question in encoded.questions:
                state.update(repr((question.id, question.text, question.context, question.answers)).encode())
        return state.hexdigest()

    def build_model(self, seed: int) -> nn.Module:
        """Return a ``SpanModel`` in float32 on the CPU."""
        from largebatch.bert import span_model

        folder, rates = Path(self.init_from), {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        if self.random_weights:
            return span_model.untrained_span_model(folder, seed, **rates)
        return span_model.span_model(folder, seed, **rates)

    def dataset(self, stage: StageView, seed: int) -> TrainingWindows:
        """Return the training windows."""
        del stage, seed
        return TrainingWindows(self._encoded_training())

    def evaluation_dataset(self, stage: StageView, seed: int) -> JudgedQuestions:
        """Return the questions to be judged by, the same for every seed."""
        del stage, seed
        return JudgedQuestions(self._encoded_dev())

    def collate(self, samples: Sequence[Window | QuestionWindows]) -> dict[str, Tensor]:
        """Join the windows of one microbatch, or the questions of one that is judged."""
        questions = [sample for sample in samples if isinstance(sample, QuestionWindows)]
        if questions:
            return collate_questions(questions)
        return collate_windows([sample for sample in samples if isinstance(sample, Window)])

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many windows there are."""
        return {"span": len(batch["start"])}

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many tokens are not padding, special tokens included."""
        return int(batch["attention_mask"].sum())

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Return the operations of a forward and backward pass; see ``bert.flops``."""
        return self._model_sizes.spans(batch["attention_mask"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum over windows of the mean cross-entropy of start and end, in nats."""
        from largebatch.bert.span_model import span_loss

        starts, ends = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        return {"span": span_loss(starts, ends, batch["start"], batch["end"])}

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums and counts over the questions of a batch; ``summarise`` divides them."""
        from largebatch.bert.squad_reading import read_answers

        encoded, v2 = self._encoded_dev(), self._is_v2
        read = read_answers(model, batch, encoded, self._answer_options(may_be_impossible=v2))
        sums = dict.fromkeys(("exact", "f1", "questions", "answerable_f1", "answerable", "unanswerable_exact"), 0.0)
        for number, answers in read.questions:
            annotated = [answer.text for answer in encoded.questions[number].answers]
            exact, f1 = scores(annotated, answers[0].text, may_be_impossible=v2)
            sums["exact"] += exact
            sums["f1"] += f1
            sums["questions"] += 1
            sums["answerable"] += bool(annotated)
            sums["answerable_f1"] += f1 if annotated else 0.0
            sums["unanswerable_exact"] += 0.0 if annotated else exact
        sums |= {"loss": read.loss, "windows": float(read.windows)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the mean span loss and the metrics: ``exact_match`` and ``f1`` in percent, of all questions.

        For v2 also ``answerable_f1`` and ``unanswerable_exact_match``, each of the questions of its kind, in percent.
        """
        metrics = {name: 100 * sums[of] / sums["questions"] for name, of in (("exact_match", "exact"), ("f1", "f1"))}
        unanswerable = sums["questions"] - sums["answerable"]
        if unanswerable:
            metrics["unanswerable_exact_match"] = 100 * sums["unanswerable_exact"] / unanswerable
            if sums["answerable"]:
                metrics["answerable_f1"] = 100 * sums["answerable_f1"] / sums["answerable"]
        return sums["loss"] / sums["windows"], metrics

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer so that ``AutoModelForQuestionAnswering`` and ``AutoTokenizer`` load the folder."""
        from largebatch.bert.span_model import SpanModel

        save_network(model, SpanModel, folder)
        copy_tokenizer(Path(self.init_from), folder)

    def training_windows(self) -> int:
        """Return how many windows an epoch has."""
        return len(TrainingWindows(self._encoded_training()))

    @property
    def _sizes(self) -> WindowSizes:
        return WindowSizes(
            sequence_length=self.sequence_length, stride=self.stride, question_length=self.question_length
        )

    def _answer_options(self, *, may_be_impossible: bool) -> AnswerOptions:
        return AnswerOptions(
            answer_length=self.answer_length, may_be_impossible=may_be_impossible, null_threshold=self.null_threshold
        )

    def _encoded_training(self) -> EncodedQuestions:
        return _encoded(self.train, "train", self.train_questions, self.init_from, self._sizes)

    def _encoded_dev(self) -> EncodedQuestions:
        return _encoded(self.dev, "validation", self.dev_questions, self.init_from, self._sizes)

    @cached_property
    def _model_sizes(self) -> BertSizes:
        sizes = starting_weights.sizes(Path(self.init_from))
        return BertSizes(**{name: sizes[name] for name in ("layers", "hidden_size", "intermediate_size")})

    @cached_property
    def _is_v2(self) -> bool:
        return any(question.may_be_impossible for question in self._encoded_dev().questions)


# A run's task is made again wherever an option changes; its questions take seconds to read.
@functools.lru_cache(maxsize=4)
def _encoded(source: str, split: str, limit: int | None, folder: str, sizes: WindowSizes) -> EncodedQuestions:
    return EncodedQuestions(_questions(source, split, limit), tokenizer_files.tokenizer_of(Path(folder)), sizes)


def _questions(source: str, split: str, limit: int | None) -> list[Question]:
    questions, problems = read_questions(source, split)
    for problem in problems[:_SHOWN_PROBLEMS]:
        _log.warning("%s: question %s%s: %s", source, problem.id, "" if problem.kept else ", left out", problem.what)
    if len(problems) > _SHOWN_PROBLEMS:
        _log.warning("%s: %d more such problems", source, len(problems) - _SHOWN_PROBLEMS)
    return spread(questions, limit, source)
