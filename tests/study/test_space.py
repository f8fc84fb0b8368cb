"""Points lie where they were declared, evenly, and are the same for all who search the same space."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from largebatch.errors import InputError
from largebatch.study.space import GRIDS, Choices, Interval, Search, carried, described, grid, quasi_random, words

SPACE = {
    "lr": Interval(1e-4, 1.0),
    "share": Interval(0.0, 0.4, "linear"),
    "layers": Interval(1, 4, "linear", whole=True),
    "name": Choices(("a", "b")),
}


def share_of_way(interval: Interval, value: Any) -> float:
    if interval.scale == "log":
        return math.log(value / interval.low) / math.log(interval.high / interval.low)
    return (value - interval.low) / (interval.high - interval.low)


def evenness(shares: list[float]) -> int:
    """How many of 16 equal parts hold one of 16 points."""
    return len({min(int(share * 16), 15) for share in shares})


def test_points_fill_each_dimension_evenly_and_random_ones_do_not() -> None:
    points = quasi_random(SPACE, 16).points
    for name in ("lr", "share"):
        interval = SPACE[name]
        assert isinstance(interval, Interval)
        # Rounding to three digits may move a point over an edge.
        assert evenness([share_of_way(interval, point[name]) for point in points]) >= 15
    assert evenness(np.random.default_rng(0).random(16).tolist()) < 13
    assert Counter(point["layers"] for point in points) == {1: 4, 2: 4, 3: 4, 4: 4}
    assert Counter(point["name"] for point in points) == {"a": 8, "b": 8}


def test_points_are_the_same_again_and_a_longer_search_begins_with_a_shorter_one() -> None:
    assert quasi_random(SPACE, 5) == quasi_random(SPACE, 5)
    assert quasi_random(SPACE, 13).points[:5] == quasi_random(SPACE, 5).points
    assert quasi_random(SPACE, 5, seed=1).points != quasi_random(SPACE, 5).points


def test_numbers_have_three_digits_and_stay_inside() -> None:
    narrow = Interval(0.12345, 0.12346)
    assert {narrow.at(share / 10) for share in range(10)} <= {0.12345, 0.12346}
    for point in quasi_random(SPACE, 64).points:
        assert float(f"{point['lr']:.3g}") == point["lr"]
        assert 1e-4 <= float(point["lr"]) <= 1.0


def test_whole_numbers_have_equal_parts_at_both_ends() -> None:
    interval = Interval(1, 3, "linear", whole=True)
    assert Counter(interval.at(share / 300) for share in range(300)) == {1: 100, 2: 100, 3: 100}
    logarithmic = Interval(1, 64, whole=True)
    assert {logarithmic.at(0.0), logarithmic.at(0.9999999)} == {1, 64}


def test_a_grid_is_every_combination() -> None:
    found = grid({"lr": Choices((1.0, 2.0)), "batch": Choices((8, 16, 32))})
    assert len(found.points) == 6
    assert {tuple(point.values()) for point in found.points} == {(lr, b) for lr in (1.0, 2.0) for b in (8, 16, 32)}
    assert len(grid(GRIDS["bert-fine-tuning"]).points) == 18


def test_a_point_becomes_words_that_read_back_to_the_same_bits() -> None:
    given = words({"lr": 0.1 + 0.2, "bias_correction": False, "nesterov": True, "batch": 8, "optimizer": "lamb"})
    assert given[:2] == ["--lr", "0.30000000000000004"]
    assert float(given[1]) == 0.1 + 0.2
    assert given[2:] == ["--no-bias-correction", "--nesterov", "--batch", "8", "--optimizer", "lamb"]
    assert described({"weight_decay": 0.012345, "batch": 8}) == "weight decay 0.01235, batch 8"


def test_what_is_carried_is_multiplied() -> None:
    assert carried({"lr": 0.5, "decay": 0.1}, {"lr": 2.0}) == {"lr": 1.0, "decay": 0.1}
    for factors in ({"other": 2.0}, {"name": 2.0}):
        with pytest.raises(InputError, match="has to be a number of the point"):
            carried({"lr": 0.5, "name": "a"}, factors)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Interval(2.0, 1.0), "allowed is a lower and a higher number"),
        (lambda: Interval(0.0, 1.0), "in the logarithm allowed is more than 0"),
        (lambda: Interval(0.5, 3, "linear", whole=True), "allowed are whole numbers"),
        (lambda: Interval(float("nan"), 1.0), "allowed is a lower and a higher number"),
        (lambda: Choices(()), "one or more that differ"),
        (lambda: Choices((1, 1)), "one or more that differ"),
        (lambda: quasi_random({}, 3), "allowed is 1 or more of both"),
        (lambda: quasi_random(SPACE, 0), "allowed is 1 or more of both"),
        (lambda: grid({"lr": Interval(1.0, 2.0)}), "in a grid allowed are choices"),  # type: ignore[dict-item]
        (lambda: grid({}), "has no points"),
        (lambda: Search(space=SPACE, points=({"lr": 1.0},)), "the space has"),
        (lambda: Search(space={"lr": Interval(1.0, 2.0)}, points=({"lr": 3.0},)), "allowed is 1 to 2"),
        (lambda: Search(space={"lr": Interval(1.0, 2.0)}, points=({"lr": True},)), "allowed is 1 to 2"),
    ],
)
def test_what_cannot_be_searched_is_refused(make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
