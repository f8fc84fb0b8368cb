"""What a search goes through: intervals and choices of a recipe's options, and the points that are tried in them.

Two ways to lay points:

- quasi-random: the first points of a scrambled sequence of Sobol' (Joe and Kuo, 2008; Owen, 1998), which fill the space
  evenly however many are taken. A longer search begins with the points of a shorter one.
- grid: every combination of choices.

Methods that search the same space get the same points, so that none has better luck.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.stats import qmc

from largebatch.errors import InputError

Value = bool | int | float | str
Point = Mapping[str, Value]
"""Option of a recipe -> what it is given."""

DIGITS = 3
"""Significant digits of a number that is drawn, so that a table shows it as it was."""


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, evenly in themselves or in their logarithm; ``whole`` ones if so declared.

    Raises:
        InputError: an interval that is empty or not finite, or reaches to zero in the logarithm.
    """

    low: float
    high: float
    scale: Literal["linear", "log"] = "log"
    whole: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"the interval is {self.low} to {self.high}, allowed is a lower and a higher number")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"the interval begins at {self.low}, in the logarithm allowed is more than 0")
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise InputError(f"the interval of whole numbers is {self.low} to {self.high}, allowed are whole numbers")

    def at(self, share: float) -> Value:
        """Return what lies at a share of the way, 0 to below 1, rounded."""
        if self.whole:
            # Each whole number has an equal part: the interval reaches half a step beyond its ends.
            low, high = self.low - 0.5, self.high + 0.5
            if self.scale == "log":
                value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
            else:
                value = low + share * (high - low)
            return min(max(math.floor(value + 0.5), int(self.low)), int(self.high))
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.{DIGITS}g}"), float(self.low)), float(self.high))

    def __str__(self) -> str:
        """As a table has it."""
        kind = "whole numbers, " if self.whole else ""
        return f"{self.low:g} to {self.high:g} ({kind}{'logarithmic' if self.scale == 'log' else 'linear'})"


@dataclass(frozen=True)
class Choices:
    """A few values that differ.

    Raises:
        InputError: none, or one twice.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(map(repr, self.values))) < len(self.values):
            raise InputError(f"the choices are {list(self.values)}, allowed are one or more that differ")

    def at(self, share: float) -> Value:
        """Return the one at a share of the way, 0 to below 1."""
        return self.values[int(share * len(self.values))]

    def __str__(self) -> str:
        """As a table has it."""
        return ", ".join(map(shown, self.values))


Dimension = Interval | Choices
Space = Mapping[str, Dimension]
"""Option of a recipe -> what it may be."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A declared space, and the points that are tried in it, in this order.

    Raises:
        InputError: no points, or one that lies outside of the space.
    """

    space: Space
    points: tuple[Point, ...]
    way: Literal["quasi-random", "grid", "listed"] = "listed"

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("a search has no points, allowed is 1 or more")
        for point in self.points:
            if set(point) != set(self.space):
                raise InputError(f"a point has the options {sorted(point)}, the space has {sorted(self.space)}")
            for name, value in point.items():
                if not _within(self.space[name], value):
                    raise InputError(f"a point has {name} {shown(value)}, allowed is {self.space[name]}")


def quasi_random(space: Space, trials: int, seed: int = 0) -> Search:
    """Lay points evenly over a space.

    Raises:
        InputError: an empty space or no trials.
    """
    if not space or trials < 1:
        raise InputError(f"a search has {len(space)} options and {trials} trials, allowed is 1 or more of both")
    sequence = qmc.Sobol(len(space), rng=np.random.default_rng(seed))
    shares = sequence.random_base2(max(trials - 1, 0).bit_length())[:trials]
    rows = ({name: space[name].at(float(x)) for name, x in zip(space, row, strict=True)} for row in shares)
    return Search(space=space, points=tuple(rows), way="quasi-random")


def grid(space: Mapping[str, Choices]) -> Search:
    """Combine all choices.

    Raises:
        InputError: an empty space, or an interval in it.
    """
    for name, dimension in space.items():
        if not isinstance(dimension, Choices):
            raise InputError(f"{name} is {dimension}, in a grid allowed are choices")
    combined = product(*(dimension.values for dimension in space.values()))
    points = tuple(dict(zip(space, values, strict=True)) for values in combined)
    return Search(space=space, points=points if space else (), way="grid")


def shown(value: Value) -> str:
    """Return a value as tables and folders have it."""
    return f"{value:.{DIGITS + 1}g}" if isinstance(value, float) else str(value)


def described(point: Point) -> str:
    """Return a point in words: lr 0.02, weight decay 0.01."""
    return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in point.items())


def words(options: Point) -> list[str]:
    """Return options as a command line has them, numbers in all their digits."""
    found: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", repr(value) if isinstance(value, float) else str(value)]
    return found


def _within(dimension: Dimension, value: Value) -> bool:
    if isinstance(dimension, Choices):
        return value in dimension.values
    if isinstance(value, bool | str):
        return False
    return dimension.low <= value <= dimension.high and (not dimension.whole or float(value).is_integer())


GRIDS: Mapping[str, Mapping[str, Choices]] = MappingProxyType(
    {
        # Devlin et al., NAACL 2019, appendix A.3.
        "bert-fine-tuning": {
            "batch": Choices((16, 32)),
            "lr": Choices((5e-5, 3e-5, 2e-5)),
            "epochs": Choices((2.0, 3.0, 4.0)),
        },
        # arXiv 1904.00962, AdamW at batch 16K: "three rates x three warm-ups", the rates themselves as remembered [R].
        "adamw-16k": {"lr": Choices((1e-4, 2e-4, 3e-4)), "warmup_share": Choices((0.05, 0.1, 0.2))},
    }
)
"""Grids of the papers."""


def carried(point: Point, factors: Mapping[str, float]) -> Point:
    """Return a point with some of its numbers multiplied.

    Raises:
        InputError: a factor for an option that the point lacks, or that is no number.
    """
    moved = dict(point)
    for name, factor in factors.items():
        value = point.get(name)
        if value is None or isinstance(value, bool | str):
            raise InputError(f"{name} is {value!r}, what is multiplied by {factor:g} has to be a number of the point")
        moved[name] = value * factor
    return moved


def check_options(options: Point, what: str, taken: Sequence[str] = ()) -> None:
    """Raise InputError for options that are no words of a command line, or that another place decides."""
    for name, value in options.items():
        if not name.replace("_", "").isalnum():
            raise InputError(f"{what} has the option {name!r}, allowed are letters, digits and underscores")
        if name in taken:
            raise InputError(f"{what} has the option {name}, which the study itself sets")
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{what} has {name} {value!r}, allowed are numbers, words, true and false")
