"""Where SQuAD's questions come from: the official JSON, at a path or a URL, or a Hugging Face dataset of these fields.

Whatever the source, what is read has the form of the official JSON, which the questions and the scores are taken from.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from largebatch.errors import InputError
from largebatch.text.files import FileContent, list_files
from largebatch.text.hub import dataset_name, one_line, open_dataset

_FIELDS = ("id", "context", "question", "answers")


def read_dataset(source: str, split: str = "train") -> dict[str, Any]:
    """Read a data set in SQuAD's form.

    Args:
        source: a JSON file, plain or compressed, at a path or an fsspec URL; or ``hf:NAME``, or a folder that
            `datasets` saved, with the columns id, context, question and answers (``rajpurkar/squad``).
        split: which part of a Hugging Face dataset.

    Raises:
        InputError: there is no such file or dataset, or it is torn or no JSON object.
    """
    if (name := dataset_name(source)) is not None:
        return _rows(name, split)
    files = list_files(source, frozenset({".json"}))
    if len(files) != 1:
        raise InputError(f"{source} has {len(files)} JSON files; give the one that holds the questions")
    blocks: list[bytes] = []
    with FileContent(files[0]) as content:
        while block := content.read(1 << 20):
            blocks.append(block)
    try:
        dataset = json.loads(b"".join(blocks))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON: {error}") from None
    if not isinstance(dataset, dict):
        raise InputError(f"{source} holds {type(dataset).__name__}, not a JSON object with SQuAD's data")
    return dataset


def _rows(name: str, split: str) -> dict[str, Any]:
    rows = open_dataset(name, None, split)
    try:
        return dataset_of_rows(rows)
    except InputError as error:
        raise InputError(f"the dataset {name}: {error}") from None
    except Exception as error:  # of many libraries and of no common kind
        raise InputError(f"the dataset {name} cannot be read: {one_line(error)}") from None


def dataset_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows of a Hugging Face dataset in the form of the official JSON.

    Each has id, context, question and answers ``{"text": [...], "answer_start": [...]}``. Where some have no answers,
    the whole is v2 and says of each question whether it is impossible.

    Raises:
        InputError: a row lacks a field, or its answers are of another form.
    """
    rows = list(rows)
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        lacking = [field for field in _FIELDS if field not in row]
        if lacking:
            raise InputError(f"row {number} has no {', '.join(lacking)}; it needs {', '.join(_FIELDS)}")
        answers = row["answers"]
        try:
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"row {number}: the answers are {str(answers)[:80]}, they must be text and answer_start, lists of one "
                "length"
            ) from None
        entry: dict[str, Any] = {
            "id": row["id"],
            "question": row["question"],
            "answers": [{"text": text, "answer_start": start} for text, start in pairs],
        }
        paragraphs.setdefault(row["context"], []).append(entry)
    if any(not entry["answers"] for entries in paragraphs.values() for entry in entries):
        for entries in paragraphs.values():
            for entry in entries:
                entry["is_impossible"] = not entry["answers"]
    return {"data": [{"paragraphs": [{"context": context, "qas": qas}]} for context, qas in paragraphs.items()]}


def entries(dataset: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (place in the file, context, entry) for each question of a data set in SQuAD's form.

    Raises:
        InputError: it has not that form.
    """
    try:
        for i, article in enumerate(_list(dataset["data"])):
            for j, paragraph in enumerate(_list(article["paragraphs"])):
                for k, entry in enumerate(_list(paragraph["qas"])):
                    yield f"data[{i}].paragraphs[{j}].qas[{k}]", paragraph.get("context"), entry
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the data is not of SQuAD's form, data > paragraphs > qas: {type(error).__name__}: {error}"
        ) from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is wanted, not {type(value).__name__}")
    return value
