"""A study makes the runs that it declares: equal budgets, best points with other seeds, points carried over."""

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from made_study import RATES, made_study, made_trials, score_of

from largebatch.errors import InputError
from largebatch.study.ledger import ends
from largebatch.study.plan import Arm, Carried, Ended, Job, Pruning, Published, Study, study_of
from largebatch.study.space import Choices, Interval, Point, Search, grid, quasi_random


def carried_study(**fields: Any) -> Study:
    arms = (
        Arm(method="LAMB", batch=32, search=RATES),
        Arm(method="LAMB", batch=128, search=Carried(arm="LAMB, batch 32", factors={"lr": 2.0})),
        Arm(method="as it is", batch=32),
    )
    return made_study(arms=arms, **fields)


def test_every_arm_has_the_same_number_of_trials_and_no_arm_is_ahead() -> None:
    study = made_study(("a", "b", "c"), (16, 32))
    jobs = list(study.jobs())
    assert len(jobs) == len(set(jobs)) == 6 * (4 + 3)
    assert set(Counter(job.arm for job in jobs if job.kind == "tuning").values()) == {4}
    assert set(Counter(job.arm for job in jobs if job.kind == "seed").values()) == {3}
    assert [job.number for job in jobs if job.kind == "tuning"] == sorted(4 * list(range(4)) + 2 * list(range(4)))


def test_the_seeds_of_the_best_are_not_the_one_that_chose_it() -> None:
    study = made_study()
    trials = made_trials(study, score_of)
    assert {trial.job.seed for trial in trials if trial.job.kind == "tuning"} == {0}
    assert {trial.job.seed for trial in trials if trial.job.kind == "seed"} == {1, 2, 3}
    best = max(RATES.points, key=lambda point: float(point["lr"]))
    assert all(trial.point == best for trial in trials if trial.job.kind == "seed")


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ([1, 3, 2, 0], True, 1),
        ([1, 3, 2, 0], False, 3),
        ([3, 3, 3, 3], True, 0),  # the first of several
        ([None, 3, None, 4], False, 1),
        ([None, None, None, None], True, None),
    ],
)
def test_the_best_point(scores: list[float | None], higher: bool, best: int | None) -> None:
    study = made_study(("LAMB",), higher_is_better=higher)
    ended = {
        Job("LAMB", "tuning", number): Ended(state="diverged" if score is None else "complete", score=score)
        for number, score in enumerate(scores)
    }
    assert study.best(study.arms[0], ended) == best
    ended.pop(Job("LAMB", "tuning", 2))
    assert study.best(study.arms[0], ended) is None  # not over


def test_seeds_wait_for_the_tuning_and_never_run_after_one_that_failed() -> None:
    study = carried_study()
    first = study.open_jobs({})
    assert {(job.arm, job.kind) for job in first} == {("LAMB, batch 32", "tuning"), ("as it is, batch 32", "seed")}

    def diverges(job: Job, point: Point) -> float | None:
        return None if job.kind == "tuning" else 0.5

    trials = made_trials(study, diverges)
    assert {trial.job.arm for trial in trials if trial.job.kind == "seed"} == {"as it is, batch 32"}
    assert study.is_over(ends(trials))
    assert study.is_void(Job("LAMB, batch 128", "seed", 1), ends(trials))
    assert not study.is_over(ends(trials[1:]))


def test_a_point_is_carried_with_its_factor() -> None:
    study = carried_study()
    points = {trial.job: trial.point for trial in made_trials(study, score_of)}
    base, moved = (points[Job(f"LAMB, batch {batch}", "seed", 2)] for batch in (32, 128))
    assert moved == {"lr": 2 * float(base["lr"]), "decay": base["decay"]}
    assert points[Job("as it is, batch 32", "seed", 1)] == {}


def test_a_single_point_is_no_choice_and_costs_no_trial() -> None:
    study = made_study(("LAMB",), search=quasi_random({"lr": Interval(0.1, 1.0)}, 1))
    assert {job.kind for job in study.jobs()} == {"seed"}
    assert study.point(Job("LAMB", "seed", 1), {}) == study.arms[0].points[0]


def test_a_study_reads_back_from_json_as_the_same() -> None:
    study = carried_study(
        pruning=Pruning(trials=2), published=(Published("a paper", 0.9, 32),), notes=("slow",), target=0.7
    )
    assert study_of(json.loads(json.dumps(study.as_dict()))) == study
    mixed = made_study(search=grid({"name": Choices(("a", "b")), "nesterov": Choices((True, False))}))
    assert study_of(json.loads(json.dumps(mixed.as_dict()))) == mixed
    with pytest.raises(InputError, match="lacks 'arms'"):
        study_of({"name": "x"})


def test_a_recipe_in_a_file_is_the_same_wherever_the_file_lies() -> None:
    here, there = (made_study(recipe=f"{place}/own.py:recipe") for place in ("/here", "there"))
    assert not here.changed(there.as_dict())
    assert here.changed(made_study(recipe="/here/other.py:recipe").as_dict()) == ["recipe"]
    assert here.changed(made_study(recipe="/here/own.py:other").as_dict()) == ["recipe"]
    assert made_study(recipe="a.b:recipe").changed(made_study(recipe="c.b:recipe").as_dict()) == ["recipe"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "a/b"}, "allowed are letters, digits"),
        ({"arms": ()}, "allowed is 1 or more"),
        ({"arms": (Arm(method="a"), Arm(method="a"))}, "names that differ"),
        ({"seeds": 0}, "seeds is 0"),
        ({"reference": "nobody"}, "allowed are"),
        ({"options": {"seed": 3}}, "which the study itself sets"),
        ({"options": {"a b": 3}}, "letters, digits and underscores"),
        ({"arms": (Arm(method="a", options={"betas": (0.9, 0.99)}),)}, "allowed are numbers, words"),
        ({"options": {"lr": 0.1}}, "which the study itself sets"),
        ({"arms": (Arm(method="a", search=Carried(arm="b")),)}, "takes over from 'b'"),
        (
            {"arms": (Arm(method="a", search=RATES), Arm(method="b", search=Carried(arm="a", factors={"x": 2.0})))},
            "has to be a number of the point",
        ),
        (
            {"arms": (Arm(method="a", search=RATES), Arm(method="b", options={"lr": 1}, search=Carried(arm="a")))},
            "what arm 'b' takes over has the option lr, which the study itself sets",
        ),
        ({"arms": (Arm(method="Adam"), Arm(method="adam"))}, "'Adam' and 'adam' would lie in one folder"),
        ({"arms": (Arm(method="N-LAMB"), Arm(method="N LAMB"))}, "would lie in one folder"),
        ({"arms": (Arm(method="-"),)}, "would lie in one folder"),
        ({"target": "high"}, "has target 'high', allowed is a finite number or none"),
        ({"target": math.nan}, "has target nan"),
        ({"percent": 1}, "has percent 1, allowed is true or false"),
        ({"seeds": 2.0}, r"has seeds 2\.0, allowed is a whole number"),
        ({"title": 5}, "has title 5, allowed is text"),
        ({"notes": ("a", 5)}, "has 5 among its notes, allowed is str"),
        ({"notes": "a"}, "has notes 'a', allowed is a tuple"),
        ({"pruning": 3}, "has pruning 3, allowed is a pruning or none"),
    ],
)
def test_what_cannot_be_a_study_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        made_study(**fields)


@pytest.mark.parametrize(
    ("part", "fields", "told"),
    [
        (Arm, {"method": "a", "batch": "x"}, "arm 'a' has batch 'x', allowed is a whole number or none"),
        (Arm, {"method": "a", "batch": 0}, "batch is 0, allowed is 1 or more"),
        (Arm, {"method": "a", "search": "grid"}, "has the search 'grid', allowed are"),
        (Arm, {"method": True}, "has method True, allowed is text"),
        (Published, {"label": "a", "value": "y"}, "a published row has value 'y'"),
        (Carried, {"arm": "a", "factors": {"lr": "2"}}, "lr times '2'"),
        (Pruning, {"trials": 1.5}, r"pruning has trials 1\.5"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_where_it_is_made(
    part: Callable[..., object], fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        part(**fields)


def test_a_search_of_another_point_is_another_study() -> None:
    other = Search(space=RATES.space, points=RATES.points[1:])
    assert made_study(search=other) != made_study()
