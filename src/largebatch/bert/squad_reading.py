"""A model reads windows, and answers to whole questions come out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from largebatch.bert.span_model import span_loss
from largebatch.bert.squad_answers import AnswerOptions, RankedAnswer, WindowSpans, best_spans, rank
from largebatch.bert.squad_windows import EncodedQuestions, judged_here

WINDOWS_AT_ONCE = 64
"""A long context has thousands of windows, which do not all fit into one pass."""


class ReadQuestion(NamedTuple):
    """What a model makes of a question."""

    number: int
    answers: list[RankedAnswer]
    """The one that is given first."""


class Reading(NamedTuple):
    """What a model makes of some questions."""

    questions: list[ReadQuestion]
    loss: float
    """Sum over the windows of the cross-entropy of start and end, in nats."""
    windows: int


@torch.no_grad()
def read_answers(
    model: nn.Module, batch: Mapping[str, Tensor], encoded: EncodedQuestions, options: AnswerOptions
) -> Reading:
    """Let a model, in evaluation mode, answer the questions of a batch of `collate_questions`.

    Args:
        model: a `SpanModel`.
        batch: on the model's device.
        encoded: the questions that the batch is of.
        options: how answers are chosen.
    """
    numbers = batch["question"].tolist()
    windows = [encoded.windows(number) for number in numbers]
    flat = [window for of in windows for window in of]
    judged = [here for of in windows for here in judged_here(of)]
    found: list[WindowSpans] = []
    loss = 0.0
    for first in range(0, len(flat), WINDOWS_AT_ONCE):
        part = slice(first, first + WINDOWS_AT_ONCE)
        length = max(len(window.tokens) for window in flat[part])
        inputs = [batch[name][part, :length] for name in ("input_ids", "token_type_ids", "attention_mask")]
        starts, ends = model(*inputs)
        loss += float(span_loss(starts, ends, batch["start"][part], batch["end"][part]))
        found += best_spans(starts, ends, flat[part], judged[part], options)
    return Reading(list(_ranked(numbers, [len(of) for of in windows], found, encoded, options)), loss, len(flat))


def _ranked(
    numbers: Sequence[int],
    counts: Sequence[int],
    found: Sequence[WindowSpans],
    encoded: EncodedQuestions,
    options: AnswerOptions,
) -> Iterator[ReadQuestion]:
    at = 0
    for number, count in zip(numbers, counts, strict=True):
        text = encoded.questions[number].context
        yield ReadQuestion(number, rank(text, encoded.context(number), found[at : at + count], options))
        at += count
