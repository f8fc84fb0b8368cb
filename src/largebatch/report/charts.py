"""A figure of curves as data: what to draw, what it shows in a sentence, and the numbers as a table."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from largebatch.report.run_folder import Numbers
from largebatch.report.series import plain, thin

POINTS = 2_000
"""About so many points a curve at most."""

Style = Literal["raw", "line", "dots", "dashed", "crosses"]
Colour = Literal["blue", "orange", "green", "purple", "grey"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. Series of one ``name`` are switched together and share a legend entry.

    The line is broken in front of each point whose index stands in ``breaks``.
    """

    name: str
    colour: Colour
    style: Style
    step: Numbers
    samples: Numbers
    y: Numbers
    breaks: tuple[int, ...] = ()

    def data(self) -> dict[str, Any]:
        """Return what the page's script reads; null is a gap."""
        steps: list[float | int | None] = []
        samples: list[float | int | None] = []
        values: list[float | int | None] = []
        edges = [0, *self.breaks, len(self.y)]
        for start, stop in pairwise(edges):
            kept = start + thin(self.y[start:stop], max(10, POINTS * (stop - start) // len(self.y)))
            if values:
                for column in (steps, samples, values):
                    column.append(None)
            steps += plain(self.step[kept], 15)
            samples += plain(self.samples[kept], 15)
            values += plain(self.y[kept])
        return {
            "name": self.name,
            "colour": self.colour,
            "style": self.style,
            "steps": steps,
            "samples": samples,
            "y": values,
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers for those who cannot see the figure, or want them exactly."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with one or more curves over the steps; a ``large`` one takes a row of its own."""

    identifier: str
    title: str
    unit: str
    caption: str
    series: tuple[Series, ...]
    table: Table
    percent: bool = False
    logarithmic: bool = False
    from_zero: bool = False
    large: bool = False
    height: int = 280

    def data(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return {
            "id": self.identifier,
            "unit": self.unit,
            "percent": self.percent,
            "logarithmic": self.logarithmic,
            "fromZero": self.from_zero,
            "series": [series.data() for series in self.series],
        }
