"""The figures of what was measured on held-out data, each beside its line of comparison."""

import math
from dataclasses import replace

import numpy as np

from largebatch.report import wording
from largebatch.report.charts import Chart, Colour, Series, Style, Table
from largebatch.report.run_folder import Numbers, RunFolder
from largebatch.report.series import spread

TABLE_ROWS = 50

NAMES: dict[str, tuple[str, Colour, Style]] = {
    "loss": ("held-out, all terms", "orange", "dots"),
    "mlm_loss": ("model", "orange", "dots"),
    "unigram_loss": ("unigram", "grey", "dashed"),
    "mlm_accuracy": ("masked tokens", "orange", "dots"),
    "most_frequent_accuracy": ("commonest token", "grey", "dashed"),
    "nsp_accuracy": ("next sentence", "green", "dots"),
    "nsp_majority_accuracy": ("commoner answer", "green", "dashed"),
    "nsp_loss": ("next sentence", "green", "dots"),
    "top1_accuracy": ("top 1", "orange", "dots"),
    "top5_accuracy": ("top 5", "green", "dots"),
    "commonest_class_accuracy": ("commonest class", "grey", "dashed"),
    "perplexity": ("model", "orange", "dots"),
    "unigram_perplexity": ("unigram", "grey", "dashed"),
    "f1": ("F1", "blue", "dots"),
    "exact_match": ("exact match", "purple", "dots"),
    "answerable_f1": ("F1 of those with an answer", "green", "dots"),
    "unanswerable_exact_match": ("right where there is none", "orange", "dots"),
}
"""Metric -> (what the legend calls it, colour, style); a metric that is not listed takes its own name."""
_ANSWERS = ("f1", "exact_match", "answerable_f1", "unanswerable_exact_match")


def _measured(run: RunFolder, name: str) -> Numbers:
    losses = name == "loss"
    return np.array([each.loss if losses else each.metrics.get(name, math.nan) for each in run.evaluations])


def _evaluation_table(run: RunFolder, names: tuple[str, ...], header: tuple[str, ...]) -> Table:
    chosen = spread(len(run.evaluations), TABLE_ROWS)
    columns = [(_measured(run, name), wording.percent if "accuracy" in name else _four_decimals) for name in names]
    rows = [
        (
            wording.count(run.evaluations[index].step),
            run.evaluations[index].stage,
            *(show(float(values[index])) for values, show in columns),
        )
        for index in chosen
    ]
    return Table(header=("after step", "stage", *header), rows=tuple(rows))


def _four_decimals(value: float) -> str:
    return wording.fixed(value, 4)


def evaluation_series(run: RunFolder, names: tuple[str, ...]) -> tuple[Series, ...]:
    """Return a curve for each metric, broken between stages: there the held-out samples are others."""
    evaluations = run.evaluations
    step = np.array([float(evaluation.step) for evaluation in evaluations])
    samples = np.array([evaluation.samples for evaluation in evaluations])
    breaks = tuple(
        number for number in range(1, len(evaluations)) if evaluations[number].stage != evaluations[number - 1].stage
    )
    colours: tuple[Colour, ...] = ("blue", "purple", "green", "orange")
    series = []
    for number, name in enumerate(names):
        own = (_legend_name(name), colours[number % len(colours)], "dots")
        shown, colour, style = NAMES.get(name, own)
        one = Series(
            name=shown, colour=colour, style=style, step=step, samples=samples, y=_measured(run, name), breaks=breaks
        )
        series.append(_over_whole_stages(run, one) if style == "dashed" else one)
    return tuple(series)


def _over_whole_stages(run: RunFolder, line: Series) -> Series:
    """Draw a line of comparison from the first to the last step of each stage, at its first and last value."""
    steps: list[float] = []
    values: list[float] = []
    breaks: list[int] = []
    for stage in run.stages:
        inside = (line.step > stage.first_step) & (line.step <= stage.last_step) & np.isfinite(line.y)
        if not inside.any():
            continue
        if steps:
            breaks.append(len(steps))
        steps += [stage.first_step, *line.step[inside], min(stage.last_step, run.steps_taken)]
        values += [line.y[inside][0], *line.y[inside], line.y[inside][-1]]
    step = np.array(steps)
    return replace(line, step=step, samples=run.samples_at(step), y=np.array(values), breaks=tuple(breaks))


def held_out_charts(run: RunFolder) -> list[Chart]:
    """Return the figures of the evaluations: BERT's masked-token loss, and every metric called an accuracy."""
    measured = {name for evaluation in run.evaluations for name in evaluation.metrics}
    known = [*NAMES, *sorted(measured - set(NAMES))]
    accuracies = tuple(name for name in known if name in measured and "accuracy" in name)
    charts = [_masked_token_chart(run, "unigram_loss" in measured)] if "mlm_loss" in measured else []
    if "perplexity" in measured:
        charts.append(_perplexity_chart(run))
    if accuracies:
        charts.append(_accuracy_chart(run, accuracies))
    answers = tuple(name for name in _ANSWERS if name in measured)
    if answers:
        charts.append(_answer_chart(run, answers))
    return charts


def _legend_name(metric: str) -> str:
    return NAMES[metric][0] if metric in NAMES else metric.replace("_", " ")


def _masked_token_chart(run: RunFolder, with_unigram: bool) -> Chart:
    names = ("mlm_loss", "unigram_loss") if with_unigram else ("mlm_loss",)
    first, last = run.evaluations[0], run.evaluations[-1]
    began, ended = (wording.fixed(each.metrics.get("mlm_loss", math.nan), 3) for each in (first, last))
    caption = f"From {began} after step {first.step:,} to {ended} after step {last.step:,}."
    if with_unigram:
        unigram = wording.fixed(last.metrics.get("unigram_loss", math.nan), 3)
        caption += f" Dashed: guessing by the word frequencies of the training part, {unigram} at the end."
    return Chart(
        identifier="held-out-loss",
        title="Masked-token loss on held-out text",
        unit="nat per masked token",
        caption=caption,
        series=evaluation_series(run, names),
        table=_evaluation_table(run, names, tuple(_legend_name(name) for name in names)),
    )


def _perplexity_chart(run: RunFolder) -> Chart:
    last = run.evaluations[-1]
    names = ("perplexity", "unigram_perplexity")
    model, unigram = (wording.significant(last.metrics.get(name, math.nan)) for name in names)
    return Chart(
        identifier="held-out-perplexity",
        title="Perplexity on held-out text",
        unit="exp of nats per token",
        caption=f"After step {last.step:,}: {model}. Dashed: by the frequencies of the training part, {unigram}.",
        series=evaluation_series(run, names),
        table=_evaluation_table(run, names, tuple(_legend_name(name) for name in names)),
    )


def _answer_chart(run: RunFolder, names: tuple[str, ...]) -> Chart:
    last = run.evaluations[-1]
    shown = tuple(_legend_name(name) for name in names)
    ends = [f"{text} {last.metrics.get(name, math.nan):.2f}" for text, name in zip(shown, names, strict=True)]
    return Chart(
        identifier="held-out-answers",
        title="Answers to held-out questions",
        unit="percent",
        caption=f"After step {last.step:,}: {wording.listed(ends)}.",
        series=evaluation_series(run, names),
        table=_evaluation_table(run, names, shown),
        from_zero=True,
    )


def _accuracy_chart(run: RunFolder, names: tuple[str, ...]) -> Chart:
    last = run.evaluations[-1]
    shown = tuple(_legend_name(name) for name in names)
    ends = [
        f"{text} {wording.percent(last.metrics.get(name, math.nan))}" for text, name in zip(shown, names, strict=True)
    ]
    return Chart(
        identifier="held-out-accuracy",
        title="Accuracy on held-out text" if "mlm_accuracy" in names else "Accuracy on held-out data",
        unit="right answers",
        caption=f"After step {last.step:,}: {wording.listed(ends)}.",
        series=evaluation_series(run, names),
        table=_evaluation_table(run, names, shown),
        percent=True,
        from_zero=True,
    )
