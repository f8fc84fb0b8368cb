"""The learning rate as a factor of its peak: warm-up, then a shape, and stages in a row.

Steps t count from 0, and T steps are t = 0 ... T-1. With w warm-up steps, start factor s and end factor e:

    t <  w:  s + (1 - s) * t / w                      the first step of a warm-up from zero has factor 0
    t >= w:  e + (1 - e) * shape(p),  p = (t - w) / (T - w)
             polynomial  shape(p) = (1 - p)^power     "LAMB", arXiv 1904.00962: power 1
             cosine      shape(p) = (1 + cos(pi * p)) / 2
             constant    1
             step        gamma^(milestones passed)

Both lines give 1 at t = w, so the decay starts where the warm-up ends. ``decay_origin="start"`` takes
p = t / T instead, as NVIDIA's BERT scripts do: the factor then falls from 1 to (1 - w/T)^power
within one step. (Those scripts count their steps from 1: their first step has the factor of t = 1.)

A function of the step alone: no state, no optimizer; resuming is asking again.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from largebatch.batch import whole_number

Shape = Literal["constant", "polynomial", "cosine", "step"]
DecayOrigin = Literal["warmup_end", "start"]


def _unit_interval(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value!r}, but must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up and decay of one stage, or of one part of a schedule that runs on through several stages.

    A stage of its own plays steps 0 ... T-1 of its schedule. A stage that continues another plays the steps
    from ``offset_steps`` on of one schedule over ``span_steps`` in all, without a second warm-up; all other
    fields then describe the whole schedule, and are equal in both stages (see ``continuous``).

    Args:
        warmup_steps: steps of linear warm-up, w.
        shape: what follows the warm-up.
        power: exponent of the polynomial; "polynomial" only.
        start_factor: factor at step 0 of a warm-up, from 0 to 1.
        end_factor: factor that the decay reaches after its last step, from 0 to 1; "polynomial" and "cosine".
        decay_origin: from where the decay counts, the warm-up's end or step 0; "polynomial" and "cosine".
        milestone_steps: steps, counted from step 0, from which the factor is smaller by gamma; "step" only.
        gamma: that factor, above 0 and at most 1; "step" only.
        offset_steps: steps of the schedule that lie before this stage.
        span_steps: steps T of the whole schedule; None: offset_steps + the stage's steps.

    Raises:
        ValueError: a value is outside its range, or an option is set that the shape does not have.
    """

    warmup_steps: int = 0
    shape: Shape = "polynomial"
    power: float = 1.0
    start_factor: float = 0.0
    end_factor: float = 0.0
    decay_origin: DecayOrigin = "warmup_end"
    milestone_steps: tuple[int, ...] = ()
    gamma: float = 0.1
    offset_steps: int = 0
    span_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can be refused without knowing the number of steps."""
        # What was read back from JSON is a list.
        object.__setattr__(self, "milestone_steps", tuple(self.milestone_steps))
        whole_number("warmup_steps", self.warmup_steps, at_least=0)
        whole_number("offset_steps", self.offset_steps, at_least=0)
        if self.span_steps is not None:
            whole_number("span_steps", self.span_steps)
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape is {self.shape!r}, but must be one of {', '.join(get_args(Shape))}")
        if self.decay_origin not in get_args(DecayOrigin):
            allowed = ", ".join(get_args(DecayOrigin))
            raise ValueError(f"decay_origin is {self.decay_origin!r}, but must be one of {allowed}")
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"power is {self.power!r}, but must be a finite number above 0")
        _unit_interval("start_factor", self.start_factor)
        _unit_interval("end_factor", self.end_factor)
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma!r}, but must be above 0 and at most 1")
        self._refuse_options_without_effect()
        if self.shape == "step":
            self._check_milestones()

    def _refuse_options_without_effect(self) -> None:
        decays = ("polynomial", "cosine")
        for name, is_set, shapes in (
            ("power", self.power != 1.0, ("polynomial",)),
            ("end_factor", self.end_factor != 0.0, decays),
            ("decay_origin", self.decay_origin != "warmup_end", decays),
            ("milestone_steps", self.milestone_steps != (), ("step",)),
            ("gamma", self.gamma != 0.1, ("step",)),
        ):
            if is_set and self.shape not in shapes:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but only shape {' or '.join(shapes)} has it, not {self.shape}"
                )
        if self.start_factor != 0.0 and self.warmup_steps == 0:
            raise ValueError(f"start_factor is {self.start_factor!r}, but needs warmup_steps above 0")

    def _check_milestones(self) -> None:
        if not self.milestone_steps:
            raise ValueError("milestone_steps is empty, but shape step needs at least one")
        previous = self.warmup_steps - 1
        for milestone in self.milestone_steps:
            whole_number("milestone_steps", milestone)
            if milestone <= previous:
                raise ValueError(
                    f"milestone_steps is {self.milestone_steps!r}, but must ascend and start no earlier than "
                    f"the end of the warm-up, step {self.warmup_steps}"
                )
            previous = milestone

    def span(self, total_steps: int) -> int:
        """Return T, the steps of the whole schedule, for a stage of ``total_steps`` steps.

        Raises:
            ValueError: the stage is empty or reaches beyond ``span_steps``, the warm-up is longer than the
                schedule, or a milestone lies behind its last step.
        """
        whole_number("total_steps", total_steps)
        end = self.offset_steps + total_steps
        span = end if self.span_steps is None else self.span_steps
        if end > span:
            raise ValueError(
                f"the stage plays steps {self.offset_steps:,} to {end:,}, but span_steps is {span:,} in all"
            )
        if self.warmup_steps > span:
            raise ValueError(f"warmup_steps is {self.warmup_steps:,}, but the schedule has only {span:,} steps in all")
        if self.milestone_steps and self.milestone_steps[-1] >= span:
            raise ValueError(
                f"milestone_steps is {self.milestone_steps!r}, but must stay below the {span:,} steps in all"
            )
        return span

    @property
    def warmup_left(self) -> int:
        """Steps of warm-up after the first one here: none where the schedule goes on with one that is past it."""
        return max(self.warmup_steps - self.offset_steps, 0)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the peak learning rate at a step of the stage.

        Args:
            step: steps of this stage already taken, 0 for its first step. ``total_steps`` itself is allowed
                and gives the value after the last step, for drivers that look one step ahead.
            total_steps: steps of this stage.

        Raises:
            ValueError: the step is outside 0 ... total_steps, or the schedule does not fit (see ``span``).
        """
        span = self.span(total_steps)
        if not 0 <= step <= total_steps:
            raise ValueError(f"step is {step!r}, but must lie between 0 and {total_steps:,}")
        t, warmup = self.offset_steps + step, self.warmup_steps
        if t < warmup:
            return self.start_factor + (1.0 - self.start_factor) * t / warmup
        if self.shape == "constant":
            return 1.0
        if self.shape == "step":
            return self.gamma ** bisect_right(self.milestone_steps, t)
        if self.decay_origin == "start":
            progress = t / span
        elif span == warmup:  # nothing is left to decay over
            progress = 0.0
        else:
            progress = (t - warmup) / (span - warmup)
        if self.shape == "polynomial":
            decay = (1.0 - progress) ** self.power
        else:
            decay = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.end_factor + (1.0 - self.end_factor) * decay


class Position(NamedTuple):
    """Where a step of the whole run lies: the stage, the step within it, and the factor of its peak rate."""

    stage: int
    step: int
    factor: float


def position(stages: Sequence[tuple[Schedule, int]], global_step: int) -> Position:
    """Find a step of the run, counted from 0, in a row of stages, each a schedule and its number of steps.

    The first step behind a stage is step 0 of the next one. The factor is of the peak rate of the stage that
    is returned. ``global_step`` may be the sum of all steps: the value after the last step of the last stage.

    Raises:
        ValueError: there is no stage, the step lies outside the run, or a schedule does not fit its stage.
    """
    if not stages:
        raise ValueError("stages is empty, but must hold at least one (schedule, steps)")
    whole_number("global_step", global_step, at_least=0)
    remaining = global_step
    for stage, (schedule, steps) in enumerate(stages):
        whole_number(f"steps of stage {stage}", steps)
        last = stage == len(stages) - 1
        if remaining < steps or (last and remaining == steps):
            return Position(stage, remaining, schedule.factor(remaining, steps))
        remaining -= steps
    total = sum(steps for _, steps in stages)
    raise ValueError(f"global_step is {global_step:,}, but the stages have {total:,} steps in all")


def continuous(schedule: Schedule, steps: Sequence[int]) -> tuple[Schedule, ...]:
    """Divide one schedule among stages that follow each other: one warm-up, one decay over all their steps.

    Returns one schedule for each number of steps; ``position`` over them equals the undivided schedule over
    sum(steps), to the bit.

    Raises:
        ValueError: there is no stage, a number is not a whole number of at least 1, or the schedule is
            itself a part of another.
    """
    if schedule.offset_steps != 0 or schedule.span_steps is not None:
        raise ValueError("the schedule has offset_steps or span_steps set, but must be a whole one")
    if not steps:
        raise ValueError("steps is empty, but must hold the steps of at least one stage")
    offsets = [0]
    for stage, count in enumerate(steps):
        offsets.append(offsets[-1] + whole_number(f"steps of stage {stage}", count))
    parts = []
    for offset in offsets[:-1]:
        fields = {**vars(schedule), "offset_steps": offset, "span_steps": offsets[-1]}
        parts.append(Schedule(**fields))
    return tuple(parts)
