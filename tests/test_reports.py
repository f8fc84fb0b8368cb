"""Committed reports: their tables are what their committed results say."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cifar_study
import collect
import convergence_study
import gpt_study
import image_study
import rate_study
from largebatch.advise.critical_batch import Branch, find
from largebatch.study.report import write_report
from report.made_run import make_lines, make_record, write_run

ROOT = Path(__file__).parents[1]

RESULTS = sorted((ROOT / "reports").rglob("results.json"))


def run(seed: int, **scores: float) -> dict[str, object]:
    return {"seed": seed, "scores": scores}


def test_a_table_has_mean_and_standard_deviation_over_seeds() -> None:
    text = collect.table({"a": [run(0, f1=1.0), run(1, f1=3.0)], "b": [run(0, f1=5.0)]})
    assert "| a | 2 | 2.00 ± 1.41 | 1.00, 3.00 |" in text
    assert "| b | 1 | 5.00 | 5.00 |" in text


def test_a_seed_that_diverged_is_named_and_stands_in_no_mean() -> None:
    text = collect.table({"a": [{"diverged": True}, run(1, f1=1.0), run(2, f1=3.0)], "b": [run(0, f1=5.0)]})
    assert "| a | 2 of 3 | 2.00 ± 1.41 | diverged, 1.00, 3.00 |" in text


def test_runs_of_another_machine_stay() -> None:
    held = {"a": [run(0, f1=1.0), run(2, f1=2.0)], "b": [run(0, f1=9.0)]}
    found = {"a": [run(1, f1=5.0), run(2, f1=6.0)], "c": [run(0, f1=7.0)]}
    both = collect.merged(held, found)
    assert both == {
        "a": [run(0, f1=1.0), run(1, f1=5.0), run(2, f1=6.0)],
        "b": [run(0, f1=9.0)],
        "c": [run(0, f1=7.0)],
    }


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
    tuning = {"lamb, batch 32": {0.001: 90.0, 0.002: 80.125, 0.004: float("inf")}}
    assert rate_study.tuning_table(tuning, "perplexity").splitlines()[-1] == (
        "| lamb, batch 32 | 0.001: 90.00, **0.002: 80.12**, 0.004: inf |"
    )


def test_rates_are_tried_until_the_best_lies_between_others() -> None:
    first = (0.25, 0.5, 1.0)
    assert rate_study.further_rates(first, {0.5: 7.0}) == [0.25, 1.0]
    assert rate_study.further_rates(first, {0.25: 9.0, 0.5: 8.0, 1.0: 7.0}) == [2.0]
    assert rate_study.further_rates(first, {0.25: 6.0, 0.5: 8.0, 1.0: float("inf")}) == [0.125]
    assert rate_study.further_rates(first, {0.25: 9.0, 0.5: 7.0, 1.0: 8.0}) == []


def bowl(trial: rate_study.Trial) -> dict[str, object]:
    """Perplexity by the rate's distance from the best one, which lies outside of the first three at batch 512."""
    best = {32: 0.004, 512: 0.064}[trial.batch]
    if trial.rate > 0.3:
        return {"diverged": True}
    return run(trial.seed, perplexity=50 + abs(math.log2(trial.rate / best)) + trial.seed)


def test_a_study_that_is_stopped_goes_on_from_its_ledger(tmp_path: Path) -> None:
    done: list[rate_study.Trial] = []

    def stopped_at(most: int) -> Callable[[rate_study.Trial], dict[str, object]]:
        def one(trial: rate_study.Trial) -> dict[str, object]:
            if len(done) >= most:
                raise RuntimeError("no more")
            done.append(trial)
            return bowl(trial)

        return one

    path = tmp_path / "trials.json"
    with pytest.raises(RuntimeError, match="no more"):
        gpt_study.STUDY.run(rate_study.Ledger.open(path, "a text", rate_study.Trial), stopped_at(9))
    gpt_study.STUDY.run(rate_study.Ledger.open(path, "a text", rate_study.Trial), stopped_at(1000))
    assert len(done) == len(set(done)), "a trial was run twice"
    ledger = rate_study.Ledger.open(path, "a text", rate_study.Trial)
    for label, trials in gpt_study.STUDY.best_trials(ledger).items():
        assert {trial.rate for trial in trials} == {0.064 if label.endswith("512") else 0.004}, label
        assert [trial.seed for trial in trials] == [0, 1, 2]
        assert set(trials) <= set(done)
    page = "<!-- scores -->\n<!-- /scores -->\n<!-- tuning -->\n<!-- /tuning -->\n"
    assert "| adamw, batch 512 | 3 | 51.00 ± 1.00 |" in gpt_study.STUDY.filled(page, ledger)
    with pytest.raises(ValueError, match="holds trials on the data a text"):
        rate_study.Ledger.open(path, "another", rate_study.Trial)


RATE_STUDIES = [study for study in (gpt_study.STUDY, cifar_study.STUDY) if (study.folder / "trials.json").is_file()]


@pytest.mark.parametrize("study", RATE_STUDIES, ids=lambda study: study.name)
def test_the_tables_on_rates_are_those_of_their_ledgers(study: rate_study.RateStudy) -> None:
    held = json.loads((study.folder / "trials.json").read_text(encoding="utf-8"))
    ledger = study.open_ledger(held["data"])
    page = (study.folder / "README.md").read_text(encoding="utf-8")
    assert study.filled(page, ledger) == page
    best = next(iter(study.best_trials(ledger).values()))[-1]  # the first seed's scores choose the rate
    ledger.records[best]["scores"] = {name: 0.9 * value for name, value in ledger.records[best]["scores"].items()}
    assert study.filled(page, ledger) != page


def test_the_rate_of_a_large_batch_follows_the_square_root_rule() -> None:
    words = cifar_study.words_of(rate_study.Trial("lamb", 2048, 0.01, 3), "images")
    assert words[words.index("--lr") + 1] == "0.02"
    assert words[-2:] == ["--seed", "3"]


@pytest.mark.parametrize("folder", sorted(path.parent for path in (ROOT / "reports").glob("*/trials.json")), ids=str)
def test_the_tables_on_images_are_those_of_their_ledgers(folder: Path) -> None:
    held = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    if "point" not in held["trials"][0]["trial"]:
        return  # those of rates, above
    ledger = image_study.open_ledger(folder, held["data"])
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert image_study.filled(page, ledger) == page
    best = image_study.best_trials(ledger)["lamb"][0]
    ledger.records[best]["scores"]["top1_accuracy"] -= 0.01
    assert image_study.filled(page, ledger) != page


def test_every_optimizer_is_tried_at_the_same_points_and_judged_by_other_seeds(tmp_path: Path) -> None:
    best: dict[str, int] = dict(zip(image_study.OPTIMIZERS, (3, 1, 4, 0, 7, 5), strict=True))

    def accuracy(trial: image_study.Trial) -> dict[str, object]:
        if trial.point == 6:
            return {"diverged": True}
        return run(trial.seed, top1_accuracy=0.9 - 0.01 * abs(trial.point - best[trial.optimizer]))

    ledger = image_study.open_ledger(tmp_path, "images")
    image_study.study(ledger, accuracy)
    tuned = {(trial.optimizer, trial.point) for trial in ledger.records if trial.seed == 0}
    assert len(tuned) == 6 * 8
    assert {name: trials[0].point for name, trials in image_study.best_trials(ledger).items()} == best
    assert {trial.seed for trial in ledger.records if trial.seed} == {1, 2, 3, 4, 5}
    marks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("scores", "verdicts", "tuning"))
    page = image_study.filled(marks, ledger)
    assert "| lamb (lr 0.15, decay 0.0095, warm-up 0.32) | 5 | 90.00 ± 0.00 |" in page
    assert page.count("diverged") == 6
    assert page.count("- Not told apart: lamb (90 ± 0 %, 5 seeds), ") == 5
    assert page.count("**90.00**") == 6


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    record = make_record()
    write_run(tmp_path / "seed-0", record, make_lines(record, steps=100))
    write_run(tmp_path / "seed-1", record, make_lines(record))
    whole = collect.gather([f"x={tmp_path / 'seed-1'}"])["x"][0]
    assert whole["seed"] == 3
    last = list(whole["scores"])[-1]
    kept = collect.gather([f"x={tmp_path / 'seed-1'}"], [last])["x"][0]
    assert kept == {**whole, "scores": {last: whole["scores"][last]}}
    with pytest.raises(ValueError, match="has not come to its end"):
        collect.gather([f"x={tmp_path}"])


STUDIES = sorted(path.parent for path in (ROOT / "reports" / "studies").glob("*/study.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_the_markdown_of_a_study_is_made_of_its_ledger(folder: Path, tmp_path: Path) -> None:
    committed = (folder / "report.md").read_text(encoding="utf-8")
    for name in ("study.json", "trials.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == committed
    assert "not over" not in committed
    # A ledger in which one trial had another score is not the committed one.
    *before, last = (tmp_path / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    held = json.loads(last)
    changed = json.dumps({**held, "score": held["score"] / 2})
    (tmp_path / "trials.jsonl").write_text("\n".join([*before, changed]) + "\n", encoding="utf-8")
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") != committed


def test_the_tables_and_the_figure_of_the_theorems_are_those_of_what_was_measured() -> None:
    folder = ROOT / "reports" / "convergence"
    found = json.loads((folder / "laboratory.json").read_text(encoding="utf-8"))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert convergence_study.with_tables(page, found) == page
    assert convergence_study.figure(found["regimes"]) == (folder / "regimes.svg").read_text(encoding="utf-8")
    found["rules"]["sgd"]["slopes"][0]["slope"] -= 0.1
    assert convergence_study.with_tables(page, found) != page


ADVICE = {"bert": (256, 16_384), "gpt": (32, 8_192), "mnist": (256, 32_768)}
"""Report of `largebatch advise` -> the run's own batch, and D."""


@pytest.mark.parametrize(
    "branches",
    sorted((ROOT / "reports" / "advice").rglob("branches-*.jsonl")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_advice_of_a_report_follows_from_its_branches(branches: Path) -> None:
    held = [Branch.read(json.loads(line)) for line in branches.read_text(encoding="utf-8").splitlines()]
    batch, samples = ADVICE[branches.parent.name]
    page = (branches.parent / "README.md").read_text(encoding="utf-8")
    step = branches.stem.removeprefix("branches-")

    def row(lines: list[Branch]) -> str:
        found = find(lines, batch, samples, 0.01)
        surely, possibly = (multiple * batch for multiple in found.no_cost_interval)
        at = found.batch_at(0.2)
        assert at is not None
        assert found.growth is not None
        ends = "{:,.0f} to {:,.0f}"
        cells = [
            f"{found.no_cost * batch:,} (surely {surely:,}, possibly {possibly:,})",
            f"{at[0]:,.0f} ({ends.format(*at[1])})",
            f"{found.growth.critical_batch:,.0f} ({ends.format(*found.growth.critical_batch_interval)})",
        ]
        gaps = [f"{tried.gap:+.3f}".replace("-", "−") for tried in found.tried[1:]]
        return " | ".join([f"| {int(step):,}", *gaps, *cells]) + " |"

    assert row(held) in page
    others = [replace(one, losses=tuple(loss - 0.002 * one.multiple for loss in one.losses)) for one in held]
    assert row(others) not in page
