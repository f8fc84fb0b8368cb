"""A batch that grows: one stage as a row of stages, each at a larger batch, under one schedule over samples.

Early in training gradients are little noise and a small batch is as good as a large one, for fewer samples (arXiv
2505.23971: growing with the critical batch saved 43 % of the steps). Of a stage with T steps of B samples, peak rate
eta and a schedule f over its T B samples, the part at batch b plays f at the same samples with

    peak rate   eta sqrt(b / B)
    warm-up     w B / b steps,   decay over T B / b steps,   from step (samples before) / b on

each rounded to whole steps of b. The last part, at B, has the stage's own rate. All parts read one order of the data,
each from where the one before it ended.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from largebatch.errors import InputError
from largebatch.scaling import scale_lr
from largebatch.schedules import Schedule
from largebatch.train.run import Stage

Growth = tuple[tuple[int, float], ...]
"""(batch, share of the stage's samples until which it is used), both ascending; then comes the stage's own batch."""


def read_growth(text: str) -> Growth:
    """Read "256:0.05,512:0.2".

    Raises:
        InputError: it is nothing of the kind.
    """
    if not re.fullmatch(r"\d+:[0-9.eE-]+(,\d+:[0-9.eE-]+)*", text):
        raise InputError(f"batch_growth is {text!r}, allowed is BATCH:SHARE,... such as 256:0.05,512:0.2")
    try:
        return tuple((int(batch), float(share)) for batch, share in (word.split(":") for word in text.split(",")))
    except ValueError as error:
        raise InputError(f"batch_growth is {text!r}, allowed is BATCH:SHARE,... such as 256:0.05,512:0.2") from error


def written(growth: Growth) -> str:
    """Return what `read_growth` reads."""
    return ",".join(f"{batch}:{share:g}" for batch, share in growth)


def grown(stage: Stage, growth: Growth) -> tuple[Stage, ...]:
    """Return the stages that a growing batch makes of one.

    Raises:
        InputError: batches or shares do not ascend, are not below the stage's own, or leave a part without a step.
    """
    own, total = stage.global_batch_samples, stage.steps * stage.global_batch_samples
    batches, shares = [batch for batch, _ in growth], [share for _, share in growth]
    if not growth or batches != sorted(set(batches)) or batches[0] < 1 or batches[-1] >= own:
        raise InputError(f"batch_growth has the batches {batches}, allowed are some that ascend to below {own}")
    if shares != sorted(set(shares)) or shares[0] <= 0 or shares[-1] >= 1:
        raise InputError(f"batch_growth has the shares {shares}, allowed are some that ascend between 0 and 1")
    found: list[Stage] = []
    before = 0
    for batch, share in (*growth, (own, 1.0)):
        steps = round((share * total - before) / batch) if batch < own else -(-(total - before) // own)
        if steps < 1:
            raise InputError(
                f"batch_growth leaves no step to the batch {batch}, which would end at the share {share:g}"
            )
        found.append(
            replace(
                stage,
                name=f"{stage.name}-{batch}",
                global_batch_samples=batch,
                steps=steps,
                peak_lr=scale_lr(stage.peak_lr, own, batch),
                schedule=_part(stage, batch, before, steps),
                reset_moments=stage.reset_moments and not found,
                continues_data=stage.continues_data or bool(found),
            )
        )
        before += steps * batch
    return tuple(found)


def _part(stage: Stage, batch: int, before: int, steps: int) -> Schedule:
    """Return the schedule of a part that begins after so many samples of its stage."""
    whole, own = stage.schedule, stage.global_batch_samples

    def carried(own_steps: int) -> int:
        return round(own_steps * own / batch)

    offset = round((whole.offset_steps * own + before) / batch)
    span = carried(whole.offset_steps + stage.steps if whole.span_steps is None else whole.span_steps)
    return replace(
        whole,
        warmup_steps=carried(whole.warmup_steps),
        milestone_steps=tuple(carried(step) for step in whole.milestone_steps),
        offset_steps=offset,
        span_steps=max(span, offset + steps),
    )


def with_noise(batch: int, ends: Sequence[float], scales: Sequence[float], least_share: float = 1 / 16) -> Growth:
    """Return a growth that follows a noise scale: the smallest halving of the batch that is not below it.

    Args:
        batch: the stage's own.
        ends: shares of the stage's samples, ascending, up to which the noise scales hold.
        scales: noise scale in samples of each stretch; infinite where no gradient was seen in the noise.
        least_share: of the batch, which the smallest is not below.

    Returns:
        The batches before the stage's own; nothing where even the first stretch is as noisy as that.
    """
    found: dict[int, float] = {}
    smallest = 0
    for end, scale in zip(ends, scales, strict=True):
        allowed = batch
        while allowed % 2 == 0 and allowed / 2 >= max(scale, least_share * batch):
            allowed //= 2
        smallest = max(smallest, allowed)
        if smallest == batch:
            break
        if end < 1:
            found[smallest] = end
    return tuple(found.items())
