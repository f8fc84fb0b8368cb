"""Schedules as tables of numbers; wrong schedules that the tables catch; stages that meet exactly."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from largebatch.schedules import Schedule, continuous, position

POLYNOMIAL = Schedule(warmup_steps=4)
# Four steps of warm-up from zero, then a line from 1 at step 4 to 0 behind the last step.
TABLE = [0.0, 0.25, 0.5, 0.75, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0]


def test_warmup_and_linear_decay() -> None:
    assert [POLYNOMIAL.factor(t, 10) for t in range(11)] == pytest.approx(TABLE, abs=1e-15)
    assert POLYNOMIAL.factor(0, 10) == 0.0  # exactly
    assert POLYNOMIAL.factor(4, 10) == 1.0


WRONG: dict[str, Callable[[int], float]] = {
    "warm-up counted from 1": lambda t: (t + 1) / 4 if t < 4 else (10 - t) / 6,
    "warm-up one step short": lambda t: t / 3 if t < 3 else (10 - t) / 7,
    "decay from the start": lambda t: t / 4 if t < 4 else 1 - t / 10,
    "decay times warm-up": lambda t: min(1, t / 4) * (1 - t / 10),
    "decay ends one step early": lambda t: t / 4 if t < 4 else (9 - t) / 5,
    "no warm-up": lambda t: 1 - t / 10,
    "no decay": lambda t: min(1, t / 4),
    "square-root decay": lambda t: t / 4 if t < 4 else math.sqrt((10 - t) / 6),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_the_table_catches(wrong: Callable[[int], float]) -> None:
    assert [wrong(t) for t in range(10)] != pytest.approx(TABLE[:10], abs=1e-3)


@pytest.mark.parametrize(
    ("schedule", "steps", "table"),
    [
        (Schedule(), 4, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (Schedule(shape="constant", warmup_steps=2), 4, [0.0, 0.5, 1.0, 1.0, 1.0]),
        (Schedule(power=2.0), 4, [1.0, 0.5625, 0.25, 0.0625, 0.0]),
        (Schedule(power=0.5), 4, [1.0, 0.75**0.5, 0.5**0.5, 0.5, 0.0]),
        (Schedule(end_factor=0.2), 4, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (Schedule(warmup_steps=2, start_factor=0.5), 4, [0.5, 0.75, 1.0, 0.5, 0.0]),
        (Schedule(shape="cosine"), 4, [1.0, 0.8535533905932737, 0.5, 0.1464466094067262, 0.0]),
        (Schedule(shape="cosine", warmup_steps=2, end_factor=0.5), 6, [0, 0.5, 1, 0.9267766953, 0.75, 0.5732233047]),
        (Schedule(warmup_steps=2, decay_origin="start"), 4, [0.0, 0.5, 0.5, 0.25, 0.0]),
        (Schedule(warmup_steps=1, decay_origin="start", power=0.5), 4, [0.0, 0.75**0.5, 0.5**0.5, 0.5, 0.0]),
        (Schedule(shape="cosine", warmup_steps=1, decay_origin="start"), 2, [0.0, 0.5, 0.0]),
        (Schedule(shape="step", milestone_steps=(2, 3)), 4, [1.0, 1.0, 0.1, 0.01, 0.01]),
        (Schedule(shape="step", milestone_steps=(3,), gamma=0.5, warmup_steps=2), 5, [0, 0.5, 1, 0.5, 0.5]),
        (Schedule(warmup_steps=3), 3, [0.0, 1 / 3, 2 / 3, 1.0]),  # nothing left to decay over
    ],
)
def test_shapes(schedule: Schedule, steps: int, table: list[float]) -> None:
    factors = [schedule.factor(t, steps) for t in range(len(table))]
    assert factors == pytest.approx(table, abs=1e-9)


@pytest.mark.parametrize("shape", ["polynomial", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [1, 2, 7, 3_125])
def test_the_shape_begins_where_the_warmup_ends(shape, warmup: int) -> None:
    schedule = Schedule(warmup_steps=warmup, shape=shape)
    assert schedule.factor(warmup, 15_625) == 1.0
    assert schedule.factor(warmup - 1, 15_625) == pytest.approx(1 - 1 / warmup)


def test_nvidias_decay_jumps_where_ours_does_not() -> None:
    ours = Schedule(warmup_steps=2_001, power=0.5)
    nvidias = Schedule(warmup_steps=2_001, power=0.5, decay_origin="start")
    assert ours.factor(2_001, 7_038) == 1.0
    assert nvidias.factor(2_000, 7_038) == pytest.approx(2_000 / 2_001)
    assert nvidias.factor(2_001, 7_038) == pytest.approx(0.84598, abs=1e-5)  # sqrt(1 - 2,001 / 7,038)


# --- stages -----------------------------------------------------------------------------------------


def test_stages_meet_exactly() -> None:
    stages = [(Schedule(warmup_steps=2), 5), (Schedule(warmup_steps=1, shape="constant"), 3)]
    found = [tuple(position(stages, step)) for step in range(9)]
    assert [(stage, step) for stage, step, _ in found] == [
        *((0, t) for t in range(5)),
        *((1, t) for t in range(3)),
        (1, 3),  # behind the last step
    ]
    factors = [0.0, 0.5, 1.0, 2 / 3, 1 / 3, 0.0, 1.0, 1.0, 1.0]
    assert [factor for _, _, factor in found] == pytest.approx(factors)
    assert position(stages, 5).factor == 0.0  # stage 2 warms up again, from exactly zero


@pytest.mark.parametrize("wrong", [lambda t: (0, t) if t <= 5 else (1, t - 6), lambda t: (0, t) if t < 5 else (1, t)])
def test_the_boundary_catches_a_step_too_late_and_a_global_step(wrong) -> None:
    stages = [(Schedule(warmup_steps=2), 5), (Schedule(warmup_steps=1), 3)]
    assert [wrong(t) for t in range(8)] != [position(stages, t)[:2] for t in range(8)]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(warmup_steps=3),
        Schedule(warmup_steps=9, shape="cosine", end_factor=0.1),  # longer than the first stage
        Schedule(shape="step", milestone_steps=(3, 12)),
        Schedule(warmup_steps=3, power=0.5, decay_origin="start"),
        Schedule(shape="constant"),
    ],
)
@pytest.mark.parametrize("steps", [(17,), (7, 10), (1, 15, 1), (5, 5, 7)])
def test_a_continuous_schedule_is_the_undivided_one_to_the_bit(schedule: Schedule, steps: tuple[int, ...]) -> None:
    stages = list(zip(continuous(schedule, steps), steps, strict=True))
    assert [position(stages, t).factor for t in range(18)] == [schedule.factor(t, 17) for t in range(18)]


def test_a_stage_of_its_own_would_warm_up_again() -> None:
    whole = Schedule(warmup_steps=3)
    joined = [(whole, 7), (whole, 10)]
    assert [position(joined, t).factor for t in range(17)] != [whole.factor(t, 17) for t in range(17)]
    assert position(joined, 7).factor == 0.0
    assert position(list(zip(continuous(whole, (7, 10)), (7, 10), strict=True)), 7).factor == pytest.approx(10 / 14)


def test_berts_two_stages_share_one_schedule() -> None:
    first, second = continuous(Schedule(warmup_steps=3_125), (14_063, 1_562))
    assert first.factor(0, 14_063) == 0.0
    assert first.factor(3_125, 14_063) == 1.0
    assert second.factor(0, 1_562) == pytest.approx(1_562 / 12_500)
    assert second.factor(1_561, 1_562) == pytest.approx(1 / 12_500)
    assert second.factor(1_562, 1_562) == 0.0


def test_a_schedule_survives_json() -> None:
    schedule = Schedule(shape="step", milestone_steps=(2, 3), warmup_steps=1, span_steps=9, offset_steps=4)
    again = Schedule(**json.loads(json.dumps(dataclasses.asdict(schedule))))
    assert again == schedule
    assert hash(again) == hash(schedule)


def test_numpy_steps_are_steps() -> None:
    assert position([(POLYNOMIAL, 10)], np.int64(5)).factor == POLYNOMIAL.factor(5, 10)  # type: ignore[arg-type]


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1, but must be a whole number of at least 0"),
        ({"warmup_steps": 1.5}, "warmup_steps is 1.5, but"),
        ({"offset_steps": -1}, "offset_steps is -1, but"),
        ({"span_steps": 0}, "span_steps is 0, but must be a whole number of at least 1"),
        ({"shape": "linear"}, "shape is 'linear', but must be one of constant, polynomial, cosine, step"),
        ({"decay_origin": "zero"}, "decay_origin is 'zero', but must be one of warmup_end, start"),
        ({"power": 0.0}, "power is 0.0, but must be a finite number above 0"),
        ({"power": math.inf}, "power is inf, but"),
        ({"power": math.nan}, "power is nan, but"),
        ({"start_factor": -0.1, "warmup_steps": 1}, "start_factor is -0.1, but must lie between 0 and 1"),
        ({"end_factor": 1.1}, "end_factor is 1.1, but must lie between 0 and 1"),
        ({"end_factor": math.nan}, "end_factor is nan, but"),
        ({"start_factor": 0.1}, "start_factor is 0.1, but needs warmup_steps above 0"),
        ({"shape": "step"}, "milestone_steps is empty, but shape step needs at least one"),
        ({"shape": "step", "milestone_steps": (3, 3)}, r"milestone_steps is \(3, 3\), but must ascend"),
        ({"shape": "step", "milestone_steps": (2,), "warmup_steps": 3}, "no earlier than the end of the warm-up"),
        ({"shape": "step", "milestone_steps": (0,)}, "milestone_steps is 0, but must be"),
        ({"shape": "step", "milestone_steps": (2,), "gamma": 0.0}, "gamma is 0.0, but must be above 0"),
        ({"shape": "cosine", "power": 2.0}, "power is 2.0, but only shape polynomial has it, not cosine"),
        ({"shape": "constant", "end_factor": 0.5}, "end_factor is 0.5, but only shape polynomial or cosine"),
        ({"shape": "constant", "decay_origin": "start"}, "decay_origin is 'start', but only shape"),
        ({"milestone_steps": (2,)}, r"milestone_steps is \(2,\), but only shape step has it, not polynomial"),
        ({"gamma": 0.5}, "gamma is 0.5, but only shape step has it"),
    ],
)
def test_a_bad_schedule_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)


@pytest.mark.parametrize(
    ("schedule", "step", "total", "message"),
    [
        (Schedule(warmup_steps=11), 0, 10, "warmup_steps is 11, but the schedule has only 10 steps in all"),
        (Schedule(), -1, 10, "step is -1, but must lie between 0 and 10"),
        (Schedule(), 11, 10, "step is 11, but must lie between 0 and 10"),
        (Schedule(), 0, 0, "total_steps is 0, but must be a whole number of at least 1"),
        (Schedule(offset_steps=5, span_steps=10), 0, 6, "plays steps 5 to 11, but span_steps is 10 in all"),
        (Schedule(shape="step", milestone_steps=(10,)), 0, 10, "must stay below the 10 steps in all"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(schedule: Schedule, step: int, total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.factor(step, total)


def test_a_warmup_longer_than_its_stage_may_go_on_in_the_next() -> None:
    first, second = continuous(Schedule(warmup_steps=8), (5, 5))
    assert first.factor(5, 5) == second.factor(0, 5) == 5 / 8


@pytest.mark.parametrize(
    ("stages", "step", "message"),
    [
        ([], 0, "stages is empty"),
        ([(Schedule(), 5)], -1, "global_step is -1, but"),
        ([(Schedule(), 5), (Schedule(), 5)], 11, "global_step is 11, but the stages have 10 steps in all"),
        ([(Schedule(), 0), (Schedule(), 5)], 0, "steps of stage 0 is 0, but"),
    ],
)
def test_a_position_outside_is_refused(stages: list, step: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        position(stages, step)


def test_only_a_whole_schedule_can_be_divided() -> None:
    with pytest.raises(ValueError, match="must be a whole one"):
        continuous(Schedule(span_steps=10), (5, 5))
    with pytest.raises(ValueError, match="steps is empty"):
        continuous(Schedule(), ())
    with pytest.raises(ValueError, match="steps of stage 1 is 0"):
        continuous(Schedule(), (5, 0))
