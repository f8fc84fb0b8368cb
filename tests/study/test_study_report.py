"""The page of a study and its Markdown: everything that was run stands there, and the ledger alone makes them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_study import made_study, made_trial, made_trials, score_of

from largebatch.cli import main
from largebatch.study.ledger import ends, read_study, read_trials, write_study, write_trials
from largebatch.study.plan import Job, Pruning, Published, Study
from largebatch.study.report import terminal_lines, write_report
from largebatch.study.space import Interval, Point, quasi_random

HOSTILE = "</script><script>window.hostile = 1</script><img src=x onerror='window.hostile = 2'>"
ORIGIN = {"command": "largebatch study made", "commit": "abc", "versions": {"torch": "2.13.0"}, "cpu": "a processor"}


def some_diverge(job: Job, point: Point) -> float | None:
    return None if job.kind == "tuning" and job.number == 2 else score_of(job, point)


def written(folder: Path, study: Study, until: int | None = None) -> Path:
    write_study(folder, study, ORIGIN)
    write_trials(folder, study, made_trials(study, some_diverge)[:until])
    return folder


def whole_study(**fields: Any) -> Study:
    given: dict[str, Any] = {
        "target": 0.3,
        "percent": True,
        "published": (Published("A paper", 0.91, 32),),
        "notes": ("Made up.",),
    }
    return made_study(("LAMB", "AdamW"), (16, 32, 64), **{**given, **fields})


def test_the_page_and_the_markdown_have_every_trial(tmp_path: Path) -> None:
    study = whole_study()
    folder = written(tmp_path, study)
    page = write_report(folder).read_text(encoding="utf-8")
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for text in (page, markdown):
        for arm in study.arms:
            assert arm.name in text
        assert text.count("diverged") >= 6
        assert "A paper" in text
        assert "Made up." in text
        assert "largebatch study made" in text
        assert "critical batch" in text or "do not grow" in text or "grow as the batch" in text
        assert "Every seed" in text
        assert "5 steps in a row were not finite" in text, "why a run diverged"
    rows = [line for line in markdown.splitlines() if line.startswith("| LAMB, batch 16 |")]
    assert sum("best" in row.split("|")[-2] for row in rows) == 1
    assert "Every arm that is tuned had 4 trials, with seed 0." in markdown


def test_the_page_is_made_again_from_the_ledger_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "a", whole_study())
    first = write_report(folder).read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    assert (folder / "report.html").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md", "study.json", "trials.jsonl"]


@pytest.mark.parametrize("until", [0, 1, 9, None])
def test_a_study_has_a_page_at_any_time(tmp_path: Path, until: int | None) -> None:
    folder = written(tmp_path, whole_study(), until)
    page = write_report(folder).read_text(encoding="utf-8")
    state = terminal_lines(folder)[0]
    assert state in page
    assert state.startswith("not over") == (until is not None)


def test_unequal_budgets_are_named(tmp_path: Path) -> None:
    one, other = (quasi_random({"lr": Interval(0.1, 1.0)}, trials) for trials in (2, 4))
    arms = (made_study(("a",), search=one).arms[0], made_study(("b",), search=other).arms[0])
    folder = written(tmp_path, made_study(arms=arms))
    write_report(folder)
    assert "2 and 4 trials: the budgets are not equal" in (folder / "report.md").read_text(encoding="utf-8")


def test_pruning_is_told(tmp_path: Path) -> None:
    study = made_study(("a",), pruning=Pruning(trials=2, evaluations=1))
    pruned = Job("a", "tuning", 3)
    trials = [
        replace(trial, state="pruned", score=None) if trial.job == pruned else trial
        for trial in made_trials(study, score_of)
        if trial.job.kind == "tuning"
    ]
    ended = ends(trials)
    seeds = (job for job in study.jobs() if job.kind == "seed")
    trials += [made_trial(study, job, study.point(job, ended) or {}, 0.5) for job in seeds]
    write_study(tmp_path, study, ORIGIN)
    write_trials(tmp_path, study, trials)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "7 runs, 0 diverged, 1 ended early" in text
    assert "ended early, once 2 trials had come to an end, from evaluation 2 on" in text


def test_nothing_hostile_gets_through(tmp_path: Path) -> None:
    arms = made_study((HOSTILE, "b"), (16, 32)).arms
    study = made_study(arms=arms, title=HOSTILE, question=HOSTILE, notes=(HOSTILE,), published=(Published(HOSTILE, 1),))
    page = write_report(written(tmp_path, study)).read_text(encoding="utf-8")
    assert "<img" not in page.split("plotly.js v")[0]
    assert HOSTILE not in page
    data = page.split('id="page-data">')[1].split("</script>")[0]
    assert not any(
        "<" in name for figure in json.loads(data)["figures"] for name in [t["name"] for t in figure["traces"]]
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    study = whole_study()
    written(tmp_path, study)
    held, origin = read_study(tmp_path)
    assert held == study
    assert origin == ORIGIN
    trials = read_trials(tmp_path, held)
    assert trials == sorted(made_trials(study, some_diverge), key=lambda one: list(study.jobs()).index(one.job))


Damage = Callable[[Path], object]


def with_other(held: Any, place: str, value: object) -> str:
    """JSON of a record in which one place has another value."""
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    part = held
    for word in way:
        part = part[word]
    part[last] = value
    return json.dumps(held)


def changed_study(place: str, value: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "study.json"
        path.write_text(with_other(json.loads(path.read_text()), place, value))

    return damage


def changed_trial(place: str, value: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "trials.jsonl"
        *before, last = path.read_text().splitlines()
        path.write_text("\n".join([*before, with_other(json.loads(last), place, value)]) + "\n")

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "study.json").write_text("{"), "damaged or missing"),
        (lambda folder: (folder / "study.json").write_text('{"format_version": 9}'), "format version 1"),
        (lambda folder: (folder / "study.json").write_text('{"format_version": 1, "study": {}}'), "damaged"),
        (lambda folder: double(folder / "trials.jsonl"), "twice"),
        (lambda folder: (folder / "trials.jsonl").write_text('{"job": 1}\n'), "damaged"),
        (lambda folder: rename_arm(folder / "trials.jsonl"), "that is none of the study"),
        (lambda folder: ((folder / "trials.jsonl").unlink(), (folder / "trials.jsonl").mkdir()), "Is a directory"),
        (changed_study("origin", None), "damaged: its origin is None"),
        (changed_study("origin", {"versions": 5}), "damaged: its origin is"),
        (changed_study("study.target", "abc"), "has target 'abc', allowed is a finite number or none"),
        (changed_study("study.title", 5), "has title 5, allowed is text"),
        (changed_study("study.notes", [5]), "among its notes"),
        (changed_study("study.arms.0.batch", "x"), "has batch 'x'"),
        (changed_study("study.published.0.value", "y"), "has value 'y'"),
        (changed_study("study.surprise", 1), "has other fields than a study has"),
        (changed_trial("score", "x"), "has score 'x', allowed is a finite number or none"),
        (changed_trial("score", True), "has score True"),
        (changed_trial("score", None), "a score is of a complete run"),
        (changed_trial("state", "foo"), "has state 'foo', allowed is 'complete' or 'diverged' or 'pruned'"),
        (changed_trial("job.number", [0]), "has number"),
        (changed_trial("point", None), "has point None, allowed is a mapping"),
        (changed_trial("origin", None), "has origin None"),
        (changed_trial("origin.threads", "x"), "has threads 'x'"),
        (changed_trial("seconds", math.inf), "has seconds inf"),
        (changed_trial("steps", "x"), "has steps 'x'"),
        (changed_trial("metrics", {"loss": None}), "has loss None"),
        (changed_trial("evaluations.0.2", math.nan), "has nan in its curves"),
        (changed_trial("losses.0.1", "x"), "has 'x' in its curves"),
        (changed_trial("surprise", 1), "has other fields than a trial has"),
        (changed_trial("point.lr", 0.5), "by the other trials its point is"),
    ],
)
def test_a_damaged_ledger_is_one_sentence(
    tmp_path: Path, damage: Damage, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, whole_study())
    damage(folder)
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (folder / "report.html").exists()


def double(path: Path) -> None:
    text = path.read_text()
    path.write_text(text + text.splitlines(keepends=True)[0])


def rename_arm(path: Path) -> None:
    path.write_text(path.read_text().replace('"arm": "LAMB, batch 16"', '"arm": "nobody"', 1))
