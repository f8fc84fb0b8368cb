"""Answers are the best spans: compared with a search over all of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.bert.squad_answers import AnswerOptions, Span, WindowSpans, best_spans, rank
from largebatch.bert.squad_windows import EncodedContext, Window
from largebatch.errors import InputError

TEXT = "ab cd ab ef"
CONTEXT = EncodedContext(np.arange(4, dtype=np.int32), np.array([[0, 2], [3, 5], [6, 8], [9, 11]], np.int32))


def _window(length: int, at: int, first: int) -> Window:
    return Window(np.zeros(length, np.int32), at, first, 0, 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.integers(1, 30))
def test_best_spans_are_those_of_a_search(seed: int, parts: int, longest: int, best: int) -> None:
    generator = np.random.default_rng(seed)
    windows = [_window(parts + 4, 3, 7), _window(parts + 3, 2, 0)]
    judged = [generator.random(window.context_length) < 0.7 for window in windows]
    starts, ends = (torch.from_numpy(generator.standard_normal((2, parts + 6))) for _ in range(2))
    options = AnswerOptions(answer_length=longest, best=best)
    found = best_spans(starts, ends, windows, judged, options)
    for row, (window, here) in enumerate(zip(windows, judged, strict=True)):
        every = [
            Span(float(starts[row, window.context_at + i].float() + ends[row, window.context_at + j].float()), i, j)
            for i in range(window.context_length)
            for j in range(i, min(i + longest, window.context_length))
            if here[i]
        ]
        every.sort(key=lambda span: -span.score)
        shift = window.context_first
        assert [(s.first, s.last) for s in found[row].spans] == [
            (s.first + shift, s.last + shift) for s in every[:best]
        ]
        assert found[row].null == pytest.approx(float(starts[row, 0] + ends[row, 0]), abs=1e-6)


def test_equal_texts_are_one_answer_by_their_best_score() -> None:
    found = [WindowSpans([Span(3.0, 2, 2), Span(1.0, 1, 1)], 0.0), WindowSpans([Span(2.0, 0, 0)], 0.0)]
    ranked = rank(TEXT, CONTEXT, found, AnswerOptions())
    assert [(answer.text, answer.start, answer.score) for answer in ranked] == [("ab", 6, 3.0), ("cd", 3, 1.0)]
    total = math.exp(3) + math.exp(1)
    assert [answer.probability for answer in ranked] == pytest.approx([math.exp(3) / total, math.exp(1) / total])


@pytest.mark.parametrize(
    ("null", "threshold", "texts"),
    [
        (4.0, 0.0, ["", "ab", "cd"]),
        (4.0, 1.5, ["ab", "", "cd"]),  # better by score, but not by enough to be given
        (2.0, 0.0, ["ab", "", "cd"]),
        (0.0, 0.0, ["ab", "cd", ""]),
        (2.5, -1.0, ["", "ab", "cd"]),
    ],
)
def test_no_answer_is_given_beyond_the_threshold(null: float, threshold: float, texts: list[str]) -> None:
    spans = [Span(3.0, 0, 0), Span(1.0, 1, 1)]
    # The window that is least sure that there is none decides.
    found = [WindowSpans(spans, null + 5), WindowSpans([], null)]
    options = AnswerOptions(may_be_impossible=True, null_threshold=threshold)
    assert [answer.text for answer in rank(TEXT, CONTEXT, found, options)] == texts
    assert "" not in [answer.text for answer in rank(TEXT, CONTEXT, found, AnswerOptions())]


def test_scores_that_are_no_numbers_give_no_answer() -> None:
    window = _window(7, 2, 0)
    nothing = torch.full((1, 7), torch.nan)
    found = best_spans(nothing, nothing, [window], [np.ones(4, bool)], AnswerOptions())
    assert [answer.text for answer in rank(TEXT, CONTEXT, found, AnswerOptions())] == [""]


@pytest.mark.parametrize("given_options", [{"answer_length": 0}, {"best": 0}, {"null_threshold": math.nan}])
def test_options_out_of_range_are_refused(given_options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="allowed is"):
        AnswerOptions(**given_options)
