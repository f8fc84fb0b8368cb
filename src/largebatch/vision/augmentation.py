"""Which part of an image is seen, and whether mirrored: functions of (seed, epoch, sample) and nothing else.

Random resized crop: an area a, uniform in [least_area, 1] of the image's, and a ratio of width to height whose
logarithm is uniform between those of 3/4 and 4/3; the first of ten such boxes that fits, at a uniform place, or else
the largest box in the middle. Source: Szegedy et al., "Going deeper with convolutions", 2014; the ten tries are those
of its usual implementations.

Padded crop: the image, mirrored beyond its edge, shifted by up to ``padding`` pixels either way. Source: He et al.,
2015, with zeros; mirrored in DAWNBench's fastest entry, as is a hole of ``cutout`` pixels (DeVries and Taylor, 2017).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from largebatch import counter_random
from largebatch.vision.decoding import Box

_STREAM = 7  # the number of the draws made here
_TRIES = 10
_RATIOS = (math.log(3 / 4), math.log(4 / 3))
# Counters within the draws of a sample.
_FLIP, _SHIFT, _HOLE, _CROP = 0, 1, 3, 8

Keys = NDArray[np.uint64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the images of training differ from epoch to epoch."""

    crop: Literal["none", "padded", "resized"] = "none"
    padding: int = 4
    """Pixels by which a padded crop may be shifted."""
    least_area: float = 0.08
    """The least share of an image that a resized crop shows."""
    flip: bool = False
    """Mirror every other image, left to right."""
    cutout: int = 0
    """Side of the square that is covered with the mean colour; 0 is none."""


def keys(seed: int, epochs: Integers, indices: Integers) -> Keys:
    """Return a key for the draws of each sample."""
    found = np.empty(len(indices), np.uint64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = counter_random.keys(counter_random.key(seed, _STREAM, int(epoch)), indices[here])
    return found


def flipped(keys: Keys) -> NDArray[np.bool_]:
    """Return which samples are mirrored, every other one."""
    return (counter_random.bits(keys, _FLIP) & np.uint64(1)).astype(bool)


def shifts(keys: Keys, padding: int) -> Integers:
    """Return by how many rows and columns each padded crop is shifted, [N, 2], from -padding to padding."""
    return counter_random.integers(keys[:, None], _SHIFT + np.arange(2), 2 * padding + 1) - padding


def holes(keys: Keys, size: int, cutout: int) -> Integers:
    """Return the first row and column of each hole, [N, 2]; the hole lies within the image."""
    return counter_random.integers(keys[:, None], _HOLE + np.arange(2), size - cutout + 1)


def crop_draws(keys: Keys) -> list[list[list[float]]]:
    """Return the draws of each random resized crop, [N, tries, 4]: for its area, ratio, column and row, from [0, 1)."""
    return counter_random.uniform(keys[:, None, None], _CROP + np.arange(4 * _TRIES).reshape(_TRIES, 4)).tolist()


def resized_crop(draws: list[list[float]], width: int, height: int, least_area: float) -> Box:
    """Return the part of an image that a random resized crop shows, in whole pixels."""
    for for_area, for_ratio, for_left, for_upper in draws:
        area = (least_area + (1 - least_area) * for_area) * (width * height)
        ratio = math.exp(_RATIOS[0] + (_RATIOS[1] - _RATIOS[0]) * for_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            left, upper = int(for_left * (width - w + 1)), int(for_upper * (height - h + 1))
            return left, upper, left + w, upper + h
    return largest_middle(width, height)


def largest_middle(width: int, height: int) -> Box:
    """Return the largest box in the middle whose ratio is allowed."""
    w = min(width, round(height * math.exp(_RATIOS[1])))
    h = min(height, round(width / math.exp(_RATIOS[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def middle_square(width: int, height: int, share: float) -> Box:
    """Return the square in the middle whose side is that share of the shorter side."""
    side = min(width, height) * share
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def mirrored_places(first: Integers, size: int, length: int) -> Integers:
    """Return ``size`` places from each first one on, [N, size]; beyond the edges of ``length`` ones they go back."""
    places = np.abs(first[:, None] + np.arange(size))
    return np.where(places >= length, 2 * (length - 1) - places, places)
