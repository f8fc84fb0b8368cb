"""SQuAD's questions, v1.1 and v2, from the official JSON; what is wrong with one is told with its id.

Positions count characters (code points), as the official files do. An answer that is not where it is said to be is
taken where it stands nearest to that: files written by programs that count in UTF-16 are off by one for each character
outside the basic plane.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from largebatch.bert.squad_source import entries, read_dataset
from largebatch.errors import InputError


@dataclass(frozen=True, slots=True)
class Answer:
    """An annotated answer: ``context[start : start + len(text)] == text``."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a context."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...]
    """Empty where the context has none, which only v2 allows."""
    may_be_impossible: bool = False
    """Whether the data set says of it if it is impossible, as v2 does."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a question, and what was done."""

    id: str
    """The question's id; where it has none, its place in the file."""
    what: str
    kept: bool
    """Whether the question is used all the same."""


class _Unusable(Exception):
    pass


def read_questions(source: str, split: str = "train") -> tuple[list[Question], list[Problem]]:
    """Read the questions of a source, see `squad_source.read_dataset`, in its order, and what is wrong with some.

    Raises:
        InputError: there is no such source, it is torn or not of SQuAD's form, or has no usable question.
    """
    dataset = read_dataset(source, split)
    try:
        return questions_of(dataset)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def questions_of(dataset: Mapping[str, Any], *, answers_needed: bool = True) -> tuple[list[Question], list[Problem]]:
    """Return the questions of a data set in SQuAD's form, in its order, and what is wrong with some.

    A question is left out if it has no id or that of an earlier one, no text, an empty context, or no answer that
    stands in the context although it should have one, unless they are not needed.

    Raises:
        InputError: the data set has not that form, or no usable question.
    """
    questions: list[Question] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for place, context, entry in entries(dataset):
        name = entry.get("id") if isinstance(entry, Mapping) else None
        shown = name if isinstance(name, str) and name and is_text(name) else place
        told: list[str] = []
        try:
            question = _question(entry, context, told, answers_needed)
            if question.id in seen:
                raise _Unusable("another question before it has this id")
        except _Unusable as error:
            problems += [Problem(shown, what, False) for what in (*told, str(error))]
            continue
        problems += [Problem(shown, what, True) for what in told]
        seen.add(question.id)
        questions.append(question)
    if not questions:
        why = f"; the first: {problems[0].id}: {problems[0].what}" if problems else ""
        raise InputError(f"there is no usable question among {len({problem.id for problem in problems})}{why}")
    return questions, problems


def spread(questions: list[Question], count: int | None, source: str) -> list[Question]:
    """Return so many questions of a source, spread evenly over them; None is all.

    Raises:
        InputError: it has not so many.
    """
    count = len(questions) if count is None else count
    if not 1 <= count <= len(questions):
        raise InputError(f"{count} questions of {source} are asked for, it has {len(questions)} that can be used")
    return [questions[i * len(questions) // count] for i in range(count)]


def is_text(characters: str) -> bool:
    """Return whether a string can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        characters.encode()
    except UnicodeEncodeError:
        return False
    return True


def _question(entry: Any, context: Any, told: list[str], answers_needed: bool) -> Question:
    """Return a question, and append what is wrong with its answers."""
    if not isinstance(entry, Mapping):
        raise _Unusable(f"it is {type(entry).__name__}, not an object")
    name, text = entry.get("id"), entry.get("question")
    if not isinstance(name, str) or not name:
        raise _Unusable(f"its id is {name!r}, not text")
    if not isinstance(context, str) or not context.strip():
        raise _Unusable("its context is empty")
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("the question is empty")
    if not all(map(is_text, (name, text, context))):
        raise _Unusable("its id, question or context holds half of a surrogate pair, which is no text")
    v2 = "is_impossible" in entry
    annotated = entry.get("answers")
    if _is_impossible(entry.get("is_impossible", False), annotated, told):
        return Question(name, text, context, (), v2)
    if not annotated and not answers_needed:
        return Question(name, text, context, (), v2)
    if not isinstance(annotated, list) or not annotated:
        raise _Unusable("it has no answers")
    answers = [found for answer in annotated if (found := _answer(answer, context, told)) is not None]
    if not answers and answers_needed:
        raise _Unusable("none of its answers can be used")
    return Question(name, text, context, tuple(answers), v2)


def _is_impossible(given: Any, annotated: Any, told: list[str]) -> bool:
    """Return whether a question has no answer; one that has an answer is answerable, as for the official evaluation."""
    answered = isinstance(annotated, list) and any(map(_has_text, annotated))
    taken = "answerable" if answered else "impossible"
    if not isinstance(given, bool):
        told.append(f"its is_impossible is {given!r}, not true or false; taken as {taken} for its answers")
    elif given and answered:
        told.append("its is_impossible is true, but it has an answer; taken as answerable")
    return given is not False and not answered


def _has_text(answer: Any) -> bool:
    text = answer.get("text") if isinstance(answer, Mapping) else None
    return isinstance(text, str) and bool(text.strip())


def _answer(answer: Any, context: str, told: list[str]) -> Answer | None:
    if not _has_text(answer):
        told.append("an answer has no text")
        return None
    text, given = answer["text"], answer.get("answer_start")
    start = given if isinstance(given, int) and not isinstance(given, bool) else 0
    if start >= 0 and given == start and context.startswith(text, start):
        return Answer(text, start)
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    if not places:
        told.append(f"the answer {_shortened(text)} is not in the context")
        return None
    nearest = min(places, key=lambda place: abs(place - start))
    told.append(f"the answer {_shortened(text)} is not at {given!r}; taken at {nearest}")
    return Answer(text, nearest)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
