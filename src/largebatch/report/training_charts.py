"""The figures of every optimizer step: loss and its terms, learning rate, gradient norm, throughput."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from largebatch.report import wording
from largebatch.report.charts import Chart, Colour, Series, Table
from largebatch.report.held_out_charts import evaluation_series
from largebatch.report.run_folder import Numbers, PlannedStage, RunFolder
from largebatch.report.series import moving_average, spread

TABLE_ROWS = 25


def _train_series(run: RunFolder, name: str, y: Numbers, colour: Colour) -> tuple[Series, ...]:
    """Return the values of every step, and where there are many, their moving average, stage by stage."""
    train = run.train
    window = smoothing_steps(run)
    raw = Series(
        name=name,
        colour=colour,
        style="raw" if window > 1 else "line",
        step=train.step,
        samples=train.samples,
        y=y,
    )
    if window == 1:
        return (raw,)
    averages = np.empty_like(y)
    breaks = []
    for stage in run.stages:  # never across a boundary: another batch and length is another loss
        inside = _steps_of(run, stage)
        averages[inside] = moving_average(y[inside], window)
        if stage.first_step and inside.any():
            breaks.append(int(np.argmax(inside)))
    mean = replace(raw, style="line", y=averages, breaks=tuple(breaks))
    return raw, mean


def _steps_of(run: RunFolder, stage: PlannedStage) -> NDArray[np.bool_]:
    return run.train.between(stage.first_step, stage.last_step)


def smoothing_steps(run: RunFolder) -> int:
    """Return over how many steps the thick lines average: a fiftieth of the run, 1 if that is too few."""
    steps = len(run.train) // 50
    return steps + 1 - steps % 2 if steps >= 3 else 1


def _average_note(run: RunFolder) -> str:
    window = smoothing_steps(run)
    return f" Thin: each step; thick: mean of {window} steps." if window > 1 else ""


def _steps_table(
    run: RunFolder, header: tuple[str, ...], columns: tuple[Numbers, ...], *, beside: Numbers | None = None
) -> Table:
    """Return columns at some steps, and at up to as many steps in which the last one, given ``beside``, is known."""
    train = run.train
    kept = spread(len(train), TABLE_ROWS)
    if beside is not None:
        known = np.flatnonzero(np.isfinite(beside))
        kept = np.union1d(kept, known[spread(len(known), TABLE_ROWS)])
        columns = (*columns, beside)
    rows = tuple(
        (
            wording.count(float(train.step[index])),
            wording.count(float(train.samples[index])),
            *(wording.significant(float(column[index])) for column in columns),
        )
        for index in kept
    )
    return Table(header=("step", "samples", *header), rows=rows)


def _finite_mean(values: Numbers) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def training_charts(run: RunFolder) -> list[Chart]:
    """Return the figures of every training step: loss, rate, terms, gradient norm, throughput."""
    if not len(run.train):
        return []
    charts = [_loss_chart(run), _lr_chart(run)]
    if len(run.train.losses) > 1:
        charts.append(_terms_chart(run))
    charts += [_grad_norm_chart(run), _throughput_chart(run)]
    return charts


def _loss_chart(run: RunFolder) -> Chart:
    train = run.train
    tail = max(1, len(train) // 20)
    series = _train_series(run, "training", train.loss, "blue")
    held_out = {evaluation.step: evaluation.loss for evaluation in run.evaluations if math.isfinite(evaluation.loss)}
    at_steps = np.array([held_out.get(int(step), math.nan) for step in train.step])
    header, beside = ("training loss",), None
    if np.isfinite(at_steps).any():
        series += evaluation_series(run, ("loss",))
        header, beside = ("training loss", "held-out loss"), at_steps
    ending = f"in the last {tail:,} steps on average" if tail > 1 else "in the last step"
    return Chart(
        identifier="loss",
        title="Loss",
        unit="nat",
        caption=f"Training loss, all terms: {wording.significant(float(train.loss[0]))} in the first step, "
        f"{wording.significant(_finite_mean(train.loss[-tail:]))} {ending}.{_average_note(run)}",
        series=series,
        table=_steps_table(run, header, (train.loss,), beside=beside),
        large=True,
        height=340,
    )


def _lr_chart(run: RunFolder) -> Chart:
    train = run.train
    peaks = []
    for stage in run.stages:
        inside = _steps_of(run, stage) & np.isfinite(train.lr)
        if inside.any():
            top = int(np.argmax(np.where(inside, train.lr, -np.inf)))
            peaks.append(
                f"{stage.name}: highest {wording.significant(float(train.lr[top]))} at step {train.step[top]:,.0f}"
            )
    return Chart(
        identifier="learning-rate",
        title="Learning rate",
        unit="of each step",
        caption=f"{'; '.join(peaks)}.",
        series=(
            Series(
                name="learning rate", colour="purple", style="line", step=train.step, samples=train.samples, y=train.lr
            ),
        ),
        table=_steps_table(run, ("learning rate",), (train.lr,)),
        large=True,
        from_zero=True,
        height=220,
    )


TERM_NAMES: dict[str, str] = {
    "mlm": "masked tokens",
    "nsp": "next sentence",
    "span": "start and end",
    "lm": "next token",
    "class": "class of an image",
}


def _terms_chart(run: RunFolder) -> Chart:
    colours: tuple[Colour, ...] = ("blue", "green", "purple", "orange")
    series: tuple[Series, ...] = ()
    names = [TERM_NAMES.get(term, term) for term in run.train.losses]
    for number, (name, values) in enumerate(zip(names, run.train.losses.values(), strict=True)):
        series += _train_series(run, name, values, colours[number % len(colours)])
    tail = max(1, len(run.train) // 20)
    ends = [
        f"{name} {wording.significant(_finite_mean(values[-tail:]))}"
        for name, values in zip(names, run.train.losses.values(), strict=True)
    ]
    return Chart(
        identifier="loss-terms",
        title="Terms of the loss",
        unit="nat per target",
        caption=f"At the end: {wording.listed(ends)}.",
        series=series,
        table=_steps_table(run, tuple(names), tuple(run.train.losses.values())),
        from_zero=True,
    )


def _grad_norm_chart(run: RunFolder) -> Chart:
    train = run.train
    norms = train.grad_norm
    finite = np.isfinite(norms) & (norms > 0)
    series = _train_series(run, "gradient norm", np.where(finite, norms, np.nan), "blue")
    caption = "No gradient norm was recorded."
    spread = 1.0
    if finite.any():
        top = int(np.argmax(np.where(finite, norms, -np.inf)))
        spread = float(norms[finite].max() / norms[finite].min())
        middle, largest = (wording.significant(float(norm), 3) for norm in (np.median(norms[finite]), norms[top]))
        caption = f"Over all parameters, before clipping: median {middle}, largest {largest} at step "
        caption += f"{train.step[top]:,.0f}."
    skipped = train.skipped > 0
    if skipped.any():
        floor = float(norms[finite].min()) if finite.any() else 1.0
        series += (
            Series(
                name="skipped step",
                colour="orange",
                style="crosses",
                step=train.step[skipped],
                samples=train.samples[skipped],
                y=np.full(int(skipped.sum()), floor),
            ),
        )
        caption += f" {wording.plural(int(skipped.sum()), 'step')} skipped, marked at the foot."
    return Chart(
        identifier="gradient-norm",
        title="Gradient norm",
        unit="l2 norm",
        caption=caption,
        series=series,
        table=_steps_table(run, ("gradient norm",), (norms,)),
        logarithmic=spread > 30,
    )


def _throughput_chart(run: RunFolder) -> Chart:
    train = run.train
    medians = []
    for stage in run.stages:
        rates = train.samples_per_second[_steps_of(run, stage)]
        rates = rates[np.isfinite(rates)]
        if len(rates):
            medians.append(f"{stage.name} {wording.significant(float(np.median(rates)), 3)}")
    return Chart(
        identifier="throughput",
        title="Throughput",
        unit="samples per second",
        caption=f"Median samples per second: {wording.listed(medians)}." if medians else "No rate was recorded.",
        series=_train_series(run, "samples per second", train.samples_per_second, "green"),
        table=_steps_table(run, ("samples per second",), (train.samples_per_second,)),
        from_zero=True,
    )
