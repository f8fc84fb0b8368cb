"""Exact match and F1 of answers to SQuAD's questions, v1.1 and v2, by the rules of the official evaluations.

An answer is compared after normalisation: lower case, without punctuation (ASCII), without the words a, an and the,
with single spaces. With ``c`` words in common (counted as often as both have them), ``p`` words predicted and ``g`` in
the annotated answer:

    exact match = 1 if the normalised texts are equal, else 0
    F1 = 2 * P * R / (P + R),  P = c / p,  R = c / g;  0 if c = 0

A question counts by the best of its annotated answers. In v2 a question may have none: then the empty text is right,
and where either side has no words, F1 is 1 if both have none, else 0. Answers in v2 that are nothing once normalised
are not considered. Both are means over all questions, in percent; a question that is not answered counts 0.
The official evaluation of v2 leaves unanswered questions out of its means instead.

Source: Rajpurkar et al., arXiv 1606.05250, section 6.1, and arXiv 1806.03822, section 2.
"""

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from largebatch.bert.squad_source import entries
from largebatch.errors import InputError

_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Return an answer as answers are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def evaluate(dataset: Mapping[str, Any], predictions: Mapping[str, str]) -> dict[str, float]:
    """Return the scores of predicted answers.

    Args:
        dataset: SQuAD's JSON as it is read: ``{"data": [{"paragraphs": [{"context", "qas": [{"id", "answers":
            [{"text"}]}]}]}]}``. It is taken as v2 if any question says whether it ``is_impossible``.
        predictions: the text of the answer for each id; empty for none. Ids that the data set lacks are passed over.

    Returns:
        ``{"exact_match": ..., "f1": ...}``, in percent, means over all questions; a missing id counts as wrong.

    Raises:
        InputError: the data set has no question or not this form; a question of v1.1 has no answer; two have one id; a
            prediction is not text.
    """
    if not isinstance(predictions, Mapping):
        raise InputError(f"the predictions are {type(predictions).__name__}; they must map ids to answers")
    questions = list(_questions(dataset))
    may_be_impossible = any("is_impossible" in question for question in questions)
    exact = f1 = 0.0
    seen: set[str] = set()
    for question in questions:
        name = question["id"]
        if name in seen:
            raise InputError(f"two questions of the data set have the id {name!r}; ids must differ")
        seen.add(name)
        annotated = _answers(question)
        if not may_be_impossible and not annotated:
            raise InputError(f"question {name!r} has no answers, which only SQuAD v2 allows (with is_impossible)")
        if name not in predictions:
            continue
        predicted = predictions[name]
        if not isinstance(predicted, str):
            raise InputError(f"the prediction for {name!r} is {predicted!r}; it must be text, empty for no answer")
        found = scores(annotated, predicted, may_be_impossible=may_be_impossible)
        exact, f1 = exact + found[0], f1 + found[1]
    if not seen:
        raise InputError("the data set has no questions; there must be at least one")
    return {"exact_match": 100 * exact / len(seen), "f1": 100 * f1 / len(seen)}


def scores(annotated: Sequence[str], predicted: str, *, may_be_impossible: bool) -> tuple[float, float]:
    """Return exact match and F1, from 0 to 1, of an answer to one question.

    Args:
        annotated: its answers; there may be none in v2.
        predicted: the answer to be judged, empty for none.
        may_be_impossible: whether it is a question of v2.
    """
    right = [normalise(answer) for answer in annotated]
    if may_be_impossible:
        right = [answer for answer in right if answer] or [""]
    predicted = normalise(predicted)
    exact = max(predicted == answer for answer in right)
    return float(exact), max(_f1(predicted, answer, alike_if_empty=may_be_impossible) for answer in right)


def _questions(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for place, _, question in entries(dataset):
        name = question.get("id") if isinstance(question, Mapping) else None
        if not isinstance(name, str):
            raise InputError(f"the question at {place} of the data set has the id {name!r}; it must be text")
        yield question


def _answers(question: Mapping[str, Any]) -> list[str]:
    try:
        texts = [answer["text"] for answer in question.get("answers", ())]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"question {question['id']!r} has an answer without text") from error
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"question {question['id']!r} has an answer without text")
    return texts


def _f1(predicted: str, annotated: str, *, alike_if_empty: bool) -> float:
    """Return F1 of the words of two normalised texts."""
    ours, theirs = predicted.split(), annotated.split()
    if alike_if_empty and not (ours and theirs):
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0
