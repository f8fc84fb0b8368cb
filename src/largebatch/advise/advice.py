"""What the branches of a run come to, in words, as a table and as a plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.advise.branches import Place
from largebatch.advise.critical_batch import Findings, Tried
from largebatch.noise_scale import NoiseEstimate, NoiseScale, of_steps, over_steps
from largebatch.report.run_folder import RunFolder
from largebatch.report.wording import count, duration, plural, significant
from largebatch.scaling import scale_adam, scale_lr
from largebatch.train.batch_growth import Growth, with_noise, written
from largebatch.train.run import Run

MORE = 0.2
"""The share of samples more that an answer is given for."""
_NEAR_STEPS, _LEAST_NEAR = 50, 3
_STRETCHES, _STEPS_OF_A_STRETCH, _LEAST_MEASURED = 10, 8, 40
_DEVICES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run at another batch would be given."""

    batch: int
    lr: float
    warmup_steps: int
    steps: int
    betas: tuple[float, float] | None
    """Those of the rule 1 - beta times k; None where the optimizer has none or the rule leaves (0, 1)."""

    def sentence(self) -> str:
        """Say it."""
        text = f"peak lr {self.lr:.3g}, {plural(self.warmup_steps, 'step')} of warm-up, {self.steps:,} steps"
        if self.betas is None:
            return text
        return f"{text}; betas as they are, or by 1 - beta times k ({self.betas[0]:.4g}, {self.betas[1]:.4g})"


def settings(run: Run[Any, Any], place: Place, batch: int) -> Settings:
    """Carry the stage of a place to another batch: the square-root rule, as many warm-up steps, as many samples.

    Warm-up takes as many steps as before, which is k times the share of the samples: linear-epoch warm-up.
    """
    stage = place.stage
    betas: tuple[float, float] | None = stage.betas or getattr(run.optimizer, "betas", None)
    if betas is not None and batch != place.batch:
        try:
            betas = scale_adam(1.0, betas, getattr(run.optimizer, "eps", 1e-8), place.batch, batch).betas
        except ValueError:
            betas = None
    steps = -(-stage.steps * stage.global_batch_samples // batch)
    return Settings(
        batch=batch,
        lr=scale_lr(stage.peak_lr, place.batch, batch),
        warmup_steps=min(stage.schedule.warmup_left, steps - 1),
        steps=steps,
        betas=betas if batch != place.batch else None,
    )


def noise_at(folder: RunFolder, place: Place) -> NoiseScale | None:
    """Return the noise scale in the steps before a place, of its stage; None where it was not measured.

    It is that of the last 50 measured ones. Where not every step was measured, they may reach back half of the way
    from the stage's beginning, for the noise scale rises as a model learns.
    """
    train, half_way = folder.train, (place.stage_begins + place.step) // 2
    near = train.between(max(place.stage_begins, min(half_way, place.step - _NEAR_STEPS)), place.step)
    found = of_steps(train.gradient_square[near].tolist(), train.covariance_trace[near].tolist())[-_NEAR_STEPS:]
    return over_steps(found) if len(found) >= _LEAST_NEAR else None


def noise_sentence(folder: RunFolder, place: Place) -> str:
    """Say the noise scale before a place, or why there is none."""
    noise = noise_at(folder, place)
    if noise is not None:
        return f"Measured in the steps before, {noise}; the critical batch is often larger."
    if np.isfinite(folder.train.gradient_square[folder.train.between(0, place.step)]).any():
        return (
            f"The gradient's noise is not told here: fewer than {_LEAST_NEAR} of the steps before are of the stage "
            f"{place.stage.name} and were measured; --gradient-noise-every-steps of the training says how many are."
        )
    return (
        "The gradient's noise was not measured before this place: a step has to be of two microbatches at least, "
        "so train with a --microbatch of half the batch or less."
    )


def growth_by_noise(folder: RunFolder, place: Place) -> Growth:
    """Return a batch that grows with the noise scale of a place's stage; nothing where that is no smaller."""
    train, stage = folder.train, place.stage
    inside = train.between(place.stage_begins, place.stage_begins + stage.steps)
    measured = np.flatnonzero(inside & train.noise_told)
    if len(measured) < _LEAST_MEASURED:
        return ()
    ends, scales = [], []
    for part in np.array_split(measured, min(_STRETCHES, len(measured) // _STEPS_OF_A_STRETCH)):
        mean = NoiseEstimate(float(train.gradient_square[part].mean()), float(train.covariance_trace[part].mean()))
        ends.append(float(f"{(train.step[part[-1]] - place.stage_begins) / stage.steps:.3g}"))
        scales.append(mean.scale)
    return with_noise(place.batch, ends, scales)


def lines(
    run: Run[Any, Any],
    place: Place,
    found: Findings,
    noise: str,
    samples_per_second: float,
    growth: Growth = (),
) -> list[str]:
    """Return the answer, a sentence a line.

    Args:
        run: the run that was asked about.
        place: where its branches begin.
        found: what they showed.
        noise: the sentence about its noise scale there.
        samples_per_second: of the run, with the devices that it had.
        growth: a batch that follows the noise scale.
    """
    stage = f" (stage {place.stage.name})" if len(run.stages) > 1 else ""
    told = [
        f"After step {place.step:,}{stage}, batch {place.batch:,}, rate {place.lr:.3g}: "
        f"{plural(len(found.tried), 'batch', 'batches')} on {found.samples:,} samples and half as many more, "
        f"{plural(len(found.tried[0].excesses), 'order')} of the data each."
    ]
    grows = [f"A batch that grows as the noise scale did: --batch-growth {written(growth)}, and then {place.batch:,}."]
    about_noise = [noise, *(grows if growth else [])]
    if not found.falls:
        return [
            *told,
            "Nothing can be told by branches: on so few samples the held-out loss falls by no more than it goes up and "
            "down. Give more with --samples, and another --out.",
            *about_noise,
        ]
    told += [_no_cost(found), _at_more(found)]
    diverged = [one for one in found.tried if one.diverged]
    told += [f"Batch {one.batch:,} diverged in {one.diverged} of {len(one.excesses)} orders." for one in diverged]
    free = settings(run, place, found.no_cost * place.batch)
    if free.batch > place.batch:
        told.append(f"For batch {free.batch:,}: {free.sentence()}.")
    more = found.batch_at(MORE)
    if more is not None and math.isfinite(more[0]) and (whole := _whole_multiple(more[0], place.batch)) > free.batch:
        told.append(f"For batch {whole:,}: {settings(run, place, whole).sentence()}.")
    told += about_noise
    told.append(_time_sentence(place, free.batch, samples_per_second))
    return told


def _no_cost(found: Findings) -> str:
    low, high = (multiple * found.batch for multiple in found.no_cost_interval)
    reach = "or more, the largest that was tried" if found.tried_all else "of those that were tried"
    surely = f"surely up to {low:,}, possibly up to {high:,}"
    if len(found.tried[0].excesses) == 1:
        surely = "one order of the data tells no scatter, so how sure this is is not known"
    if found.no_cost == 1:
        return f"At no cost the batch does not grow: the next, {found.tried[1].batch:,}, already loses ({surely})."
    return (
        f"At no cost up to batch {found.no_cost * found.batch:,} {reach} (held-out loss within {found.tolerance:g} of "
        f"the smaller ones' best; {surely})."
    )


def _at_more(found: Findings) -> str:
    more = found.batch_at(MORE)
    if more is None or found.growth is None:
        return f"Where {MORE:.0%} more samples are needed cannot be told: too few branches came to the loss."
    batch, (low, high) = more
    if not math.isfinite(batch):
        return f"At {MORE:.0%} more samples there is no bound in what was tried; {found.growth}."
    ends = f"{low:,.0f} to {high:,.0f}" if math.isfinite(high) else f"{low:,.0f} or more"
    return f"At {MORE:.0%} more samples up to batch {batch:,.0f} ({ends}); {found.growth}."


def _whole_multiple(batch: float, of: int) -> int:
    return max(int(batch / of + 1e-9), 1) * of


def _time_sentence(place: Place, batch: int, samples_per_second: float) -> str:
    total = place.stage.steps * place.batch
    devices = [n for n in _DEVICES if n <= max(batch // 8, 1)]
    times = ", ".join(f"{n}: {duration(total / samples_per_second / n)}" for n in devices)
    return (
        f"The stage's {total:,} samples at batch {batch:,} on N times what the run had, without their exchange of "
        f"gradients (benchmarks/scaling_model.py has that): {times}."
    )


def table(found: Findings) -> str:
    """Return what each batch showed, as Markdown."""
    rows = [
        f"| batch | held-out loss after {found.samples:,} samples | above the smaller ones' best | more samples |",
        "| --- | --- | --- | --- |",
    ]
    for one in found.tried:
        gap = "" if math.isnan(one.gap) else "diverged" if math.isinf(one.gap) else f"{one.gap:+.4f}"
        loss = significant(one.loss, 5)
        rows.append(f"| {count(one.batch)} | {loss} | {gap.replace('-', '−')} | {_reached(one, found)} |")
    return "\n".join(rows)


def _reached(one: Tried, found: Findings) -> str:
    if one.diverged:
        return "–"
    shown = ", ".join(f"{excess:+.1%}" if math.isfinite(excess) else "not reached" for excess in one.excesses)
    return "by definition the same" if one.batch == found.batch else shown.replace("-", "−")


WIDE, HIGH, LEFT, TOP, RIGHT, BELOW = 560, 300, 64, 40, 16, 50


_TITLE = "Samples to the same held-out loss, over those of the own batch"


def plot(found: Findings) -> str:
    """Return an SVG: samples to the loss over the batch, each order a dot, the fit a line."""
    batches = [one.batch for one in found.tried]
    finite = [1 + e for one in found.tried for e in one.excesses if math.isfinite(e)]
    top = max([1.5, *finite]) * 1.05
    low, high = math.log2(batches[0]) - 0.2, math.log2(batches[-1]) + 0.2

    def x(batch: float) -> float:
        return LEFT + WIDE * (math.log2(batch) - low) / (high - low)

    def y(share: float) -> float:
        return TOP + HIGH * (1 - share / top)

    width, height = LEFT + WIDE + RIGHT, TOP + HIGH + BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-weight="bold">{_TITLE}</text>',
    ]
    for share in np.arange(0, top, 0.5).tolist():
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for batch in batches:
        parts.append(f'<text x="{x(batch):.1f}" y="{TOP + HIGH + 18}" text-anchor="middle">{batch:,}</text>')
    parts.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 38}" text-anchor="middle">batch, samples</text>')
    parts += _fit_line(found, low, high, x, y, top)
    for one in found.tried:
        for excess in one.excesses:
            if math.isfinite(excess):
                parts.append(f'<circle cx="{x(one.batch):.1f}" cy="{y(1 + excess):.1f}" r="4" fill="#0072b2"/>')
            else:
                cross = f"M{x(one.batch) - 5:.1f} {TOP + 5}l10 10m-10 0l10 -10"
                parts.append(f'<path d="{cross}" stroke="#d55e00" stroke-width="2" fill="none"/>')
    return "\n".join([*parts, "</svg>", ""])


def _fit_line(found: Findings, low: float, high: float, x: Any, y: Any, top: float) -> Sequence[str]:
    if found.growth is None:
        return []
    points = []
    for place in np.linspace(low, high, 60).tolist():
        share = found.growth.samples(2**place) / found.samples
        if share <= top:
            points.append(f"{x(2**place):.1f},{y(share):.1f}")
    return [f'<polyline points="{" ".join(points)}" fill="none" stroke="#999999" stroke-width="2"/>']
