"""Trust ratios as a heat map: layers by steps, logarithmic."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.report import wording
from largebatch.report.charts import Table
from largebatch.report.markup import plot_text
from largebatch.report.run_folder import Numbers, RunFolder
from largebatch.report.series import most_extreme, plain

CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
"""Ten colours from low to high, told apart with any colour vision (Nuñez et al., PLOS ONE 2018), dark to light."""
CELLS = 60_000
"""At most so many cells; more records share a column."""
COLUMNS = 400


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The figure of trust ratios: one row for each adapted layer, in the model's order."""

    names: tuple[str, ...]
    step: Numbers
    samples: Numbers
    logarithms: Numbers
    caption: str
    notes: tuple[str, ...]
    table: Table

    def data(self) -> dict[str, Any]:
        """Return what the page's script reads; ``z`` holds base-10 logarithms."""
        return {
            "names": [plot_text(name) for name in self.names],
            "narrowNames": [plot_text(name) for name in narrow_names(self.names)],
            "steps": plain(self.step, 15),
            "samples": plain(self.samples, 15),
            "z": [plain(row, 4) for row in self.logarithms],
            "low": self.span[0],
            "high": self.span[1],
            "colours": [[number / (len(CIVIDIS) - 1), colour] for number, colour in enumerate(CIVIDIS)],
        }

    @property
    def span(self) -> tuple[float, float]:
        """The logarithms at the two ends of the colours."""
        low, high = float(np.nanmin(self.logarithms)), float(np.nanmax(self.logarithms))
        return (low, high) if high - low >= 0.01 else (low - 0.005, high + 0.005)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round ratios along the colours: (position from 0 to 1, text)."""
        low, high = self.span
        return [((math.log10(ratio) - low) / (high - low), f"{ratio:g}") for ratio in _round_ratios(low, high)]


def _round_ratios(low: float, high: float) -> list[float]:
    """Return round ratios between two logarithms, far enough apart for their names: the roundest come first."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    chosen: list[float] = []
    for digit in (1, 3, 2, 5, 7, 1.5, 4, 6, 8, 9):
        for ratio in (float(f"{digit}e{power}") for power in powers):
            place = math.log10(ratio)
            room = min((abs(place - math.log10(other)) for other in chosen), default=math.inf)
            if low <= place <= high and room >= 0.12 * (high - low):
                chosen.append(ratio)
    evenly = (float(f"{10**place:.4g}") for place in np.linspace(low, high, 6)[1:-1])
    return sorted(chosen if len(chosen) >= 3 else evenly)


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Leave out a beginning that nearly all names share and ``.weight`` at the end, where names stay distinct.

    ``bert.encoder.layer.0.output.dense.weight`` becomes ``encoder.layer.0.output.dense``.
    """
    found = tuple(names)
    while True:
        heads = Counter(name.partition(".")[0] for name in found if "." in name)
        head, frequency = heads.most_common(1)[0] if heads else ("", 0)
        if frequency < 0.8 * len(found) or len(found) == 1 or head.isdigit():
            break
        found = _if_distinct(found, tuple(name.removeprefix(f"{head}.") for name in found))
        if found == names or any(name.startswith(f"{head}.") for name in found):
            break
    return _if_distinct(found, tuple(name.removesuffix(".weight") for name in found))


def narrow_names(names: Sequence[str]) -> tuple[str, ...]:
    """Abbreviate names for a phone: the layer's number first, all but the last part cut to three letters.

    ``encoder.layer.0.attention.self.query`` becomes ``0 att.sel.query``.
    """
    found = []
    for name in names:
        parts = name.split(".")
        numbers = [position for position, part in enumerate(parts) if part.isdigit()]
        lead = ""
        if numbers and numbers[-1] + 1 < len(parts):
            lead = ".".join(parts[position] for position in numbers) + " "
            parts = parts[numbers[-1] + 1 :]
        found.append(lead + ".".join([*(part[:3] for part in parts[:-1]), parts[-1]]))
    return _if_distinct(tuple(names), tuple(found))


def _if_distinct(names: tuple[str, ...], changed: tuple[str, ...]) -> tuple[str, ...]:
    return changed if len(set(changed)) == len(changed) else names


def heat_map(run: RunFolder) -> HeatMap | None:
    """Make the figure, or None where no ratio was recorded."""
    recorded = run.layers
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.where(recorded.ratios > 0, np.log10(recorded.ratios), np.nan)
    adapted = np.atleast_1d(np.isfinite(logarithms).any(axis=1))
    if not adapted.any():
        return None
    ratios, logarithms = recorded.ratios[adapted], logarithms[adapted]
    names = short_names([name for name, shown in zip(recorded.names, adapted.tolist(), strict=True) if shown])
    limit = max(20, min(COLUMNS, CELLS // len(names)))
    first, shortened = most_extreme(logarithms, limit)
    finite = np.where(np.isfinite(logarithms), ratios, np.nan)
    smallest, largest = float(np.nanmin(finite)), float(np.nanmax(finite))
    return HeatMap(
        names=names,
        step=recorded.step[first],
        samples=run.samples_at(recorded.step[first]),
        logarithms=shortened,
        caption=f"{wording.plural(len(names), 'layer')}, from the input (top) to the output. The colour is the trust "
        "ratio, the length of the layer's weights over the length of its update: "
        f"{wording.significant(smallest, 3)} to {wording.significant(largest, 3)}.",
        notes=_notes(len(recorded.names) - len(names), recorded.ratios, len(recorded.step), shortened.shape[1]),
        table=_table(names, finite),
    )


def _notes(left_out: int, ratios: Numbers, records: int, columns: int) -> tuple[str, ...]:
    omitted = f" ({left_out:,} of them were recorded)" if left_out else ""
    notes = [
        f"Parameters that take the plain step, such as biases and norm layers, have no ratio and are left out{omitted}."
    ]
    zeros = int((ratios <= 0).sum())
    if zeros:
        notes.append(f"{wording.plural(zeros, 'ratio')} of 0 have no place on a logarithmic scale and are blank.")
    if columns < records:
        notes.append(f"{records:,} records share {columns:,} columns: each cell shows its most unusual value.")
    return tuple(notes)


def _table(names: tuple[str, ...], ratios: Numbers) -> Table:
    rows = []
    for name, row in zip(names, ratios, strict=True):
        finite = row[np.isfinite(row)]
        numbers = (finite[0], finite.min(), float(np.median(finite)), finite.max(), finite[-1])
        rows.append((name, *(wording.significant(float(number), 3) for number in numbers)))
    return Table(header=("layer", "first", "smallest", "median", "largest", "last"), rows=tuple(rows))
