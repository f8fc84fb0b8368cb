"""The verb `predict`: one question, or a file of them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from squad_made import ANSWER, made_dataset, write_bert, write_dataset
from transformers import BertForQuestionAnswering

from largebatch.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that answers with the word that is always the answer, by construction."""
    folder = write_bert(tmp_path_factory.mktemp("model"), positions=64)
    network: Any = BertForQuestionAnswering.from_pretrained(folder)
    number = int(ANSWER.removeprefix("word")) + 5
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.0)
        network.bert.embeddings.word_embeddings.weight[number, 0] = 1.0
        network.bert.embeddings.LayerNorm.weight.fill_(1.0)
        layer = network.bert.encoder.layer[0]
        layer.attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
        network.qa_outputs.weight[:, 0] = 1.0
    network.save_pretrained(folder)
    return str(folder)


def test_one_question(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    context = f"word1 word2 {ANSWER} word3"
    assert main(["predict", model, "--question", "word4", "--context", context]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == [first.split()[0], ANSWER]
    (tmp_path / "context.txt").write_text(context, encoding="utf-8")
    assert main(["predict", model, "--question", "word4", "--context", f"@{tmp_path / 'context.txt'}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


def test_the_context_may_come_from_the_input(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"word1 {ANSWER} word2 " * 400))
    assert main(["predict", model, "--question", "word4", "--context", "-"]) == 0
    assert capsys.readouterr().out.split()[1].startswith(ANSWER)


def test_all_questions_of_a_file(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dev.json", 12)
    assert main(["predict", model, "--data", data, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"exact match 100.00, F1 100.00 over all questions of {data}"
    given = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert given == {f"q{n}": ANSWER for n in range(12)}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "nbest_predictions.json",
        "predictions.json",
    ]


def test_a_file_without_answers_is_answered(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = made_dataset(4)
    for paragraph in dataset["data"][0]["paragraphs"]:
        del paragraph["qas"][0]["answers"]
    dataset["data"][0]["paragraphs"][0]["qas"][0]["question"] = ""
    path = tmp_path / "asked.json"
    path.write_text(json.dumps(dataset), encoding="utf-8")
    assert main(["predict", model, "--data", str(path), "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "question q0 is left out: the question is empty"
    assert f"{path} has no answers, so there will be no score" in lines
    assert list(json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))) == ["q1", "q2", "q3"]


def test_windows_of_a_short_model_may_be_set_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    context = " ".join([*["word1"] * 90, ANSWER])
    assert main(["predict", model, "--question", "word4", "--context", context, "--stride", "9"]) == 0
    assert capsys.readouterr().out.split()[1] == ANSWER


def test_input_that_is_no_text(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"word1 \xff"), encoding="utf-8"))
    assert main(["predict", model, "--question", "word4", "--context", "-"]) == 2
    assert capsys.readouterr().err == "largebatch: the input is not UTF-8 text: byte 6\n"


def test_a_file_that_cannot_be_scored_says_so_before_it_is_read(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dataset = made_dataset(4)
    paragraphs = dataset["data"][0]["paragraphs"]
    paragraphs[2]["qas"][0]["id"] = "q1"
    paragraphs[3]["context"] = "word1 \ud800"
    (tmp_path / "dev.json").write_text(json.dumps(dataset), encoding="utf-8")
    assert main(["predict", model, "--data", str(tmp_path / "dev.json"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "question q1 is left out: another question before it has this id",
        "question q3 is left out: its id, question or context holds half of a surrogate pair, which is no text",
        "there will be no score: two questions of the data set have the id 'q1'; ids must differ",
    ]
    given = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert given == {"q0": ANSWER, "q1": ANSWER}


def test_a_place_that_cannot_be_written_to_is_told_before_reading(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*args: object) -> None:
        pytest.fail("questions were answered first")

    monkeypatch.setattr("largebatch.bert.squad_reader.Reader.answer_all", too_late)
    data = write_dataset(tmp_path / "dev.json", 3)
    assert main(["predict", model, "--data", data, "--out", data]) == 2
    assert "File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "predict needs a folder with a fine-tuned model"),
        (("",), "predict needs a folder with a fine-tuned model"),
        (("MODEL", "--data", ""), "the path '' names nothing"),
        (("MODEL",), "needs --question and --context, or --data"),
        (("MODEL", "--question", "word1"), "give both"),
        (("MODEL", "--question", " ", "--context", "word1"), "the question is empty"),
        (("MODEL", "--question", "word1", "--context", "\n"), "the context is empty"),
        (("MODEL", "--question", "word1", "--context", "@nowhere.txt"), r"nowhere\.txt: No such file"),
        (("MODEL", "--question", "word1", "--context", "word2", "--data", "x.json"), "or --data"),
        (("MODEL", "--question", "word1", "--context", "word2", "--out", "x"), "--out is for the questions of --data"),
        (("MODEL", "--question", "word1", "--context", "word2", "--sequence-length", "65"), "allows 64"),
        (("MODEL", "--question", "word1", "--context", "word2", "--answer-length", "0"), "answer_length is 0"),
        (("MODEL", "--question", "word1", "--context", "word2", "--null-threshold", "5"), "add --may-be-impossible"),
        (
            ("MODEL", "--question", "word\udcff", "--context", "word2"),
            r"the question is 'word\\udcff', it must be text",
        ),
        (("MODEL", "--question", "word1", "--context", "word\udcff"), "the context is .*, it must be text"),
        (("MODEL", "--question", "word1", "--context", "word2", "--device", "tpu"), "device is 'tpu'"),
        (("MODEL", "--data", "nowhere.json"), "no file or folder nowhere.json"),
        (("nowhere", "--question", "word1", "--context", "word2"), "^largebatch: nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_sentence(
    model: str, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["predict", *(model if word == "MODEL" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("largebatch: ")
    assert told.count("\n") == 1
    assert re.search(said, told)
