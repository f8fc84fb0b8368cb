"""The commands and the code of the README do what they say."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.cli import TrainOptions, main
from largebatch.command_line import parse, parse_known
from largebatch.predict import PredictOptions
from largebatch.recipes.catalogue import build_run
from largebatch.text.options import PrepareOptions

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _commands(start: str) -> list[list[str]]:
    # Of two fences in a row the first opens; python blocks are taken out so that theirs do not count.
    text = re.sub(r"^```python\n.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


@pytest.mark.parametrize("words", [*_commands("largebatch scale"), *_commands("largebatch recipes")], ids=" ".join)
def test_commands_that_only_print_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words[1:]) == 0
    assert capsys.readouterr().out


def test_commands_that_train_are_understood() -> None:
    trains = _commands("largebatch train") + [words[words.index("largebatch") :] for words in _commands("torchrun")]
    assert len(trains) >= 3
    for words in trains:
        if "--help" in words:
            continue
        _, rest = parse_known(TrainOptions, words[3:], "train")
        run, _ = build_run(words[2], rest)
        if words[2] == "squad":
            assert run.task.init_from == "runs/mine/model", "what the commands before it have left"
            continue
        if words[2] in ("digits", "resnet50"):
            assert run.stages[0].global_batch_samples == {"digits": 1438, "resnet50": 32_768}[words[2]]
            continue
        assert run.stages[0].global_batch_samples == 4096
        assert run.task.corpus == "corpora/mine"


def test_commands_that_prepare_are_understood() -> None:
    prepares = _commands("largebatch prepare")
    assert prepares
    for words in prepares:
        at = words.index("--out")
        options = parse(PrepareOptions, words[2:at] + words[at + 2 :], "prepare", description="")
        assert options.source == "texts/*.txt.xz"


def test_commands_that_predict_are_understood() -> None:
    (words,) = _commands("largebatch predict")
    assert words[2] == "runs/squad/model"
    options = parse(PredictOptions, words[3:], "predict", description="")
    assert (options.question, options.context) == ("Who wrote it?", "@page.txt")


def test_the_snippet_trains() -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    layer = torch.nn.Linear(4, 4)
    names: dict[str, Any] = {"model": torch.nn.Sequential(layer, torch.nn.LayerNorm(4))}
    exec(snippet, names)
    before = layer.weight.detach().clone()
    names["model"](torch.ones(2, 4)).pow(3).sum().backward()
    names["optimizer"].step()
    assert not torch.equal(before, layer.weight)
