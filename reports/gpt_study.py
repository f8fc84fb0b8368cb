"""GPT at batch 32 and 512 with LAMB and AdamW: the rate of each of the four is tuned, then three seeds of the best.

    python reports/gpt_study.py CORPUS OUT

CORPUS is what `largebatch prepare --tokenizer bpe` wrote, OUT is where the runs go. Two runs at a time, a core each.
What each came to goes into reports/gpt/trials.json at once and is not run again, so that the study can be stopped and
goes on, on another machine too. At the end reports/gpt/README.md has the tables.

Tuning: three rates in steps of two; then, as long as the best is the lowest or the highest tried, the next beyond it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from collect import insert, read_run, table
from largebatch.aside import write_aside
from largebatch.text.shards import read_manifest
from largebatch.whole_way import is_finished

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

    def run(self, corpus: Path, folder: Path) -> dict[str, Any]:
        """Train to the end, unless that was done before, and return the run's record, or that it diverged.

        Raises:
            RuntimeError: any other error.
        """
        if not is_finished(folder):
            words = [sys.executable, "-m", "largebatch", "train", "gpt-mini", *SIZES, "--corpus", str(corpus)]
            words += ["--optimizer", self.optimizer, "--batch", str(self.batch), "--lr-at-32", f"{self.rate:g}"]
            words += ["--seed", str(self.seed), "--keep-checkpoints", "1", "--out", str(folder)]
            if (folder / "run.json").is_file():
                words.append("--resume")
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode and "not finite" in done.stdout:
                return {"diverged": True}
            if done.returncode:
                raise RuntimeError(done.stdout)
        return read_run(folder)


@dataclass
class Ledger:
    """What each trial came to, in a file that is complete after every trial."""

    path: Path
    corpus: str
    """SHA-256 of the text: trials on another are refused."""
    records: dict[Trial, dict[str, Any]]
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, path: Path, corpus: str) -> "Ledger":
        """Read it, or begin an empty one; raises ValueError for one of another text."""
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"corpus": corpus, "trials": []}
        if held["corpus"] != corpus:
            raise ValueError(f"{path} holds trials on the text {held['corpus']}, the corpus given is made of {corpus}")
        return cls(path, corpus, {Trial(**held["trial"]): held["run"] for held in held["trials"]})

    def add(self, trial: Trial, record: dict[str, Any]) -> None:
        """Write a trial down."""
        with self.lock:
            self.records[trial] = record
            trials = [{"trial": asdict(trial), "run": self.records[trial]} for trial in sorted(self.records)]
            write_aside(self.path, json.dumps({"corpus": self.corpus, "trials": trials}, indent=1) + "\n")
        print(f"{trial.name}: {self.perplexity(trial):.2f}", flush=True)

    def perplexity(self, trial: Trial) -> float:
        """Return that of the held-out text at the end, infinite for a run that diverged."""
        record = self.records[trial]
        return float("inf") if "diverged" in record else record["scores"]["perplexity"]

    def tuning(self, optimizer: str, batch: int) -> Tuning:
        """Return what seed 0 came to, by ascending rate."""
        return {
            trial.rate: self.perplexity(trial)
            for trial in sorted(self.records)
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


def run_all(trials: list[Trial], ledger: Ledger, run: Callable[[Trial], dict[str, Any]]) -> None:
    """Run those that the ledger lacks, two at a time."""
    missing = [trial for trial in trials if trial not in ledger.records]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda trial: ledger.add(trial, run(trial)), missing))


def study(ledger: Ledger, run: Callable[[Trial], dict[str, Any]]) -> None:
    """Tune each of the four, then repeat the best of each with further seeds."""
    while further := [
        Trial(optimizer, batch, rate)
        for optimizer, batch in CELLS
        for rate in further_rates(FIRST_RATES_AT_32[optimizer], ledger.tuning(optimizer, batch))
    ]:
        run_all(further, ledger, run)
    run_all([trial for trials in best_trials(ledger).values() for trial in trials], ledger, run)


def best_trials(ledger: Ledger) -> dict[str, list[Trial]]:
    """Return label -> the trials of each seed at the best rate."""
    return {
        label(optimizer, batch): [
            Trial(optimizer, batch, best_rate(ledger.tuning(optimizer, batch)), seed) for seed in SEEDS
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


def filled(page: str, ledger: Ledger) -> str:
    """Return the page with both tables of a study that has come to its end."""
    groups = {name: [ledger.records[trial] for trial in trials] for name, trials in best_trials(ledger).items()}
    tuning = {label(*cell): ledger.tuning(*cell) for cell in CELLS}
    return insert(insert(page, table(groups)), tuning_table(tuning), "tuning")


def main(corpus: Path, out: Path) -> None:
    """Go through the study, and write what came out."""
    ledger = Ledger.open(REPORT / "trials.json", read_manifest(corpus)["input"]["sha256"])
    study(ledger, lambda trial: trial.run(corpus, out / trial.name))
    page = REPORT / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), ledger), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
