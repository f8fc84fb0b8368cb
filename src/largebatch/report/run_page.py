"""The report of one run."""

from pathlib import Path
from typing import Any

import numpy as np

from largebatch.report import configuration, summary
from largebatch.report.charts import Chart
from largebatch.report.fine_tuned import FineTuned
from largebatch.report.heat_map import CIVIDIS, HeatMap, heat_map
from largebatch.report.held_out_charts import held_out_charts
from largebatch.report.markup import Markup, element, join, plot_text
from largebatch.report.noise_charts import noise_charts
from largebatch.report.page import command_block, document, fact_list, figure, legend, section, write_page
from largebatch.report.run_folder import RunFolder
from largebatch.report.tables import table
from largebatch.report.training_charts import training_charts


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run and return its path.

    Args:
        run_folder: the folder with run.json and metrics.jsonl; the run need not be over.
        out: the file to write, run_folder/report.html if left out. It is written aside and renamed.

    Raises:
        InputError: run.json or metrics.jsonl is missing or damaged, or the page cannot be written.
    """
    return write_page(run_folder / "report.html" if out is None else out, render(RunFolder.read(run_folder)))


def render(run: RunFolder) -> str:
    """Return the page as HTML text."""
    held_out, training, ratios = held_out_charts(run), training_charts(run), heat_map(run)
    noise = noise_charts(run)
    charts = [*held_out, *training, *noise]
    name = str(run.record.get("recipe_name") or run.record.get("recipe") or "run")
    fine_tuned = FineTuned.read(run)
    sections = [
        _head(run, name, fine_tuned),
        _axis_choice() if charts or ratios else None,
        section(
            "held-out",
            "What it learned",
            "Measured on data that was kept out of training.",
            _charts(held_out),
        ),
        _fine_tuned(fine_tuned) if fine_tuned else None,
        section(
            "training",
            "How it trained",
            "What each optimizer step saw and did."
            + (" A dotted line marks where a stage begins." if len(run.stages) > 1 else ""),
            _charts(training),
        ),
        section(
            "gradient-noise",
            "How noisy its gradients were",
            "Measured from the microbatches of each step. Well below the noise scale a larger batch takes fewer steps "
            "for nearly no more samples; well above it, more samples for nearly as many steps.",
            _charts(noise),
        ),
        section(
            "trust-ratios",
            "Trust ratios",
            "Each layer's step is scaled to the length of its own weights; the ratio says by how much.",
            [_heat_map(ratios)] if ratios else [],
        ),
        _configuration(run),
    ]
    drawn = bool(charts) or ratios is not None
    return document(name, sections, _data(run, charts, ratios), "page.js", drawn=drawn)


def _data(run: RunFolder, charts: list[Chart], ratios: HeatMap | None) -> dict[str, Any]:
    bands = [
        {
            "name": plot_text(stage.name),
            "steps": [stage.first_step, stage.last_step],
            "samples": [stage.first_samples, stage.last_samples],
        }
        for stage in run.stages
        if stage.first_step < run.steps_taken
    ]
    if bands:
        bands[-1]["steps"][1] = run.steps_taken
        bands[-1]["samples"][1] = int(run.samples_at(np.array([float(run.steps_taken)]))[0])
    return {
        "bands": bands,
        "charts": [chart.data() for chart in charts],
        "ratios": ratios.data() if ratios else None,
    }


# --- the head ---------------------------------------------------------------------------------------


def _head(run: RunFolder, name: str, fine_tuned: FineTuned | None) -> Markup:
    state = "done" if summary.is_complete(run) else "open"
    return element(
        "header",
        element("p", "largebatch · training report", class_="kicker"),
        element("h1", name),
        element("p", element("span", summary.status(run), class_=f"state {state}")),
        *(element("p", text, class_="lead") for text in summary.sentences(run)),
        element("p", fine_tuned.sentence(), class_="lead") if fine_tuned else None,
        _comparisons(summary.comparisons(run)),
        fact_list((fact.title, fact.shown, fact.note) for fact in summary.facts(run)),
    )


def _comparisons(found: list[summary.Comparison]) -> Markup | None:
    if not found:
        return None
    return element("div", *(_comparison(item) for item in found), class_="key-figures")


def _comparison(item: summary.Comparison) -> Markup:
    largest = max(item.value, item.baseline) or 1.0
    bars = [
        ("model", item.shown, item.value, "model"),
        (item.baseline_name, item.baseline_shown, item.baseline, "base"),
    ]
    return element(
        "section",
        element("h2", item.title),
        element("p", item.shown, class_="big"),
        element("p", item.verdict, class_=f"verdict {'good' if item.good else 'poor'}"),
        element(
            "div",
            *(
                join(
                    element("span", label),
                    element(
                        "span",
                        element("span", class_=f"bar {kind}", style=f"width:{100 * max(value, 0) / largest:.1f}%"),
                        class_="track",
                        aria_hidden="true",
                    ),
                    element("span", shown, class_="number"),
                )
                for label, shown, value, kind in bars
            ),
            class_="bars",
        ),
        class_="key-figure",
    )


def _fine_tuned(found: FineTuned) -> Markup:
    return element(
        "section",
        element("h2", "What it is good for"),
        element("p", "SQuAD's dev questions after fine-tuning, in percent; each seed is a run below squad/."),
        table(found.table(), "SQuAD's scores"),
        id="fine-tuned",
        class_="part",
    )


# --- figures ----------------------------------------------------------------------------------------


def _axis_choice() -> Markup:
    choices = [("steps", "steps", True), ("samples", "samples", False)]
    return element(
        "fieldset",
        element("legend", "Figures over"),
        *(
            element(
                "label",
                element("input", type="radio", name="axis", value=value, checked=checked),
                element("span", text),
            )
            for value, text, checked in choices
        ),
        id="figures",
        class_="axis",
        tabindex=-1,
    )


def _charts(charts: list[Chart]) -> list[Markup]:
    """Make the figures of a section; those that are not large share a row."""
    sharing = sum(not chart.large for chart in charts)
    shared = {1: "whole", 2: "half"}.get(sharing, "third")
    return [_chart(chart, "whole" if chart.large else shared) for chart in charts]


def _chart(chart: Chart, width: str) -> Markup:
    names = dict.fromkeys((series.name, series.colour, series.style == "dashed") for series in chart.series)
    firsts = {name: (colour, dashed) for name, colour, dashed in reversed(names)}
    swatches = [(name, f"{colour}{' dashed' if dashed else ''}") for name, (colour, dashed) in reversed(firsts.items())]
    return figure(
        chart.identifier,
        title=chart.title,
        unit=chart.unit,
        caption=chart.caption,
        numbers=chart.table,
        height=chart.height,
        width=width,
        legend=legend(chart.title, swatches),
    )


def _heat_map(ratios: HeatMap) -> Markup:
    row = 22 if len(ratios.names) <= 40 else 13
    return figure(
        "trust-ratio-map",
        title="Trust ratio of each layer",
        unit="logarithmic",
        caption=" ".join([ratios.caption, *ratios.notes]),
        numbers=ratios.table,
        height=min(2_400, 62 + max(200, len(ratios.names) * row)),
        width="whole",
        legend=_colour_scale(ratios),
    )


def _colour_scale(ratios: HeatMap) -> Markup:
    return element(
        "div",
        element("div", class_="colours", style=f"background:linear-gradient(90deg,{','.join(CIVIDIS)})"),
        *(element("span", text, style=f"left:{100 * position:.2f}%") for position, text in ratios.ticks),
        class_="scale",
        role="img",
        aria_label="Colours of the trust ratio, dark for small and light for large",
    )


# --- the configuration ------------------------------------------------------------------------------


def _configuration(run: RunFolder) -> Markup:
    stages, sessions = configuration.stage_table(run), configuration.session_table(run)
    return element(
        "section",
        element("h2", "Configuration"),
        element("h3", "Stages"),
        table(stages, "Stages"),
        element(
            "div",
            *(
                element(
                    "section",
                    element("h3", title),
                    element("dl", *(join(element("dt", name), element("dd", value)) for name, value in fields)),
                )
                for title, fields in configuration.sections(run)
            ),
            class_="settings",
        ),
        element("h3", "Sessions") if sessions.rows else None,
        table(sessions, "Sessions") if sessions.rows else None,
        element("h3", "Repeat this run"),
        command_block(configuration.command(run)),
        id="configuration",
        class_="part",
    )
