"""The recipe of fine-tuning: steps from windows, windows from the model, and an AdamW that is one."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from squad_made import write_bert, write_dataset
from torch import nn

from largebatch.bert.squad_finetuning import SquadFineTuning
from largebatch.cli import main
from largebatch.errors import InputError
from largebatch.recipes.catalogue import build_run
from largebatch.recipes.optimizers import Adamw
from largebatch.recipes.squad import SQUAD_GRID, squad


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    """Where questions and model lie."""
    train, dev = write_dataset(tmp_path / "train.json", 90), write_dataset(tmp_path / "dev.json", 8, 1)
    return {"train": train, "dev": dev, "init_from": str(write_bert(tmp_path / "bert", positions=24))}


def test_an_epoch_is_every_window_once(places: dict[str, Any]) -> None:
    run = squad(**places, batch=16, epochs=2.5, lr=1e-4)
    windows = run.task.training_windows()
    assert windows > 90, "some contexts take several windows"
    (stage,) = run.stages
    assert stage.steps == math.ceil(math.ceil(2.5 * windows) / 16)
    assert (stage.schedule.warmup_steps, stage.peak_lr) == (round(stage.steps / 10), 1e-4)
    assert run.task.sequence_length == 24, "as long as the model allows"
    assert squad(**places, sequence_length=12).task.sequence_length == 12
    assert squad(**places, train_questions=5).stages[0].steps == 1


@pytest.mark.parametrize("words", [["--stride", "1"], ["--question-length", "9"], ["--sequence-length", "14"]])
def test_steps_follow_the_windows_that_a_command_line_asks_for(places: dict[str, Any], words: list[str]) -> None:
    given = [f"--{name.replace('_', '-')}={place}" for name, place in places.items()]
    usual, _ = build_run("squad", [*given, "--batch", "1", "--epochs", "1"])
    run, _ = build_run("squad", [*given, "--batch", "1", "--epochs", "1", *words])
    run.task.check(run.stages)
    assert run.stages[0].steps == run.task.training_windows() != usual.stages[0].steps


def test_what_cannot_be_read_is_told_by_the_check_and_not_by_the_help(
    places: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = squad(train="nowhere.json", init_from="nowhere")
    assert run.stages[0].steps == math.ceil(2 * 87_599 / 32)
    assert run.task.sequence_length == 384
    with pytest.raises(InputError, match="nowhere"):
        run.task.check(run.stages)
    with pytest.raises(SystemExit):
        main(["train", "squad", "--help"])
    told = capsys.readouterr().out
    assert "--train" in told
    assert "--epochs FLOAT (default: 2.0)" in told
    assert "--train-questions INT|NONE (default: None)" in told
    with pytest.raises(InputError, match="batch is 0, allowed is more than 0"):
        squad(**places, batch=0)
    with pytest.raises(InputError, match="epochs is nan"):
        squad(**places, epochs=math.nan)


def test_what_is_wrong_with_training_questions_is_told(places: dict[str, Any], tmp_path: Path) -> None:
    dataset = json.loads(Path(places["train"]).read_text(encoding="utf-8"))
    dataset["data"][0]["paragraphs"][7]["qas"][0]["answers"] = []
    (tmp_path / "bad.json").write_text(json.dumps(dataset), encoding="utf-8")
    words = [
        f"--{name.replace('_', '-')}={place}" for name, place in (places | {"train": tmp_path / "bad.json"}).items()
    ]
    # In a process of its own: how its log reaches the terminal is what is tried.
    command = [sys.executable, "-m", "largebatch", "train", "squad", *words, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bad.json: question q7, left out: it has no answers" in done.stderr


def test_more_questions_than_there_are_cannot_be_had(places: dict[str, Any]) -> None:
    run = squad(**places, train_questions=91)
    with pytest.raises(InputError, match=r"91 questions of .*train\.json are asked for, it has 90"):
        run.task.check(run.stages)
    for none in (0, -3):
        run = squad(**places, train_questions=none)
        with pytest.raises(InputError, match=f"train_questions is {none}, allowed is 1 or more"):
            run.task.check(run.stages)


def test_the_grid_is_berts() -> None:
    assert SQUAD_GRID == {"batch": (16, 32), "lr": (5e-5, 3e-5, 2e-5), "epochs": (2, 3, 4)}
    run = squad(train="nowhere.json")
    assert run.stages[0].global_batch_samples in SQUAD_GRID["batch"]
    assert run.stages[0].peak_lr in SQUAD_GRID["lr"]


def test_it_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    choice = Adamw(weight_decay=0.1, max_grad_norm=None, betas=(0.8, 0.95))
    optimizer = choice.build(ours)
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    groups = [{"params": decayed}, {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.03
    for step in range(5):
        inputs = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, taken in ((ours, optimizer), (theirs, other)):
            taken.zero_grad()
            model(inputs).pow(2).sum().backward()
            taken.step()
    for mine, his in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-11, atol=1e-12)
    lamb = Adamw().build(nn.Linear(3, 3))
    assert all(group["adapt"] is False for group in lamb.param_groups)


def test_the_task_of_the_recipe_is_the_task(places: dict[str, Any]) -> None:
    assert isinstance(squad(**places).task, SquadFineTuning)
