"""Questions and a BERT of a few words, for the tests of SQuAD."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from bert_corpora import PIECES, write_tokenizer
from transformers import BertConfig, BertModel

ANSWER = "word59"
"""The one word that is always the answer."""


def write_bert(folder: Path, *, positions: int = 64, hidden: int = 32, layers: int = 1) -> Path:
    """Write an encoder with random weights and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def made_dataset(questions: int, seed: int = 0, *, longest: int = 40, impossible: int = 0) -> dict[str, Any]:
    """Return a data set in SQuAD's form; the last `impossible` questions have no answer, which makes it v2."""
    generator = np.random.default_rng(seed)
    paragraphs = []
    for number in range(questions):
        words = [f"word{n}" for n in generator.integers(0, 59, generator.integers(3, longest))]
        entry: dict[str, Any] = {
            "id": f"q{number}",
            "question": f"word{generator.integers(0, 59)} word1",
            "answers": [],
        }
        if impossible:
            entry["is_impossible"] = number >= questions - impossible
        if not entry.get("is_impossible"):
            place = int(generator.integers(0, len(words)))
            words[place] = ANSWER
            start = len(" ".join(words[:place])) + (place > 0)
            entry["answers"] = [{"text": ANSWER, "answer_start": start}]
        paragraphs.append({"context": " ".join(words), "qas": [entry]})
    return {"version": "made", "data": [{"title": "made", "paragraphs": paragraphs}]}


def write_dataset(path: Path, *args: Any, **kwargs: Any) -> str:
    """Write `made_dataset` as JSON and return its path."""
    path.write_text(json.dumps(made_dataset(*args, **kwargs)), encoding="utf-8")
    return str(path)
