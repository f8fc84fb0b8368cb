"""Windows cover the context, point at the answer, and each token is judged where most of its surroundings are seen."""

from pathlib import Path

import numpy as np
import pytest
from bert_corpora import PIECES, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from largebatch.bert.squad_batches import JudgedQuestions, TrainingWindows, collate_questions, collate_windows
from largebatch.bert.squad_questions import Answer, Question
from largebatch.bert.squad_windows import EncodedQuestions, Window, WindowSizes, judged_here, token_span
from largebatch.bert.tokenizer_files import tokenizer_of
from largebatch.errors import InputError

SMALL = WindowSizes(sequence_length=16, stride=4, question_length=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


def _question(words: int, answer: tuple[int, int] | None, asked: str = "word1 word2") -> Question:
    """Return a question about `words` words, the answer being those from the first to the last that are given."""
    texts = [f"word{n % 60}" for n in range(words)]
    context = " ".join(texts)
    if answer is None:
        return Question("q", asked, context, ())
    start = len(" ".join(texts[: answer[0]])) + (answer[0] > 0)
    return Question("q", asked, context, (Answer(" ".join(texts[answer[0] : answer[1] + 1]), start),))


def _best_window(windows: list[Window], token: int) -> int:
    """Return where a token is judged, word for word as it is defined."""
    merits = []
    for place, window in enumerate(windows):
        at = token - window.context_first
        if 0 <= at < window.context_length:
            merits.append((min(at, window.context_length - 1 - at), window.context_length, -place))
    return -max(merits)[2]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_cover_the_context_and_point_at_the_answer(folder: Path, data: st.DataObject) -> None:
    words = data.draw(st.integers(1, 60))
    first = data.draw(st.integers(0, words - 1))
    last = min(words - 1, first + data.draw(st.integers(0, 8)))
    asked = " ".join(["word3"] * data.draw(st.integers(1, 5)))
    question = _question(words, (first, last), asked)
    encoded = EncodedQuestions([question], tokenizer_of(folder), SMALL)
    windows = encoded.windows(0)
    numbers = {piece: number for number, piece in enumerate(PIECES)}
    context = [numbers[f"word{n % 60}"] for n in range(words)]
    seen: set[int] = set()
    for window in windows:
        assert len(window.tokens) <= SMALL.sequence_length
        part = range(window.context_first, window.context_first + window.context_length)
        assert [numbers["[CLS]"], numbers["[SEP]"]] == [window.tokens[0], window.tokens[-1]]
        assert window.tokens[1 : window.context_at].tolist() == [numbers["word3"]] * min(3, len(asked.split())) + [
            numbers["[SEP]"]
        ]
        assert window.tokens[window.context_at : -1].tolist() == [context[i] for i in part]
        whole = first in part and last in part
        assert (window.start > 0) == whole
        if whole:
            assert window.tokens[window.start : window.end + 1].tolist() == context[first : last + 1]
        seen |= set(part)
    assert seen == set(range(words))
    assert encoded.window_count(0) == len(windows)
    assert encoded.length(0) == max(len(window.tokens) for window in windows)
    assert len(windows) == 1 or words > windows[-2].context_first + windows[-2].context_length, "none is needless"
    judged = judged_here(windows)
    for token in range(words):
        here = [
            place
            for place, window in enumerate(windows)
            if 0 <= token - window.context_first < window.context_length and judged[place][token - window.context_first]
        ]
        assert here == [_best_window(windows, token)]


def test_the_first_window_is_not_always_the_judge(folder: Path) -> None:
    """The wrong rule, that the first window to show a token judges it, differs."""
    windows = EncodedQuestions([_question(30, None)], tokenizer_of(folder), SMALL).windows(0)
    judged = judged_here(windows)
    first = [
        [
            token >= (windows[place - 1].context_first + windows[place - 1].context_length if place else 0)
            for token in part
        ]
        for place, window in enumerate(windows)
        for part in [range(window.context_first, window.context_first + window.context_length)]
    ]
    assert [part.tolist() for part in judged] != first


def test_an_answer_has_every_token_that_it_touches(folder: Path) -> None:
    context = "word1 word2words word3"  # word2 and the pieces of what follows it are one word
    encoded = EncodedQuestions([Question("q", "word1", context, ())], tokenizer_of(folder), SMALL).context(0)
    touched = token_span(encoded, Answer("ord1 w", 1))
    assert touched == (0, 1)
    assert token_span(encoded, Answer(" ", 5)) is None, "no token has a character of it"
    assert token_span(encoded, Answer("word3", context.index("word3"))) == (2, 2)


def test_characters_outside_the_basic_plane_count_as_one(folder: Path) -> None:
    context = "word1 𝒳𝒴 word2 word3"
    question = Question("q", "word1", context, (Answer("word2", context.index("word2")),))
    encoded = EncodedQuestions([question], tokenizer_of(folder), SMALL)
    window = encoded.window(0, 0)
    assert window.tokens[window.start] == PIECES.index("word2")
    start, end = encoded.context(0).characters[window.start - window.context_at]
    assert context[start:end] == "word2"


def test_a_context_without_a_token_has_one_empty_window(folder: Path) -> None:
    encoded = EncodedQuestions([Question("q", "word1", " \u3000 ", ())], tokenizer_of(folder), SMALL)
    (window,) = encoded.windows(0)
    assert window.context_length == 0
    assert [part.tolist() for part in judged_here([window])] == [[]]


def test_training_windows_are_those_of_all_questions_in_order(folder: Path) -> None:
    questions = [_question(words, (0, 0)) for words in (3, 30, 1, 17)]
    encoded = EncodedQuestions(questions, tokenizer_of(folder), SMALL)
    dataset = TrainingWindows(encoded)
    every = [window for number in range(4) for window in encoded.windows(number)]
    assert len(dataset) == len(every) > 4
    asked = [(0, index) for index in range(len(every))][::-1]
    assert dataset.lengths(asked).tolist() == [len(window.tokens) for window in every][::-1]
    for index, window in enumerate(every):
        assert all(np.array_equal(a, b) for a, b in zip(dataset[5, index], window, strict=True))
    with pytest.raises(IndexError):
        dataset[0, len(every)]


def test_batches_are_padded_and_say_what_is_context(folder: Path) -> None:
    encoded = EncodedQuestions([_question(3, (1, 1)), _question(9, (2, 3))], tokenizer_of(folder), SMALL)
    batch = collate_windows([encoded.window(0, 0), encoded.window(1, 0)])
    assert batch["input_ids"].shape == (2, 14)
    assert batch["attention_mask"].sum(1).tolist() == [8, 14]
    assert batch["token_type_ids"].sum(1).tolist() == [4, 10]
    assert (batch["input_ids"][0, 8:] == 0).all()
    assert batch["start"].tolist() == [5, 6]
    assert batch["end"].tolist() == [5, 7]
    judged = JudgedQuestions(EncodedQuestions([_question(30, None), _question(2, None)], tokenizer_of(folder), SMALL))
    questions = [judged[0, 0], judged[0, 1]]
    assert [question.number for question in questions] == [1, 0], "the shorter first"
    batch = collate_questions(questions)
    assert batch["question"].tolist() == [1, 0]
    assert len(batch["input_ids"]) == sum(len(question.windows) for question in questions)


@pytest.mark.parametrize(
    ("given_sizes", "said"),
    [
        ({"stride": 0}, "stride is 0, allowed is 1 or more"),
        ({"question_length": 0}, "question_length is 0"),
        ({"sequence_length": 67}, "must be 68 or more"),
        ({"stride": 400}, "would leave out parts of the context; allowed is up to 317"),
    ],
)
def test_sizes_that_cannot_work_are_refused(given_sizes: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        WindowSizes(**given_sizes)


@pytest.mark.parametrize("longest", [5, 8, 64, 383, 384, 512])
def test_smaller_models_get_smaller_windows(longest: int) -> None:
    sizes = WindowSizes.for_model(longest)
    assert sizes.sequence_length == min(longest, 384)
    assert WindowSizes.for_model(512, sequence_length=longest).sequence_length == longest
    assert sizes == WindowSizes() or longest < 384


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "word1"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"no \[SEP\]"):
        EncodedQuestions([_question(1, None)], tokenizer, SMALL)
