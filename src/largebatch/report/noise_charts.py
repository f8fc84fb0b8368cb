"""The figures of gradient noise: how large the noise scale is beside the batch, and which layers it comes from.

The noise scale is a ratio of two averages, so each stretch of steps is averaged first and divided then: see
`largebatch.noise_scale`.
"""

import math
from dataclasses import dataclass

import numpy as np

from largebatch.noise_scale import NoiseScale, of_steps, over_steps
from largebatch.report import wording
from largebatch.report.charts import Chart, Colour, Series, Table
from largebatch.report.heat_map import short_names
from largebatch.report.run_folder import Numbers, PlannedStage, RunFolder
from largebatch.report.series import moving_average

STRETCHES = 16
"""Up to so many of a stage have a value with its interval."""
LEAST_STEPS = 8
"""At least so many steps are averaged."""
CURVES: tuple[Colour, ...] = ("blue", "orange", "green", "purple")
"""So many layers are drawn; the table has all."""


@dataclass(frozen=True)
class _Stretch:
    """Steps of one stage, and their noise scale."""

    last: int
    """The index of the last one."""
    stage: PlannedStage
    noise: NoiseScale


def noise_charts(run: RunFolder) -> list[Chart]:
    """Return the figures; none where the noise was not measured, or in too few steps."""
    stretches = _stretches(run)
    if not stretches:
        return []
    layers = _layers_chart(run)
    return [_scale_chart(run, stretches), *([layers] if layers else [])]


def _stretches(run: RunFolder) -> list[_Stretch]:
    train, found = run.train, []
    for stage in run.stages:
        inside = np.flatnonzero(train.noise_told & train.between(stage.first_step, stage.last_step))
        parts = min(STRETCHES, len(inside) // LEAST_STEPS)
        for part in np.array_split(inside, parts) if parts else []:
            noise = over_steps(of_steps(train.gradient_square[part].tolist(), train.covariance_trace[part].tolist()))
            found.append(_Stretch(int(part[-1]), stage, noise))
    return found


def _shown(value: float) -> str:
    return wording.significant(value, 3) if math.isfinite(value) else "no bound"


def _scale_chart(run: RunFolder, stretches: list[_Stretch]) -> Chart:
    train = run.train
    smoothed = np.full(len(train), np.nan)
    batch = np.full(len(train), np.nan)
    breaks = []
    for stage in run.stages:
        inside = np.flatnonzero(train.between(stage.first_step, stage.last_step))
        if not len(inside):
            continue
        batch[inside] = stage.global_batch_samples
        steps_for_each = -(-len(inside) // max(int(train.noise_told[inside].sum()), 1))
        window = max(LEAST_STEPS * steps_for_each, len(inside) // STRETCHES)
        square, trace = (
            moving_average(all_[inside], window) for all_ in (train.gradient_square, train.covariance_trace)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            smoothed[inside] = np.where((square > 0) & (trace > 0), trace / square, np.nan)
        if inside[0]:
            breaks.append(int(inside[0]))
    at = np.array([stretch.last for stretch in stretches])
    ends = np.array([stretch.noise.interval for stretch in stretches]).T
    curve = {"step": train.step, "samples": train.samples, "breaks": tuple(breaks)}
    bounds = {"step": train.step[at], "samples": train.samples[at], "style": "dots", "colour": "grey"}
    last = stretches[-1].noise
    low, high = (_shown(end) for end in last.interval)
    ratio = last.scale / stretches[-1].stage.global_batch_samples
    beside = f"{wording.times(ratio)} the batch" if ratio >= 1 else f"{ratio:.2g} of the batch"
    beside = beside if math.isfinite(ratio) else "no gradient is told apart from the noise"
    series = (
        Series(name="noise scale", colour="blue", style="line", y=smoothed, **curve),
        *(
            Series(name=f"{last.level:.0%} interval", y=np.where(np.isfinite(end) & (end > 0), end, np.nan), **bounds)
            for end in ends
        ),
        Series(name="batch", colour="orange", style="dashed", y=batch, **curve),
    )
    rows = tuple(
        (
            wording.count(float(train.step[stretch.last])),
            wording.count(float(train.samples[stretch.last])),
            _shown(stretch.noise.scale),
            f"{_shown(stretch.noise.interval[0])} to {_shown(stretch.noise.interval[1])}",
            wording.count(stretch.stage.global_batch_samples),
        )
        for stretch in stretches
    )
    return Chart(
        identifier="noise-scale",
        title="Noise scale",
        unit="samples",
        caption=f"tr(Σ) / |g|², smoothed. In the last {wording.plural(last.steps, 'step')} {_shown(last.scale)} "
        f"samples ({last.level:.0%}: {low} to {high}), {beside}.",
        series=series,
        table=Table(header=("up to step", "samples", "noise scale", f"{last.level:.0%} interval", "batch"), rows=rows),
        large=True,
        logarithmic=True,
    )


def _layers_chart(run: RunFolder) -> Chart | None:
    """Draw the layers from which most of the noise comes."""
    noise = run.noise
    finite = np.isfinite(noise.gradient_square) & np.isfinite(noise.covariance_trace)
    kept = np.flatnonzero(finite.all(axis=0)) if len(noise.names) else np.array([], int)
    if len(kept) < LEAST_STEPS:
        return None
    square, trace = noise.gradient_square[:, kept], noise.covariance_trace[:, kept]
    step = noise.step[kept]
    late = slice(len(kept) // 2, None)
    shares = trace[:, late].mean(axis=1) / trace[:, late].mean(axis=1).sum()
    names = short_names(noise.names)
    order = np.argsort(-shares, kind="stable")
    window = max(LEAST_STEPS // 2 + 1, len(kept) // STRETCHES)
    series = []
    for colour, row in zip(CURVES, order, strict=False):
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = moving_average(trace[row], window) / moving_average(square[row], window)
        series.append(
            Series(
                name=names[row],
                colour=colour,
                style="line",
                step=step,
                samples=run.samples_at(step),
                y=np.where(np.isfinite(scale) & (scale > 0), scale, np.nan),
            )
        )
    rows = tuple(_layer_row(names[row], float(shares[row]), square[row, late], trace[row, late]) for row in order)
    first = ", ".join(f"{names[row]} {wording.percent(float(shares[row]))}" for row in order[: len(series)])
    return Chart(
        identifier="noise-by-layer",
        title="Noise scale by layer",
        unit="samples",
        caption=f"The layers with the largest shares of tr(Σ) in the second half: {first}. The table has all of them.",
        series=tuple(series),
        table=Table(header=("layer", "share of tr(Σ)", "noise scale", "95% interval"), rows=rows),
        large=True,
        logarithmic=True,
    )


def _layer_row(name: str, share: float, square: Numbers, trace: Numbers) -> tuple[str, ...]:
    noise = over_steps(of_steps(square.tolist(), trace.tolist()))
    low, high = (_shown(end) for end in noise.interval)
    return name, wording.percent(share), _shown(noise.scale), f"{low} to {high}"
