"""Runs: what is refused, and which fields may change at a resume."""

import json
from dataclasses import replace
from typing import Any

import pytest

from largebatch.errors import InputError
from largebatch.train.run import changed_fields
from train.toy import toy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": ()}, "at least one stage"),
        ({"microbatch": 0}, "microbatch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps is 0"),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(toy(), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_batch_samples": 0}, "global_batch_samples is 0"),
        ({"global_batch_samples": 10**20}, "allowed is 1 to 134217728"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**30}, "steps is 1000000000000000000000000000000, allowed is 1 to"),
        ({"peak_lr": float("nan")}, "peak_lr is nan"),
        ({"peak_lr": -1.0}, "peak_lr is -1.0"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(toy().stages[0], **changes)


def test_stages_of_one_name_are_refused() -> None:
    stage = toy().stages[0]
    with pytest.raises(InputError, match="names that differ"):
        replace(toy(), stages=(stage, stage))


def test_a_run_equals_its_record() -> None:
    record = json.loads(json.dumps(toy().as_dict()))
    assert changed_fields(record, toy().as_dict()) == []


def test_only_where_and_in_which_portions_may_change() -> None:
    record = toy().as_dict()
    assert changed_fields(record, replace(toy(), microbatch=7, workers=2, device="cpu").as_dict()) == []
    assert "seed (recorded 0, given 1)" in changed_fields(record, replace(toy(), seed=1).as_dict())
    changed = replace(toy(), task=replace(toy().task, dropout=0.5))
    assert changed_fields(record, changed.as_dict()) == ["task.dropout (recorded 0.0, given 0.5)"]
    longer = toy(steps=13)
    assert changed_fields(record, longer.as_dict()) == ["stages.0.steps (recorded 12, given 13)"]


def test_a_record_from_before_a_field_came_is_the_same_run() -> None:
    record = toy().as_dict()
    for stage in record["stages"]:
        del stage["continues_data"]
    assert changed_fields(record, toy().as_dict()) == []
    first, *others = toy().stages
    going_on = replace(toy(), stages=(first, replace(first, name="more", continues_data=True), *others))
    of_old = going_on.as_dict()
    del of_old["stages"][1]["continues_data"]
    assert changed_fields(of_old, going_on.as_dict()) == ["stages.1.continues_data (recorded False, given True)"], (
        "a growing batch of before read its data anew in each part"
    )


def test_the_learning_rate_follows_each_stage_from_zero() -> None:
    for stage in toy().stages:
        assert stage.lr(0) == 0.0
        assert stage.lr(stage.schedule.warmup_steps) == stage.peak_lr
