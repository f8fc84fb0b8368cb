"""SQuAD's questions are read as they are, and what is wrong with one is told with its id."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.bert.squad import Answer, Problem, evaluate, questions_of, read_questions, spread
from largebatch.errors import InputError

CONTEXT = "Ada wrote to Bea. Bea wrote to Cy."


def _data(*entries: Any, context: Any = CONTEXT) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(entries)}]}]}


def _entry(name: Any = "1", answers: Any = (("Bea", 13),), **fields: Any) -> dict[str, Any]:
    given_answers = [{"text": t, "answer_start": s} for t, s in answers] if isinstance(answers, tuple) else answers
    return {"id": name, "question": "Who?", "answers": given_answers} | fields


GOOD = _entry("good")


def test_questions_as_they_are() -> None:
    questions, problems = questions_of(
        _data(_entry("a", (("Bea", 18), ("Cy", 31))), _entry("b", (), is_impossible=True), GOOD)
    )
    assert [q.id for q in questions] == ["a", "b", "good"]
    assert questions[0].answers == (Answer("Bea", 18), Answer("Cy", 31))
    assert questions[1].answers == ()
    assert (questions[2].text, questions[2].context) == ("Who?", CONTEXT)
    assert problems == []
    assert [q.may_be_impossible for q in questions] == [False, True, False]


@pytest.mark.parametrize(
    ("entry", "shown", "what"),
    [
        (_entry(None), "data[0].paragraphs[0].qas[0]", "its id is None"),
        (_entry("good"), "good", "has this id"),
        (_entry(question=" "), "1", "the question is empty"),
        (_entry(answers=[]), "1", "no answers"),
        (_entry(answers=None), "1", "no answers"),
        (_entry(answers=(("Dan", 3),)), "1", "'Dan' is not in the context"),
        (_entry(answers=[{"answer_start": 3}]), "1", "an answer has no text"),
        (_entry(answers=["Bea"]), "1", "an answer has no text"),
        ("Who?", "data[0].paragraphs[0].qas[0]", "it is str"),
        (_entry(question="Who \ud800?"), "1", "half of a surrogate pair"),
        (_entry("\ud800"), "data[0].paragraphs[0].qas[0]", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_told(entry: Any, shown: str, what: str) -> None:
    entries = [GOOD, entry] if shown == "good" else [entry, GOOD]
    questions, problems = questions_of(_data(*entries))
    assert [q.id for q in questions] == ["good"]
    assert {problem.id for problem in problems} == {shown}
    assert what in problems[0].what
    assert not any(problem.kept for problem in problems)


@pytest.mark.parametrize(
    ("start", "found"), [(12, 13), (17, 18), (99, 18), (-3, 13), ("13", 13), (None, 13), (True, 13)]
)
def test_an_answer_elsewhere_is_taken_where_it_is_nearest(start: Any, found: int) -> None:
    questions, problems = questions_of(_data(_entry("1", (("Bea", start),))))
    assert questions[0].answers == (Answer("Bea", found),)
    assert problems == [Problem("1", f"the answer 'Bea' is not at {start!r}; taken at {found}", True)]


@pytest.mark.parametrize(
    ("given_value", "answers", "answerable", "what"),
    [
        (True, (("Bea", 13),), True, "its is_impossible is true, but it has an answer; taken as answerable"),
        ("false", (("Bea", 13),), True, "its is_impossible is 'false', not true or false; taken as answerable"),
        (None, (), False, "its is_impossible is None, not true or false; taken as impossible"),
        (True, [{"text": "", "answer_start": 0}], False, None),
        (True, None, False, None),
    ],
)
def test_a_question_that_has_an_answer_is_answerable(
    given_value: Any, answers: Any, answerable: bool, what: str | None
) -> None:
    data = _data(_entry("1", answers, is_impossible=given_value))
    (question,), problems = questions_of(data)
    assert bool(question.answers) == answerable
    assert question.may_be_impossible
    assert [problem.what.startswith(what or "-") for problem in problems] == ([] if what is None else [True])
    assert all(problem.kept for problem in problems)
    if answers is not None:  # as the evaluation takes it
        right = evaluate(data, {"1": question.answers[0].text if question.answers else ""})
        assert right == {"exact_match": 100, "f1": 100}


def test_so_many_questions_are_spread_over_all() -> None:
    questions = questions_of(_data(*(_entry(str(number)) for number in range(7))))[0]
    assert [question.id for question in spread(questions, 3, "f")] == ["0", "2", "4"]
    assert spread(questions, None, "f") == questions
    with pytest.raises(InputError, match="8 questions of f are asked for, it has 7 that can be used"):
        spread(questions, 8, "f")


@given(
    st.text(st.sampled_from("ab 😀é\u0301"), max_size=30),
    st.text(st.sampled_from("ab😀é\u0301"), min_size=1, max_size=4),
)
def test_positions_in_utf16_are_mended(before: str, answer: str) -> None:
    context = before + "#" + answer
    in_utf16 = len((before + "#").encode("utf-16-le")) // 2
    questions, problems = questions_of(_data(_entry("1", (("#" + answer, in_utf16 - 1),)), context=context))
    assert questions[0].answers == (Answer("#" + answer, len(before)),)
    assert len(problems) == (in_utf16 - 1 != len(before))


def test_a_long_context_and_an_empty_one() -> None:
    far = "word " * 100_000 + "Bea"
    assert questions_of(_data(_entry("1", (("Bea", 500_000),)), context=far))[1] == []
    for empty in ("", " \n", None):
        with pytest.raises(InputError, match="no usable question among 1; the first: 1: its context is empty"):
            questions_of(_data(_entry("1"), context=empty))


@pytest.mark.parametrize(
    "data", [[], {}, {"data": {}}, {"data": [3]}, {"data": [{"paragraphs": "x"}]}, {"data": [{"paragraphs": [{}]}]}]
)
def test_another_form_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="SQuAD's form"):
        questions_of(data)


def test_files_are_read_and_named(tmp_path: Path) -> None:
    text = json.dumps(_data(GOOD))
    plain, packed, torn = tmp_path / "plain.json", tmp_path / "packed.json.gz", tmp_path / "torn.json"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    torn.write_text(text[:-3], encoding="utf-8")
    assert read_questions(str(plain)) == read_questions(str(packed)) == questions_of(_data(GOOD))
    with pytest.raises(InputError, match=r"torn\.json is not JSON"):
        read_questions(str(torn))
    with pytest.raises(InputError, match="has 3 JSON files"):
        read_questions(str(tmp_path))
    torn.write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"torn\.json holds list, not a JSON object"):
        read_questions(str(torn))
