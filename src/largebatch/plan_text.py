"""A plan as text: a table of its stages, each number with its certainty, then the notes."""

from collections.abc import Iterator

from largebatch.plans import Plan, StagePlan
from largebatch.scaling import CERTAINTY_MEANING, Figure


def short_rate(lr: float) -> str:
    """Write a learning rate as mantissa and exponent: 5e-3, 3.536e-3."""
    mantissa, exponent = f"{lr:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan: a summary, the table of stages, the sources, the notes."""
    steps = [stage.steps.value for stage in plan.stages]
    peaks = list(dict.fromkeys(short_rate(stage.peak_lr.value) for stage in plan.stages))
    warmups = [f"{stage.warmup_steps.value:,}" for stage in plan.stages if stage.warmup_steps.value]
    yield f"{plan.name}: {plan.total_samples:,} samples"
    yield (
        f"peak lr {' / '.join(peaks)}, {' / '.join(warmups) or '0'} warm-up steps, "
        f"{' + '.join(f'{count:,}' for count in steps)} steps, T = {plan.total_steps:,}"
    )
    yield ""
    header = ("stage", "global batch", "length", "steps", "peak lr", "warm-up steps")
    rows = [header, *(_row(stage) for stage in plan.stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    used: list[str] = []
    for stage in plan.stages:
        yield f"{stage.name}:"
        for name, figure in (("steps", stage.steps), ("peak lr", stage.peak_lr), ("warm-up", stage.warmup_steps)):
            used.append(figure.certainty)
            yield f"  {name}: {figure.source}"
        schedule = stage.schedule
        used.append(schedule.certainty)
        yield f"  schedule: {_schedule(stage)} [{schedule.certainty}], {schedule.source}"
    yield ""
    for mark in dict.fromkeys(used):
        yield f"[{mark}] {CERTAINTY_MEANING[mark]}"
    yield ""
    yield from plan.notes


def _marked(figure: Figure[int]) -> str:
    return f"{figure.value:,} [{figure.certainty}]"


def _row(stage: StagePlan) -> tuple[str, ...]:
    return (
        stage.name,
        _marked(stage.global_batch_samples),
        "-" if stage.sequence_length is None else _marked(stage.sequence_length),
        _marked(stage.steps),
        f"{short_rate(stage.peak_lr.value)} [{stage.peak_lr.certainty}]",
        _marked(stage.warmup_steps),
    )


def _schedule(stage: StagePlan) -> str:
    schedule = stage.schedule.value
    steps = stage.steps.value
    text = f"{schedule.shape}"
    if schedule.shape == "polynomial":
        text += f" of power {schedule.power:g}"
    first, last = (short_rate(stage.peak_lr.value * schedule.factor(step, steps)) for step in (0, steps - 1))
    return f"{text}, lr {first if first != '0e0' else '0'} at its first step, {last} at its last"
