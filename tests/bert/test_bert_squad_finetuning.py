"""A BERT learns to answer, its scores are those of the evaluation, and what it has learned answers elsewhere too."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bert_corpora import write_corpus
from squad_made import ANSWER, made_dataset, write_bert, write_dataset
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from largebatch.bert.pretraining import BertPretraining
from largebatch.bert.squad import AnswerOptions, Reader, evaluate, questions_of, write_predictions
from largebatch.bert.squad_finetuning import SquadFineTuning
from largebatch.bert.squad_windows import WindowSizes
from largebatch.errors import InputError

STAGE: Any = SimpleNamespace(name="squad", task_options={})
SIZES: dict[str, Any] = {"sequence_length": 24, "stride": 8, "question_length": 4}


@pytest.fixture
def task(tmp_path: Path) -> SquadFineTuning:
    """A task whose contexts mostly take several windows."""
    return SquadFineTuning(
        train=write_dataset(tmp_path / "train.json", 120),
        dev=write_dataset(tmp_path / "dev.json", 40, 1),
        init_from=str(write_bert(tmp_path / "bert")),
        dropout=0.0,
        attention_dropout=0.0,
        **SIZES,
    )


def _learn(task: SquadFineTuning, steps: int, lr: float, shift: int = 0) -> nn.Module:
    """Train on batches of 24 windows; `shift` moves the labels of ends, a deliberate mistake."""
    torch.manual_seed(0)
    model = task.build_model(0)
    data = task.dataset(STAGE, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        batch = task.collate([data[0, (24 * step + i) % len(data)] for i in range(24)])
        batch["start"] = (batch["start"] - shift).clamp(min=0)
        batch["end"] = (batch["end"] - shift).clamp(min=0)
        (task.loss(model, batch)["span"] / task.counts(batch)["span"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _judged(task: SquadFineTuning, model: nn.Module, at_once: int = 64) -> tuple[float, dict[str, float]]:
    questions = task.evaluation_dataset(STAGE, 0)
    sums: dict[str, Tensor] = {}
    for first in range(0, len(questions), at_once):
        part = [questions[0, i] for i in range(first, min(first + at_once, len(questions)))]
        for name, value in task.evaluate(model, task.collate(part)).items():
            sums[name] = sums.get(name, torch.tensor(0.0)) + value
    return task.summarise({name: float(value) for name, value in sums.items()})


def test_a_bert_learns_to_answer_and_answers_elsewhere(task: SquadFineTuning, tmp_path: Path) -> None:
    task.check([])
    loss_before, before = _judged(task, _learn(task, 0, 0.0))
    model = _learn(task, 60, 3e-3)
    loss, metrics = _judged(task, model)
    assert loss < loss_before / 4
    assert metrics["f1"] > 95 > 40 > before["f1"]
    _, wrong = _judged(task, _learn(task, 60, 3e-3, shift=1))
    assert wrong["f1"] < 60, "labels that are off by one are seen in the score"

    task.export(model, tmp_path / "model")
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    AutoTokenizer.from_pretrained(tmp_path / "model")
    question = task.collate([task.evaluation_dataset(STAGE, 0)[0, 3]])
    inputs = {name: question[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    logits = theirs(**inputs | {"attention_mask": inputs["attention_mask"].long()}).start_logits
    starts, _ = model(**inputs)
    torch.testing.assert_close(starts[inputs["attention_mask"]], logits[inputs["attention_mask"]])

    dev = json.loads(Path(task.dev).read_text(encoding="utf-8"))
    reader = Reader(tmp_path / "model", sizes=WindowSizes(**SIZES))
    answers = reader.answer_all(questions_of(dev)[0])
    paths = write_predictions(tmp_path / "predictions", answers)
    predictions = json.loads(paths[0].read_text(encoding="utf-8"))
    assert evaluate(dev, predictions) == pytest.approx({name: metrics[name] for name in ("exact_match", "f1")})
    ranked = json.loads(paths[1].read_text(encoding="utf-8"))
    assert {name: answers[0]["text"] for name, answers in ranked.items()} == predictions
    assert list(predictions) == [entry["id"] for part in dev["data"][0]["paragraphs"] for entry in part["qas"]]

    far = " ".join(["word3"] * 3000 + ["𝒳", ANSWER] + ["word4"] * 2000)
    best = reader.answer("word7 word1", far)[0]
    assert (best.text, far[best.start : best.start + len(ANSWER)]) == (ANSWER, ANSWER)


def test_scores_do_not_depend_on_how_questions_are_joined(task: SquadFineTuning) -> None:
    model = _learn(task, 10, 3e-3)
    loss, metrics = _judged(task, model)
    for at_once in (1, 7):
        other_loss, other = _judged(task, model, at_once)
        assert other == pytest.approx(metrics)
        assert other_loss == pytest.approx(loss, rel=1e-5)


def test_long_contexts_are_read_in_parts(task: SquadFineTuning, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _learn(task, 10, 3e-3)
    whole = _judged(task, model)
    monkeypatch.setattr("largebatch.bert.squad_reading.WINDOWS_AT_ONCE", 3)
    assert _judged(task, model)[1] == pytest.approx(whole[1])


def test_questions_without_answer(task: SquadFineTuning, tmp_path: Path) -> None:
    task = replace(
        task,
        train=write_dataset(tmp_path / "v2-train.json", 120, impossible=50),
        dev=write_dataset(tmp_path / "v2-dev.json", 40, 1, impossible=15),
    )
    model = _learn(task, 100, 3e-3)
    _, metrics = _judged(task, model)
    assert metrics["unanswerable_exact_match"] > 90
    assert metrics["answerable_f1"] > 90
    # 25 questions have an answer and 15 none.
    of_answered = (40 * metrics["f1"] - 15 * metrics["unanswerable_exact_match"]) / 25
    assert of_answered == pytest.approx(metrics["answerable_f1"])
    _, never = _judged(replace(task, null_threshold=1e9), model)
    _, always = _judged(replace(task, null_threshold=-1e9), model)
    assert (never["unanswerable_exact_match"], always["unanswerable_exact_match"]) == (0, 100)
    assert always["answerable_f1"] == 0

    task.export(model, tmp_path / "model")
    options = AnswerOptions(may_be_impossible=True)
    reader = Reader(tmp_path / "model", sizes=WindowSizes(**SIZES), options=options)
    assert reader.answer("word1", "word3 word4 word5")[0].text == ""
    assert reader.answer("word1", f"word3 {ANSWER} word5")[0].text == ANSWER


def test_it_starts_from_a_pretraining_run(task: SquadFineTuning, tmp_path: Path) -> None:
    pretraining = BertPretraining(
        corpus=str(write_corpus(tmp_path / "corpus")),
        hidden_size=32,
        layers=1,
        attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    pretrained: Any = pretraining.build_model(3)
    pretraining.export(pretrained, tmp_path / "model")
    started = replace(task, init_from=str(tmp_path / "model"))
    started.check([])
    model: Any = started.build_model(0)
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.network.bert.get_parameter(name), pretrained.network.bert.get_parameter(name))
    untrained: Any = replace(started, random_weights=True).build_model(0)
    assert not torch.equal(untrained.network.bert.get_parameter(name), pretrained.network.bert.get_parameter(name))
    assert untrained.network.config.num_hidden_layers == 1


def test_seeds_decide_the_head_alone(task: SquadFineTuning) -> None:
    first, again, other = (dict(task.build_model(seed).named_parameters()) for seed in (1, 1, 2))
    head = "network.qa_outputs.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == [head]


def test_dropout_is_that_of_the_task(task: SquadFineTuning) -> None:
    model: Any = replace(task, dropout=0.25, attention_dropout=0.5).build_model(0)
    assert (model.network.config.hidden_dropout_prob, model.network.config.attention_probs_dropout_prob) == (0.25, 0.5)


def test_subsets_are_spread_over_the_questions(task: SquadFineTuning) -> None:
    few = replace(task, train_questions=30, dev_questions=10)
    asked = [question.id for question in few._encoded_training().questions]
    assert asked == [f"q{4 * i}" for i in range(30)]
    assert len(few.evaluation_dataset(STAGE, 0)) == 10
    assert few.fingerprint() != task.fingerprint() == replace(task, dropout=0.3).fingerprint()


def test_problems_are_logged_with_their_ids(
    task: SquadFineTuning, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = made_dataset(20)
    for paragraph in dataset["data"][0]["paragraphs"][:8]:
        paragraph["qas"][0]["answers"][0]["text"] = "nowhere"
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(dataset), encoding="utf-8")
    bad = replace(task, train=str(path))
    bad.check([])
    told = [record.getMessage() for record in caplog.records]
    assert f"{path}: question q0, left out: the answer 'nowhere' is not in the context" in told
    assert any("more such problems" in line for line in told)
    assert len(bad._encoded_training().questions) == 12


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": "nowhere.json"}, r"there is no file or folder nowhere\.json"),
        ({"init_from": "nowhere"}, "nowhere is not a folder with a Hugging Face model"),
        ({"train_questions": 0}, "train_questions is 0"),
        ({"dev_questions": -1}, "dev_questions is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"answer_length": 0}, "answer_length is 0"),
        ({"sequence_length": 65}, "sequence_length is 65, the model in .* allows 64"),
        ({"stride": 30}, "would leave out parts"),
        ({"null_threshold": 3.0}, "null_threshold is 3.0, but every question of .* has an answer: leave it out"),
    ],
)
def test_what_cannot_work_is_refused(task: SquadFineTuning, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(task, **changed).check([])


def test_a_tokenizer_of_another_model_is_refused(task: SquadFineTuning, tmp_path: Path) -> None:
    folder = Path(task.init_from)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        task.check([])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_bert(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"vocab_size": 7}), encoding="utf-8")
    with pytest.raises(InputError, match="68 tokens, but its model only 7"):
        replace(task, init_from=str(tmp_path / "other")).check([])


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda"])
def test_a_reader_needs_a_device(task: SquadFineTuning, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        return
    with pytest.raises(InputError, match=f"device is .?{device}"):
        Reader(task.init_from, device=device)


def test_a_model_without_a_span_head_does_not_answer(task: SquadFineTuning) -> None:
    with pytest.raises(InputError, match=r"has no qa_outputs.*fine-tune it first"):
        Reader(task.init_from)
