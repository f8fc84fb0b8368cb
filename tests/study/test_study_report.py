"""The page of a study and its Markdown: everything that was run stands there, and the ledger alone makes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_study import made_study, made_trials, score_of

from largebatch.cli import main
from largebatch.errors import InputError
from largebatch.study.ledger import read_study, read_trials, write_study, write_trials
from largebatch.study.plan import Job, Published, Study
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


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "study.json").write_text("{"), "damaged or missing"),
        (lambda folder: (folder / "study.json").write_text('{"format_version": 9}'), "format version 1"),
        (lambda folder: (folder / "study.json").write_text('{"format_version": 1, "study": {}}'), "damaged"),
        (lambda folder: double(folder / "trials.jsonl"), "twice"),
        (lambda folder: (folder / "trials.jsonl").write_text('{"job": 1}\n'), "damaged"),
        (lambda folder: rename_arm(folder / "trials.jsonl"), "that is none of the study"),
    ],
)
def test_a_damaged_ledger_is_one_sentence(tmp_path: Path, damage: Any, told: str) -> None:
    folder = written(tmp_path, whole_study())
    damage(folder)
    with pytest.raises(InputError, match=told):
        write_report(folder)
    assert main(["report", str(folder)]) == 2


def double(path: Path) -> None:
    text = path.read_text()
    path.write_text(text + text.splitlines(keepends=True)[0])


def rename_arm(path: Path) -> None:
    path.write_text(path.read_text().replace('"arm": "LAMB, batch 16"', '"arm": "nobody"', 1))
