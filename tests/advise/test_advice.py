"""What advise makes of a run's own record: the noise scale near a place, and a batch that follows it."""

import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from largebatch.advise.advice import growth_by_noise, noise_at
from largebatch.advise.branches import Place
from largebatch.report.run_folder import RunFolder, TrainSteps
from largebatch.schedules import Schedule
from largebatch.train.run import Stage

BEGINS, STEPS = 50, 400


def place(step: int) -> Place:
    stage = Stage(
        name="second", global_batch_samples=512, steps=STEPS, peak_lr=0.1, schedule=Schedule(shape="constant")
    )
    return Place(checkpoint=Path("step"), step=step, stage=stage, stage_begins=BEGINS, lr=0.1)


def recorded(upto: int = BEGINS + STEPS) -> RunFolder:
    """Return a run whose noise scale is 5 in its first stage, 40 in the first 30 % of its second, and 300 then."""
    step = np.arange(1.0, upto + 1)
    columns = {field.name: np.full(len(step), math.nan) for field in fields(TrainSteps) if field.name != "losses"}
    train = TrainSteps(
        **{
            **columns,
            "step": step,
            "gradient_square": np.ones(len(step)),
            "covariance_trace": np.where(step <= BEGINS, 5.0, np.where(step <= BEGINS + 0.3 * STEPS, 40.0, 300.0)),
        },
        losses={},
    )
    return cast(RunFolder, SimpleNamespace(train=train))


def test_a_batch_is_proposed_that_follows_the_noise_of_its_own_stage() -> None:
    assert growth_by_noise(recorded(), place(BEGINS + STEPS)) == ((64, 0.3),)
    assert growth_by_noise(recorded(BEGINS + 79), place(BEGINS + 79)) == (), "too few steps say nothing"


def test_shares_are_written_as_one_would() -> None:
    ((_, share),) = growth_by_noise(recorded(BEGINS + STEPS - 7), place(BEGINS + STEPS - 7))
    assert str(share) == f"{share:.3g}"


@pytest.mark.parametrize(("step", "scale", "steps"), [(BEGINS + 20, 40, 20), (BEGINS + 100, 40, 50), (440, 300, 50)])
def test_the_noise_near_a_place_is_that_of_the_steps_before_it(step: int, scale: float, steps: int) -> None:
    noise = noise_at(recorded(), place(step))
    assert noise is not None
    assert noise.scale == pytest.approx(scale)
    assert noise.steps == steps
    assert noise_at(recorded(), place(BEGINS + 5)) is None, "of five steps nothing is told"
