"""What advise makes of a run's own record: the noise scale near a place, and a batch that follows it."""

import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from largebatch.advise.advice import growth_by_noise, lines, noise_at, noise_sentence, settings
from largebatch.advise.branches import Place
from largebatch.advise.critical_batch import Branch, Findings, find
from largebatch.report.run_folder import RunFolder, TrainSteps
from largebatch.schedules import Schedule
from largebatch.train.run import Stage
from train.toy import toy

BEGINS, STEPS = 50, 400


def place(step: int) -> Place:
    stage = Stage(
        name="second", global_batch_samples=512, steps=STEPS, peak_lr=0.1, schedule=Schedule(shape="constant")
    )
    return Place(checkpoint=Path("step"), step=step, stage=stage, stage_begins=BEGINS, lr=0.1)


def recorded(upto: int = BEGINS + STEPS, every: int = 1) -> RunFolder:
    """Return a run whose noise scale is 5 in its first stage, 40 in the first 30 % of its second, and 300 then."""
    step = np.arange(1.0, upto + 1)
    measured = np.where(step % every == 0, 1.0, math.nan)
    columns = {field.name: np.full(len(step), math.nan) for field in fields(TrainSteps) if field.name != "losses"}
    train = TrainSteps(
        **{
            **columns,
            "step": step,
            "gradient_square": measured,
            "covariance_trace": measured
            * np.where(step <= BEGINS, 5.0, np.where(step <= BEGINS + 0.3 * STEPS, 40.0, 300.0)),
        },
        losses={},
    )
    return cast(RunFolder, SimpleNamespace(train=train))


def test_a_batch_is_proposed_that_follows_the_noise_of_its_own_stage() -> None:
    assert growth_by_noise(recorded(), place(BEGINS + STEPS)) == ((64, 0.3),)
    assert growth_by_noise(recorded(BEGINS + 39), place(BEGINS + 39)) == (), "too few steps say nothing"
    assert growth_by_noise(recorded(every=5), place(BEGINS + STEPS)) == ((64, 0.3),)
    assert growth_by_noise(recorded(every=10), place(BEGINS + STEPS)) == ((64, 0.2), (256, 0.4)), (
        "five stretches of eight"
    )
    assert growth_by_noise(recorded(every=11), place(BEGINS + STEPS)) == ()


def test_shares_are_written_as_one_would() -> None:
    """Of 389 steps in ten stretches the third ends after 117 of the stage's 400, a share of 0.2925."""
    assert growth_by_noise(recorded(BEGINS + 389), place(BEGINS + 389)) == ((64, 0.292),)


@pytest.mark.parametrize(("step", "scale", "steps"), [(BEGINS + 20, 40, 20), (BEGINS + 100, 40, 50), (440, 300, 50)])
def test_the_noise_near_a_place_is_that_of_the_steps_before_it(step: int, scale: float, steps: int) -> None:
    noise = noise_at(recorded(), place(step))
    assert noise is not None
    assert noise.scale == pytest.approx(scale)
    assert noise.steps == steps
    assert noise_at(recorded(), place(BEGINS + 2)) is None, "of two steps nothing is told"


@pytest.mark.parametrize(
    ("into", "scale", "steps"), [(30, 40, 3), (50, 40, 5), (100, 40, 5), (120, 40, 6), (380, 300, 19)]
)
def test_where_one_step_of_ten_is_measured_they_reach_back_half_of_the_way(into: int, scale: float, steps: int) -> None:
    noise = noise_at(recorded(every=10), place(BEGINS + into))
    assert noise is not None
    assert (noise.scale, noise.steps) == (pytest.approx(scale), steps)


def test_why_no_noise_is_told_is_said_as_it_is() -> None:
    assert "noise scale 40 samples" in noise_sentence(recorded(), place(BEGINS + 20))
    assert "fewer than 3 of the steps before are of the stage second" in noise_sentence(recorded(), place(BEGINS + 2))
    never = recorded()
    never.train.gradient_square[:] = math.nan
    assert "a step has to be of two microbatches" in noise_sentence(never, place(BEGINS + 20))


def test_a_later_part_of_a_growing_batch_has_its_warm_up_behind_it() -> None:
    def warm_up(batch: int, offset: int) -> int:
        schedule = Schedule(warmup_steps=40, offset_steps=offset, span_steps=1_000)
        here = replace(place(100), stage=replace(place(100).stage, schedule=schedule))
        return settings(replace(toy(), stages=(here.stage,)), here, batch).warmup_steps

    assert [warm_up(1024, offset) for offset in (0, 30, 60)] == [40, 10, 0]


def findings(orders: int, falls: float) -> Findings:
    def branch(k: int, order: int) -> Branch:
        losses = [2 - falls * eighth + 0.001 * order for eighth in range(8 if k == 1 else 12)]
        return Branch(multiple=k, order=order, state="complete", losses=tuple(losses))

    return find([branch(k, order) for order in range(orders) for k in (1, 2)], 512, 4096, 0.01)


def test_one_order_says_that_it_tells_no_scatter() -> None:
    def told(found: Findings) -> str:
        run = replace(toy(), stages=(place(100).stage,))
        return "\n".join(lines(run, place(100), found, "The noise.", 100.0, ((64, 0.3),)))

    assert "one order of the data tells no scatter" in told(findings(1, 0.1))
    assert "surely up to" in told(findings(2, 0.1))
    nothing = told(findings(2, -0.1))
    assert "Nothing can be told by branches" in nothing
    assert "and another --out" in nothing
    assert "The noise." in nothing
    assert "--batch-growth 64:0.3, and then 512" in nothing
