"""Exact match and F1: worked out by hand, beside torchmetrics, and beside rules that are nearly right."""

import random
from typing import Any

import pytest

from largebatch.bert.squad import evaluate
from largebatch.bert.squad_metrics import normalise
from largebatch.errors import InputError


def _data(answers: dict[str, list[str]], **fields: Any) -> dict[str, Any]:
    questions = [
        {"id": name, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]} | fields
        for name, texts in answers.items()
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": questions}]}]}


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("  The Cat's  pyjamas. ", "cats pyjamas"),
        ("a-b", "ab"),  # punctuation goes before words are looked at
        ("theatre, an ant", "theatre ant"),
        ("The", ""),
        ("naïve – Ünicode", "naïve – ünicode"),  # only ASCII punctuation goes
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


def test_scores_by_hand() -> None:
    data = _data({"1": ["the red house"], "2": ["ten", "10 men"], "3": ["left alone"], "4": ["no no yes"]})
    told = evaluate(data, {"1": "Red house!", "2": "the 10", "4": "no yes yes", "unknown": "x"})
    # 1: exact. 2: P = 1, R = 1/2 with the better answer. 3: missing, wrong. 4: two of three words in common.
    assert told == {"exact_match": 25.0, "f1": pytest.approx(100 * (1 + 2 / 3 + 0 + 2 / 3) / 4, abs=1e-12)}


def test_v2_without_an_answer() -> None:
    data = _data({"none": [], "some": ["blue sky"], "article": ["the"]}, is_impossible=False)
    assert evaluate(data, {"none": "", "some": "sky", "article": ""}) == {
        "exact_match": pytest.approx(200 / 3),
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 3),
    }
    assert evaluate(data, {"none": "guess", "some": "", "article": "x"}) == {"exact_match": 0.0, "f1": 0.0}


def test_v1_counts_no_words_in_common_as_nothing() -> None:
    assert evaluate(_data({"1": ["the"]}), {"1": "a"}) == {"exact_match": 100.0, "f1": 0.0}


def test_equal_to_torchmetrics() -> None:
    from torchmetrics.functional.text import squad

    chosen = random.Random(3)
    words = ["the", "an", "red", "Red.", "house", "ten", "10", "(sic)", "théâtre", "U.S.", "-"]

    # Never without words: torchmetrics takes two of these for alike, the official evaluation does not.
    def text() -> str:
        return " ".join(["tree", *chosen.choices(words, k=chosen.randint(0, 4))][:: chosen.choice([1, -1])])

    texts = {str(i): [text() for _ in range(4)] for i in range(300)}
    data = _data({name: of[:3] for name, of in texts.items()})
    predictions = {name: of[3] for name, of in texts.items()}
    theirs = squad(
        [{"prediction_text": text, "id": name} for name, text in predictions.items()],
        [{"answers": {"answer_start": [0] * 3, "text": of[:3]}, "id": name} for name, of in texts.items()],
    )
    ours = evaluate(data, predictions)
    assert 0 < ours["exact_match"] < ours["f1"] < 100
    assert ours == {name: pytest.approx(float(value), abs=1e-4) for name, value in theirs.items()}  # float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "SQuAD's form"),
        (
            {"data": [{"paragraphs": [{"qas": [{"answers": []}]}]}]},
            r"question at data\[0\].*\[0\] of the data set has the id None",
        ),
        ({"data": [{"paragraphs": [{"qas": {}}]}]}, "SQuAD's form"),
        ({"data": [{"paragraphs": {}}]}, "SQuAD's form"),
        ({"data": []}, "no questions"),
        (_data({"7": []}), "'7' has no answers"),
        ({"data": 2 * _data({"7": ["x"]})["data"]}, "'7'; ids must differ"),
        ({"data": [{"paragraphs": [{"qas": [{"id": "7", "answers": [{"answer_start": 3}]}]}]}]}, "'7' has an answer"),
        ({"data": [{"paragraphs": [{"qas": [{"id": "7", "answers": [{"text": None}]}]}]}]}, "'7' has an answer"),
        ({"data": [{"paragraphs": [{"qas": [{"id": 7, "answers": []}]}]}]}, "the id 7"),
    ],
)
def test_malformed_data_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(data, {})


def test_predictions_that_are_no_mapping() -> None:
    predictions: Any = ["x"]
    with pytest.raises(InputError, match="the predictions are list; they must map ids to answers"):
        evaluate(_data({"7": ["x"]}), predictions)


def test_a_prediction_that_is_no_text() -> None:
    predictions: dict[str, Any] = {"7": ["x"]}
    with pytest.raises(InputError, match="'7'"):
        evaluate(_data({"7": ["x"]}), predictions)
