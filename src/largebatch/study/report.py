"""The report of a study: one page, the same numbers as Markdown, and the sentences that a terminal ends with."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.aside import write_aside
from largebatch.report.charts import Table
from largebatch.report.markup import Markup, element, join
from largebatch.report.page import command_block, document, fact_list, figure, legend, section, write_page
from largebatch.report.tables import table
from largebatch.report.wording import count, duration, listed, plural
from largebatch.study.charts import StudyFigure, figures, score_name, score_text, trial_table
from largebatch.study.findings import ArmResult, Findings, find, told_point
from largebatch.study.ledger import Trial, read_study, read_trials
from largebatch.study.plan import Carried, Study
from largebatch.study.space import shown

PAGE, MARKDOWN = "report.html", "report.md"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write a study's page, and report.md beside its ledger; return the page's path.

    Args:
        folder: with study.json and trials.jsonl; the study need not be over, and nothing is trained.
        out: the page, folder/report.html if left out.

    Raises:
        InputError: the ledger is missing or damaged, or a file cannot be written.
    """
    study, origin = read_study(folder)
    found = find(study, read_trials(folder, study))
    write_aside(folder / MARKDOWN, markdown(found, origin))
    return write_page(folder / PAGE if out is None else out, render(found, origin))


def terminal_lines(folder: Path) -> list[str]:
    """Return what a study has come to, in a few sentences."""
    study, _ = read_study(folder)
    found = find(study, read_trials(folder, study))
    return [*_state(found), *(one.sentence for one in found.verdicts), *_growth_sentences(found)]


def _state(found: Findings) -> list[str]:
    if found.is_over:
        pruned = f", {found.ended_as('pruned')} ended early" if found.study.pruning else ""
        return [f"{plural(found.trials, 'run')}, {found.ended_as('diverged')} diverged{pruned}"]
    return [f"not over: {found.trials} of {found.planned} runs have ended"]


def _growth_sentences(found: Findings) -> list[str]:
    return [f"{method}: {growth}" for method, growth in found.growth.items()]


# --- tables -----------------------------------------------------------------------------------------


def result_table(found: Findings) -> Table:
    """Return a row for each arm: its best point, its seeds, their mean and interval."""
    study = found.study
    header = ["arm", "point", "seeds", f"{score_name(study)}, mean", "95 % interval"]
    if study.target is not None:
        header.append(f"samples to {score_text(study, study.target)}")
    return Table(header=tuple(header), rows=tuple(_result_row(study, one) for one in found.arms))


def _result_row(study: Study, one: ArmResult) -> tuple[str, ...]:
    scores = one.scores(study)
    row = [one.arm.name, told_point(one), _seeds_text(one)]
    span = None if scores is None else scores.interval()
    row.append("–" if scores is None or scores.mean is None else _with_spread(study, scores.mean, scores.deviation))
    row.append("–" if span is None else f"{score_text(study, span[0])} to {score_text(study, span[1])}")
    if study.target is not None:
        row.append(_target_text(one.to_target(study)))
    return tuple(row)


def _seeds_text(one: ArmResult) -> str:
    diverged = sum(trial.state == "diverged" for trial in one.seeds.values())
    return f"{len(one.seeds)}, {diverged} diverged" if diverged else str(len(one.seeds))


def _with_spread(study: Study, mean: float, deviation: float | None) -> str:
    if deviation is None:
        return score_text(study, mean)
    return f"{score_text(study, mean).removesuffix(' %')} ± {score_text(study, deviation)}"


def _target_text(reached: Sequence[int | None]) -> str:
    got = sorted(samples for samples in reached if samples is not None)
    if not got:
        return "not reached" if reached else "–"
    text = f"{statistics.median(got):,.0f}"
    return text if len(got) == len(reached) else f"{text} ({len(got)} of {len(reached)})"


def time_table(found: Findings) -> Table:
    """Return what each arm's seeds took, of training steps alone: medians."""
    rows = []
    for one in found.arms:
        if not one.seeds:
            continue
        trials = list(one.seeds.values())
        seconds = statistics.median(trial.seconds for trial in trials)
        row = [one.arm.name, count(trials[0].steps), count(trials[0].samples), duration(seconds)]
        if found.study.target is not None:
            shares = [
                trial.seconds * reached / trial.samples
                for trial, reached in zip(trials, one.to_target(found.study), strict=True)
                if reached is not None and trial.samples
            ]
            row.append(duration(statistics.median(shares)) if shares else "–")
        rows.append(tuple(row))
    header = ["arm", "steps", "samples", "time of a run"]
    if found.study.target is not None:
        header.append("time to the target")
    return Table(header=tuple(header), rows=tuple(rows))


def space_table(study: Study) -> Table:
    """Return what was searched for each arm."""
    rows = []
    for arm in study.arms:
        options = " ".join(f"{name}={shown(value)}" for name, value in arm.options.items())
        if isinstance(arm.search, Carried):
            times = ", ".join(f"{name} x {shown(factor)}" for name, factor in arm.search.factors.items())
            searched, ways = f"the best of {arm.search.arm}{', ' + times if times else ''}", "0"
        elif arm.search is None:
            searched, ways = "nothing", "0"
        else:
            searched = "; ".join(f"{name}: {dimension}" for name, dimension in arm.search.space.items())
            ways = f"{len(arm.points)} {arm.search.way}" if arm.is_tuned else "0"
        rows.append((arm.name, options, searched, ways))
    return Table(header=("arm", "options", "searched", "trials"), rows=tuple(rows))


def seed_table(found: Findings) -> Table:
    """Return the score of every seed of every arm, or how it ended, and why where it diverged."""
    study, numbers = found.study, range(1, found.study.seeds + 1)
    rows = []
    for one in found.arms:
        ends = [_end_text(study, one.seeds[seed]) if seed in one.seeds else "–" for seed in numbers]
        rows.append((one.arm.name, *ends))
    return Table(header=("arm", *(f"seed {seed}" for seed in numbers)), rows=tuple(rows))


def _end_text(study: Study, trial: Trial) -> str:
    return trial.state if trial.score is None else score_text(study, trial.score)


def diverged_table(found: Findings) -> Table:
    """Return why runs diverged."""
    diverged = (trial for trial in found.every_trial if trial.state == "diverged")
    rows = tuple((str(trial.job), trial.reason or "–") for trial in diverged)
    return Table(header=("run", "how it diverged"), rows=rows)


def published_table(study: Study) -> Table:
    """Return the rows of papers."""
    rows = []
    for row in study.published:
        value = score_text(study, row.value) if row.quantity is None else shown(row.value)
        batch = "–" if row.batch is None else f"{row.batch:,}"
        rows.append((row.label, batch, row.quantity or score_name(study), value))
    return Table(header=("published", "batch", "of", "value"), rows=tuple(rows))


# --- Markdown ---------------------------------------------------------------------------------------


def markdown(found: Findings, origin: dict[str, Any]) -> str:
    """Return the study as Markdown."""
    study = found.study
    parts = [f"# {study.title}", study.question, *_state(found)]
    if found.verdicts:
        parts += ["## What the seeds support", _bullets([one.sentence for one in found.verdicts])]
    parts += ["## Results", _markdown_table(result_table(found))]
    if found.growth:
        parts.append(_bullets(_growth_sentences(found)))
    if study.published:
        parts += ["Published, on other data and machines:", _markdown_table(published_table(study))]
    parts += ["Every seed:", _markdown_table(seed_table(found))]
    if (diverged := diverged_table(found)).rows:
        parts += ["Runs that diverged:", _markdown_table(diverged)]
    parts += ["## Time", _markdown_table(time_table(found))]
    parts += ["## What was searched", _markdown_table(space_table(study)), _budget_sentence(study)]
    if any(one.tuning for one in found.arms):
        parts += ["Every trial of the search, with seed 0:", _markdown_table(trial_table(found))]
    if study.notes:
        parts += ["## To be known", _bullets(study.notes)]
    parts += ["## To repeat", f"```\n{_command(origin)}\n```", _machine(found, origin)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _budget_sentence(study: Study) -> str:
    pruning, numbers = study.pruning, {len(arm.points) for arm in study.arms if arm.is_tuned}
    if not numbers:
        return "Nothing was tuned."
    if len(numbers) == 1:
        told = f"Every arm that is tuned had {plural(numbers.pop(), 'trial')}, with seed 0."
    else:
        told = f"The arms had {listed([str(number) for number in sorted(numbers)])} trials: the budgets are not equal."
    if pruning is None:
        return told
    return (
        f"{told} One that was worse than the median of its arm ended early, once {plural(pruning.trials, 'trial')} had "
        f"come to an end, from evaluation {pruning.evaluations + 1} on."
    )


def _command(origin: dict[str, Any]) -> str:
    return str(origin.get("command", "largebatch study"))


def _machine(found: Findings, origin: dict[str, Any]) -> str:
    kinds = sorted({_made_on(trial) for trial in found.every_trial})
    versions = ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())
    return f"Trained on {listed(kinds)}; {versions}." if kinds else f"{versions}."


def _made_on(trial: Trial) -> str:
    made = trial.origin
    where = made.get("gpu") or f"{made.get('cpu')}, {plural(int(made.get('threads') or 1), 'thread')} a run"
    return f"{where} (commit {made.get('commit') or 'unknown'})"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown_table(numbers: Table) -> str:
    rows = [numbers.header, ["---"] * len(numbers.header), *numbers.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


# --- the page ---------------------------------------------------------------------------------------


def render(found: Findings, origin: dict[str, Any]) -> str:
    """Return the page as HTML text."""
    study = found.study
    drawn = figures(found)
    sections = [
        _head(found),
        _list("supported", "What the seeds support", [one.sentence for one in found.verdicts]),
        section("figures", "Figures", "Curves can be switched off by their names.", [_figure(one) for one in drawn]),
        _tables(
            "results",
            "Results",
            _growth_sentences(found),
            [
                ("Results", result_table(found)),
                ("Every seed", seed_table(found)),
                ("Runs that diverged", diverged_table(found)),
            ],
        ),
        _tables(
            "time",
            "Time",
            ["Medians, of training steps alone: evaluations are not in it."],
            [("Time", time_table(found))],
        ),
        _tables("published", "Published", ["On other data and machines."], [("Published", published_table(study))])
        if study.published
        else None,
        _tables(
            "searched",
            "What was searched",
            [_budget_sentence(study)],
            [("Spaces", space_table(study)), ("Every trial of the search", trial_table(found))],
        ),
        _list("known", "To be known", list(study.notes)),
        _repeat(found, origin),
    ]
    data = {"figures": [one.data() for one in drawn]}
    return document(study.title, sections, data, "study.js", drawn=bool(drawn))


def _head(found: Findings) -> Markup:
    study = found.study
    facts = [
        ("Runs", f"{found.trials:,}", f"of {found.planned:,}" if not found.is_over else ""),
        ("Diverged", str(found.ended_as("diverged")), ""),
        ("Arms", str(len(study.arms)), ""),
        ("Seeds of each", str(study.seeds), ""),
        ("Recipe", study.recipe, ""),
    ]
    return element(
        "header",
        element("p", "largebatch · study", class_="kicker"),
        element("h1", study.title),
        element("p", element("span", _state(found)[0], class_=f"state {'done' if found.is_over else 'open'}")),
        element("p", study.question, class_="lead"),
        fact_list(facts),
    )


def _list(identifier: str, title: str, sentences: Sequence[str]) -> Markup | None:
    if not sentences:
        return None
    items = element("ul", *(element("li", sentence) for sentence in sentences), class_="sentences")
    return element("section", element("h2", title), items, id=identifier, class_="part")


def _tables(
    identifier: str, title: str, sentences: Sequence[str], tables: Sequence[tuple[str, Table]]
) -> Markup | None:
    filled = [(label, numbers) for label, numbers in tables if numbers.rows]
    if not filled:
        return None
    return element(
        "section",
        element("h2", title),
        *(element("p", sentence) for sentence in sentences),
        *(join(element("h3", label) if len(filled) > 1 else None, table(numbers, label)) for label, numbers in filled),
        id=identifier,
        class_="part",
    )


def _figure(one: StudyFigure) -> Markup:
    return figure(
        one.identifier,
        title=one.title,
        unit=one.unit,
        caption=one.caption,
        numbers=one.table,
        height=one.height,
        width="whole",
        legend=legend(one.title, one.entries),
    )


def _repeat(found: Findings, origin: dict[str, Any]) -> Markup:
    return element(
        "section",
        element("h2", "To repeat"),
        command_block(_command(origin)),
        element("p", _machine(found, origin)),
        id="repeat",
        class_="part",
    )
