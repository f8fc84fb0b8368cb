"""Questions come from the official JSON or from a Hugging Face dataset, and are the same."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from largebatch.bert.squad import questions_of, read_dataset
from largebatch.bert.squad_source import dataset_of_rows
from largebatch.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"id": "1", "context": "Ada wrote.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
    {"id": "2", "context": "Bea read.", "question": "Who?", "answers": {"text": ["Bea", "Be"], "answer_start": [0, 0]}},
    {"id": "3", "context": "Ada wrote.", "question": "What?", "answers": {"text": ["wrote"], "answer_start": [4]}},
]
IMPOSSIBLE = {"id": "4", "context": "Bea read.", "question": "Why?", "answers": {"text": [], "answer_start": []}}


def test_rows_are_the_official_form() -> None:
    questions, problems = questions_of(dataset_of_rows(ROWS))
    assert problems == []
    assert [(q.id, q.context, q.text, [(a.text, a.start) for a in q.answers]) for q in questions] == [
        ("1", "Ada wrote.", "Who?", [("Ada", 0)]),
        ("3", "Ada wrote.", "What?", [("wrote", 4)]),
        ("2", "Bea read.", "Who?", [("Bea", 0), ("Be", 0)]),
    ]
    v1, v2 = dataset_of_rows(ROWS), dataset_of_rows([*ROWS, IMPOSSIBLE])
    assert "is_impossible" not in json.dumps(v1)
    assert [question.answers == () for question in questions_of(v2)[0]] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "context": "c", "question": "q"}, "row 3 has no answers"),
        (ROWS[0] | {"answers": [{"text": "Ada"}]}, "row 3: the answers are"),
        (ROWS[0] | {"answers": {"text": ["Ada"], "answer_start": []}}, "lists of one length"),
    ],
)
def test_rows_of_another_form_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dataset_of_rows([*ROWS, row])


def test_datasets_are_read_from_folders(tmp_path: Path) -> None:
    dataset = datasets.DatasetDict({"validation": datasets.Dataset.from_list(ROWS)})
    dataset.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    dataset["validation"].to_parquet(str(tmp_path / "parquet" / "validation.parquet"))
    wanted = dataset_of_rows(ROWS)
    assert read_dataset(str(tmp_path / "saved"), "validation") == wanted
    assert read_dataset(f"hf:{tmp_path / 'parquet'}", "validation") == wanted
    with pytest.raises(InputError, match="has no split 'train'"):
        read_dataset(str(tmp_path / "saved"), "train")
    with pytest.raises(InputError, match="cannot be opened"):
        read_dataset(f"hf:{tmp_path / 'nowhere'}", "train")


def test_a_dataset_with_other_columns_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "Ada wrote."}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="row 0 has no id, context, question, answers"):
        read_dataset(str(tmp_path / "saved"), "train")
