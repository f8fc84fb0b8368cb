"""Committed reports: their tables are what their committed results say."""

import itertools
import json
from pathlib import Path

import pytest

import collect
import gpt_study
from report.made_run import make_lines, make_record, write_run

ROOT = Path(__file__).parents[1]

RESULTS = sorted((ROOT / "reports").glob("*/results.json"))


def run(seed: int, **scores: float) -> dict[str, object]:
    return {"seed": seed, "scores": scores}


def test_a_table_has_mean_and_standard_deviation_over_seeds() -> None:
    text = collect.table({"a": [run(0, f1=1.0), run(1, f1=3.0)], "b": [run(0, f1=5.0)]})
    assert "| a | 2 | 2.00 ± 1.41 | 1.00, 3.00 |" in text
    assert "| b | 1 | 5.00 | 5.00 |" in text


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.parent.name)
def test_the_table_of_a_report_is_that_of_its_results(results: Path) -> None:
    page = (results.parent / "README.md").read_text(encoding="utf-8")
    groups = json.loads(results.read_text(encoding="utf-8"))
    assert collect.insert(page, collect.table(groups)) == page
    assert "<!-- scores -->\n| " in page
    # The same table with one score changed is not the committed one.
    next(iter(groups.values()))[0]["scores"] = {
        name: value + 1 for name, value in next(iter(groups.values()))[0]["scores"].items()
    }
    assert collect.insert(page, collect.table(groups)) != page


def test_the_best_of_each_tuning_stands_out_and_a_divergence_is_shown() -> None:
    tuning = {"lamb, batch 32": {"0.001": 90.0, "0.002": 80.125, "0.004": float("inf")}}
    assert gpt_study.tuning_table(tuning).splitlines()[-1] == (
        "| lamb, batch 32 | 0.001: 90.00, **0.002: 80.12**, 0.004: inf |"
    )


def test_optimizers_are_tuned_alike() -> None:
    assert len({len(rates) for rates in gpt_study.RATES_AT_32.values()}) == 1
    for rates in gpt_study.RATES_AT_32.values():
        assert all(after == 2 * before for before, after in itertools.pairwise(rates))


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    record = make_record()
    write_run(tmp_path / "seed-0", record, make_lines(record, steps=100))
    write_run(tmp_path / "seed-1", record, make_lines(record))
    assert collect.gather([f"x={tmp_path / 'seed-1'}"])["x"][0]["seed"] == 3
    with pytest.raises(ValueError, match="has not come to its end"):
        collect.gather([f"x={tmp_path}"])
