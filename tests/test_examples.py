"""The examples run, and do what they say."""

import doctest
import importlib
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_drop_in_example_learns_and_stays_short(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "drop_in.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 45
    names: dict[str, Any] = runpy.run_path(str(path))
    assert names["main"]() > 0.95
    assert capsys.readouterr().out.count("gradient norm") == 4


def test_every_example_is_run() -> None:
    # own_study.py is run by tests/study/test_study_verb.py
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == {"drop_in.py", "own_study.py"}


@pytest.mark.parametrize("module", ["lamb", "lans", "lars", "layerwise", "layer_groups", "step_monitor", "variants"])
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"largebatch.optim.{module}"))
    assert result.attempted > 2
    assert not result.failed
