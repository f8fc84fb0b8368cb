"""From the scores of starts and ends to answers: the best spans of all windows of a question.

The score of a span is s[start] + e[end], with the logits s and e of its window, for spans of at most `answer_length`
tokens of the context whose start is judged in that window. In v2 the answer is empty where

    min over windows of (s[0] + e[0])  -  the best span's score  >  null_threshold.

Source: Devlin et al., NAACL 2019, sections 4.2 and 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.bert.squad_windows import EncodedContext, Window
from largebatch.errors import InputError, check_at_least


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are chosen."""

    answer_length: int = 30
    """Most tokens of an answer."""
    best: int = 20
    """How many answers are ranked."""
    may_be_impossible: bool = False
    """Whether no answer is an answer, as in v2."""
    null_threshold: float = 0.0
    """With that: by how much its score has to exceed that of the best span."""

    def __post_init__(self) -> None:
        check_at_least(self, answer_length=1, best=1)
        if not np.isfinite(self.null_threshold):
            raise InputError(f"null_threshold is {self.null_threshold}, allowed is a finite number")


class Span(NamedTuple):
    """A span of tokens of a context, and its score."""

    score: float
    first: int
    last: int


class WindowSpans(NamedTuple):
    """What a window has to say."""

    spans: list[Span]
    """The best, best first."""
    null: float
    """The score of no answer."""


class RankedAnswer(NamedTuple):
    """An answer among those to one question."""

    text: str
    """Empty for no answer."""
    start: int
    """Its first character in the context; -1 for no answer."""
    score: float
    probability: float
    """Softmax of the scores of those that are ranked."""


def best_spans(
    starts: Tensor, ends: Tensor, windows: Sequence[Window], judged: Sequence[np.ndarray], options: AnswerOptions
) -> list[WindowSpans]:
    """Return the best spans of each window.

    Args:
        starts: logits of positions as starts, [W, L].
        ends: as ends.
        windows: the W windows.
        judged: for each, which of its context's tokens may be starts.
        options: how many tokens an answer has at most, and how many spans are wanted.
    """
    rows, length = starts.shape
    allowed_start = np.zeros((rows, length), bool)
    allowed_end = np.zeros((rows, length), bool)
    for row, (window, here) in enumerate(zip(windows, judged, strict=True)):
        part = slice(window.context_at, window.context_at + window.context_length)
        allowed_start[row, part], allowed_end[row, part] = here, True
    reach = min(options.answer_length, length)
    starts, ends = starts.float(), ends.float()
    null = (starts[:, 0] + ends[:, 0]).tolist()
    lowest = -torch.inf
    from_here = starts.masked_fill(~torch.from_numpy(allowed_start).to(starts.device), lowest)
    to_there = ends.masked_fill(~torch.from_numpy(allowed_end).to(ends.device), lowest)
    # scores[w, i, k] is of the span from i to i + k.
    to_there = torch.nn.functional.pad(to_there, (0, reach - 1), value=lowest).unfold(1, reach, 1)
    scores = (from_here[:, :, None] + to_there).flatten(1)
    found = scores.topk(min(options.best, scores.shape[1]))
    ranked = zip(found.values.tolist(), found.indices.tolist(), windows, null, strict=True)
    return [
        WindowSpans(
            [
                Span(score, at // reach + shift, at // reach + at % reach + shift)
                for score, at in zip(values, places, strict=True)
                if score > lowest
            ],
            of_none,
        )
        for values, places, window, of_none in ranked
        for shift in (window.context_first - window.context_at,)
    ]


def rank(
    text: str, context: EncodedContext, found: Sequence[WindowSpans], options: AnswerOptions
) -> list[RankedAnswer]:
    """Return the answers to one question, the one that is given first; equal texts once, by their best score.

    Args:
        text: of the context.
        context: the same in tokens.
        found: what each window of the question says.
        options: how many are wanted, and whether there may be none.
    """
    answers: dict[str, tuple[int, float]] = {}
    for span in sorted((span for window in found for span in window.spans), key=lambda span: -span.score):
        start, end = int(context.characters[span.first, 0]), int(context.characters[span.last, 1])
        answers.setdefault(text[start:end], (start, span.score))
        if len(answers) == options.best:
            break
    ranked = [(answer, start, score) for answer, (start, score) in answers.items()]
    if options.may_be_impossible or not ranked:
        null = min((window.null for window in found), default=0.0)
        none = ("", -1, null)
        if not ranked or null - ranked[0][2] > options.null_threshold:
            ranked.insert(0, none)
        else:
            place = next((i for i, one in enumerate(ranked) if one[2] < null), len(ranked))
            ranked.insert(max(place, 1), none)
    scores = torch.tensor([score for _, _, score in ranked], dtype=torch.float64)
    return [
        RankedAnswer(answer, start, score, probability)
        for (answer, start, score), probability in zip(ranked, scores.softmax(0).tolist(), strict=True)
    ]
