"""Optimizers at several batches: the rate of each pair is tuned by one rule, then several seeds run at the best.

Tuning: three rates in steps of two; then, as long as the best is the lowest or the highest tried, the next beyond it.
Rates are those at the least batch; at others they follow the square-root rule.

What each run came to goes into reports/NAME/trials.json at once and is not run again, so that a study can be stopped
and goes on, on another machine too. At the end reports/NAME/README.md has the tables.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect import insert, table
from trials import Ledger, two_cores

Tuning = dict[float, float]
"""Rate -> what the run with the first seed cost, infinite where it diverged."""


@dataclass(frozen=True, order=True)
class Trial:
    """One run."""

    optimizer: str
    batch: int
    rate: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"{self.optimizer}-{self.batch}-{self.rate:g}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RateStudy:
    """What is compared, and by what."""

    name: str
    """Of the folder under reports/."""
    batches: tuple[int, ...]
    first_rates: Mapping[str, tuple[float, ...]]
    """Optimizer -> the three rates that are tried first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The first of them also chooses the rate."""
    cost: Callable[[Mapping[str, float]], float]
    """Scores -> what is to be small."""
    cost_name: str
    """What the tables call it."""
    shown: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record
    """Record -> the record whose scores stand in the table."""

    @property
    def folder(self) -> Path:
        """Of the report."""
        return Path(__file__).parent / self.name

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Each optimizer at each batch."""
        return [(optimizer, batch) for batch in self.batches for optimizer in self.first_rates]

    def open_ledger(self, data: str) -> Ledger[Trial]:
        """Return the ledger of the trials on data that this identifies."""
        return Ledger.open(self.folder / "trials.json", data, Trial)

    def run(self, ledger: Ledger[Trial], run: Callable[[Trial], dict[str, Any]]) -> None:
        """Tune each cell, then repeat the best of each with further seeds."""
        while further := [
            Trial(optimizer, batch, rate, self.seeds[0])
            for optimizer, batch in self.cells
            for rate in further_rates(self.first_rates[optimizer], self.tuning_of(ledger, optimizer, batch))
        ]:
            ledger.run_all(further, run)
        ledger.run_all([trial for trials in self.best_trials(ledger).values() for trial in trials], run)

    def tuning_of(self, ledger: Ledger[Trial], optimizer: str, batch: int) -> Tuning:
        """Return what the first seed came to, by ascending rate."""
        return {
            trial.rate: math.inf if "diverged" in record else self.cost(record["scores"])
            for trial, record in sorted(ledger.records.items(), key=lambda held: held[0])
            if (trial.optimizer, trial.batch, trial.seed) == (optimizer, batch, self.seeds[0])
        }

    def best_trials(self, ledger: Ledger[Trial]) -> dict[str, list[Trial]]:
        """Return label -> the trials of each seed at the best rate."""
        best = {cell: best_rate(self.tuning_of(ledger, *cell)) for cell in self.cells}
        return {label(*cell): [Trial(*cell, rate, seed) for seed in self.seeds] for cell, rate in best.items()}

    def filled(self, page: str, ledger: Ledger[Trial]) -> str:
        """Return the page with both tables of a study that has come to its end."""
        groups = {
            name: [self.shown(ledger.records[trial]) for trial in trials]
            for name, trials in self.best_trials(ledger).items()
        }
        tuning = {label(*cell): self.tuning_of(ledger, *cell) for cell in self.cells}
        return insert(insert(page, table(groups)), tuning_table(tuning, self.cost_name), "tuning")

    def main(self, data: str, out: Path, words_of: Callable[[Trial], list[str]]) -> None:
        """Go through the study two runs at a time, a core each, and write what came out.

        Args:
            data: what identifies the data.
            out: where the runs go.
            words_of: trial -> what follows `largebatch train`.
        """
        ledger = self.open_ledger(data)
        with two_cores() as train:
            self.run(ledger, lambda trial: train(words_of(trial), out / trial.name))
        page = self.folder / "README.md"
        page.write_text(self.filled(page.read_text(encoding="utf-8"), ledger), encoding="utf-8")


def label(optimizer: str, batch: int) -> str:
    """Return what the tables call a cell."""
    return f"{optimizer}, batch {batch}"


def best_rate(tuning: Tuning) -> float:
    """Return the rate of the least cost."""
    return min(tuning, key=lambda rate: tuning[rate])


def further_rates(first: tuple[float, ...], tuning: Tuning) -> list[float]:
    """Return the rates to try next: the first ones, then one beyond a best at the edge; none once it lies inside."""
    missing = [rate for rate in first if rate not in tuning]
    if missing:
        return missing
    best = best_rate(tuning)
    return [rate for edge, rate in ((min(tuning), best / 2), (max(tuning), 2 * best)) if best == edge]


def tuning_table(tuning: dict[str, Tuning], cost: str) -> str:
    """Return a table in Markdown: a row for each cell, with the cost of each rate."""
    lines = [f"| | rate: {cost} |", "| --- | --- |"]
    for name, found in tuning.items():
        best = best_rate(found)
        cells = (
            f"**{rate:g}: {value:.2f}**" if rate == best else f"{rate:g}: {value:.2f}" for rate, value in found.items()
        )
        lines.append(f"| {name} | {', '.join(cells)} |")
    return "\n".join(lines)
