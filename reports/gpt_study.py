"""GPT at batch 32 and 512 with LAMB and AdamW: the rate of each of the four is tuned, then three seeds of the best.

    python reports/gpt_study.py CORPUS OUT

CORPUS is what `largebatch prepare --tokenizer bpe` wrote, OUT is where the runs go. Two runs at a time, a core each.
What each came to goes into reports/gpt/trials.json at once and is not run again, so that the study can be stopped and
goes on, on another machine too. At the end reports/gpt/README.md has the tables.

Tuning: three rates in steps of two; then, as long as the best is the lowest or the highest tried, the next beyond it.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect import insert, table
from largebatch.text.shards import read_manifest
from trials import Ledger, two_cores

BATCHES = (32, 512)
FIRST_RATES_AT_32 = {"lamb": (0.008, 0.016, 0.032), "adamw": (0.001, 0.002, 0.004)}
CELLS = tuple((optimizer, batch) for batch in BATCHES for optimizer in FIRST_RATES_AT_32)
SEEDS = (0, 1, 2)
SIZES = ("--hidden-size", "128", "--layers", "2", "--attention-heads", "2", "--sequence-length", "64")
REPORT = Path(__file__).parent / "gpt"

Tuning = dict[float, float]
"""Rate at batch 32 -> perplexity with seed 0, infinite where it diverged."""


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

    def words(self, corpus: Path) -> list[str]:
        """Return what follows `largebatch train`."""
        words = ["gpt-mini", *SIZES, "--corpus", str(corpus), "--optimizer", self.optimizer]
        return [*words, "--batch", str(self.batch), "--lr-at-32", f"{self.rate:g}", "--seed", str(self.seed)]


def open_ledger(corpus: str) -> Ledger[Trial]:
    """Return the ledger of the trials on a corpus, whose text has that SHA-256."""
    return Ledger.open(REPORT / "trials.json", corpus, Trial)


def perplexity(ledger: Ledger[Trial], trial: Trial) -> float:
    """Return that of the held-out text at the end, infinite for a run that diverged."""
    return ledger.score(trial, "perplexity", math.inf)


def tuning_of(ledger: Ledger[Trial], optimizer: str, batch: int) -> Tuning:
    """Return what seed 0 came to, by ascending rate."""
    return {
        trial.rate: perplexity(ledger, trial)
        for trial in sorted(ledger.records)
        if (trial.optimizer, trial.batch, trial.seed) == (optimizer, batch, SEEDS[0])
    }


def label(optimizer: str, batch: int) -> str:
    """Return what the tables call one of the four."""
    return f"{optimizer}, batch {batch}"


def best_rate(tuning: Tuning) -> float:
    """Return the rate of the least perplexity."""
    return min(tuning, key=lambda rate: tuning[rate])


def further_rates(first: tuple[float, ...], tuning: Tuning) -> list[float]:
    """Return the rates to try next: the first ones, then one beyond a best at the edge; none once it lies inside."""
    missing = [rate for rate in first if rate not in tuning]
    if missing:
        return missing
    best = best_rate(tuning)
    return [rate for edge, rate in ((min(tuning), best / 2), (max(tuning), 2 * best)) if best == edge]


def study(ledger: Ledger[Trial], run: Callable[[Trial], dict[str, Any]]) -> None:
    """Tune each of the four, then repeat the best of each with further seeds."""
    while further := [
        Trial(optimizer, batch, rate)
        for optimizer, batch in CELLS
        for rate in further_rates(FIRST_RATES_AT_32[optimizer], tuning_of(ledger, optimizer, batch))
    ]:
        ledger.run_all(further, run)
    ledger.run_all([trial for trials in best_trials(ledger).values() for trial in trials], run)


def best_trials(ledger: Ledger[Trial]) -> dict[str, list[Trial]]:
    """Return label -> the trials of each seed at the best rate."""
    return {
        label(optimizer, batch): [
            Trial(optimizer, batch, best_rate(tuning_of(ledger, optimizer, batch)), seed) for seed in SEEDS
        ]
        for optimizer, batch in CELLS
    }


def tuning_table(tuning: dict[str, Tuning]) -> str:
    """Return a table in Markdown: a row for each of the four, with the perplexity at each rate."""
    lines = ["| | rate at batch 32: perplexity |", "| --- | --- |"]
    for name, found in tuning.items():
        best = best_rate(found)
        cells = (
            f"**{rate:g}: {value:.2f}**" if rate == best else f"{rate:g}: {value:.2f}" for rate, value in found.items()
        )
        lines.append(f"| {name} | {', '.join(cells)} |")
    return "\n".join(lines)


def filled(page: str, ledger: Ledger[Trial]) -> str:
    """Return the page with both tables of a study that has come to its end."""
    groups = {name: [ledger.records[trial] for trial in trials] for name, trials in best_trials(ledger).items()}
    tuning = {label(*cell): tuning_of(ledger, *cell) for cell in CELLS}
    return insert(insert(page, table(groups)), tuning_table(tuning), "tuning")


def main(corpus: Path, out: Path) -> None:
    """Go through the study, and write what came out."""
    ledger = open_ledger(read_manifest(corpus)["input"]["sha256"])
    with two_cores() as train:
        study(ledger, lambda trial: train(trial.words(corpus), out / trial.name))
    page = REPORT / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), ledger), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
