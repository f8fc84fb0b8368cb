"""Long curves made short without hiding their extremes, and the averages drawn over them."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from largebatch.report.run_folder import Numbers


def thin(values: Numbers, limit: int) -> NDArray[np.int64]:
    """Return ascending indices of at most ``limit`` points, the ends and the extremes of equal pieces between them.

    The smallest and the largest value of each piece are kept, so that a single spike in a million steps stays in
    sight. Values that are not finite are left out where they are not the ends.
    """
    count = len(values)
    if count <= limit:
        return np.arange(count)
    edges = np.linspace(0, count, max(1, (limit - 2) // 2) + 1).astype(np.int64)
    kept = {0, count - 1}
    for start, stop in pairwise(edges.tolist()):
        piece = values[start:stop]
        finite = np.flatnonzero(np.isfinite(piece))
        if len(finite):
            kept.add(int(start + finite[np.argmin(piece[finite])]))
            kept.add(int(start + finite[np.argmax(piece[finite])]))
    return np.array(sorted(kept))


def spread(count: int, limit: int) -> NDArray[np.int64]:
    """Return up to ``limit`` of the first ``count`` indices, ascending and evenly spread, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).astype(np.int64))


def moving_average(values: Numbers, window: int) -> Numbers:
    """Return the mean of the finite values within half a window on each side; at the ends the window is shorter.

    NaN where no value in the window is finite.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    positions = np.arange(len(values))
    first = np.maximum(positions - window // 2, 0)
    stop = np.minimum(positions + window // 2 + 1, len(values))
    inside = counts[stop] - counts[first]
    with np.errstate(invalid="ignore"):
        return np.where(inside > 0, (sums[stop] - sums[first]) / np.maximum(inside, 1), np.nan)


def most_extreme(rows: Numbers, limit: int) -> tuple[NDArray[np.int64], Numbers]:
    """Shorten [layers, records] to at most ``limit`` columns, keeping in each cell the most unusual value.

    Most unusual is the one farthest from its row's median. Returns the first record of each column, and
    [layers, columns]; NaN where a cell has no finite value.
    """
    count = rows.shape[1]
    if count <= limit:
        return np.arange(count), rows
    edges = np.linspace(0, count, limit + 1).astype(np.int64)
    shortened = np.full((len(rows), limit), np.nan)
    for number, row in enumerate(rows):
        finite = row[np.isfinite(row)]
        if not len(finite):
            continue
        distance = np.where(np.isfinite(row), np.abs(row - np.median(finite)), -1.0)
        for column, (start, stop) in enumerate(pairwise(edges.tolist())):
            shortened[number, column] = row[start + int(np.argmax(distance[start:stop]))]
    return edges[:-1], shortened


def plain(values: Numbers, digits: int = 6) -> list[float | int | None]:
    """Return JSON's numbers, to so many significant digits; None where a value is not finite."""
    found: list[float | int | None] = []
    for value in values.tolist():
        if not np.isfinite(value):
            found.append(None)
        elif value == int(value) and abs(value) < 2**53:
            found.append(int(value))
        else:
            found.append(float(f"{value:.{digits}g}"))
    return found
