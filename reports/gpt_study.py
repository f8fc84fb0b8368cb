"""GPT at batch 32 and 512 with LAMB and AdamW: five rates for each of the four, then three seeds of the best.

    python reports/gpt_study.py CORPUS OUT

CORPUS is what `largebatch prepare --tokenizer bpe` wrote, OUT is where the runs go. Two runs at a time, a core each. A
run that is done is passed over, one that was stopped goes on. At the end reports/gpt/ has the results, and its
README.md the tables.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect import insert, read_run, table
from largebatch.whole_way import is_finished

BATCHES = (32, 512)
RATES_AT_32 = {"lamb": (0.001, 0.002, 0.004, 0.008, 0.016), "adamw": (0.0005, 0.001, 0.002, 0.004, 0.008)}
CELLS = tuple((optimizer, batch) for batch in BATCHES for optimizer in RATES_AT_32)
SEEDS = (0, 1, 2)
SIZES = ("--hidden-size", "128", "--layers", "2", "--attention-heads", "2", "--sequence-length", "64")
REPORT = Path(__file__).parent / "gpt"


@dataclass(frozen=True)
class Trial:
    """One run."""

    optimizer: str
    batch: int
    rate: float
    seed: int = 0

    def folder(self, out: Path) -> Path:
        """Return where the run lies."""
        return out / f"{self.optimizer}-{self.batch}-{self.rate:g}-{self.seed}"

    def run(self, corpus: Path, out: Path) -> None:
        """Train to the end, unless that was done before; a run that diverges is an outcome, any other error raises."""
        folder = self.folder(out)
        if is_finished(folder):
            return
        words = [sys.executable, "-m", "largebatch", "train", "gpt-mini", *SIZES, "--corpus", str(corpus)]
        words += ["--optimizer", self.optimizer, "--batch", str(self.batch), "--lr-at-32", f"{self.rate:g}"]
        words += ["--seed", str(self.seed), "--keep-checkpoints", "1", "--out", str(folder)]
        if (folder / "run.json").is_file():
            words.append("--resume")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode and "not finite" not in done.stdout:
            raise RuntimeError(done.stdout)
        print(f"{folder.name}: {self.perplexity(out):.2f}", flush=True)

    def perplexity(self, out: Path) -> float:
        """Return that of the held-out text at the end, infinite for a run that diverged."""
        try:
            return read_run(self.folder(out))["scores"]["perplexity"]
        except ValueError:
            return float("inf")


def run_all(trials: list[Trial], corpus: Path, out: Path) -> None:
    """Run two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda trial: trial.run(corpus, out), trials))


def tuning_table(tuning: dict[str, dict[str, float]]) -> str:
    """Return a table in Markdown: a row for each of the four, with the perplexity at each rate."""
    lines = ["| | rate at batch 32: perplexity |", "| --- | --- |"]
    for label, found in tuning.items():
        best = min(found, key=lambda rate: found[rate])
        cells = (
            f"**{rate}: {value:.2f}**" if rate == best else f"{rate}: {value:.2f}" for rate, value in found.items()
        )
        lines.append(f"| {label} | {', '.join(cells)} |")
    return "\n".join(lines)


def main(corpus: Path, out: Path) -> None:
    """Tune, repeat the best with further seeds, and write what came out."""
    run_all([Trial(*cell, rate) for cell in CELLS for rate in RATES_AT_32[cell[0]]], corpus, out)
    tuning: dict[str, dict[str, float]] = {}
    best: dict[str, list[Trial]] = {}
    for optimizer, batch in CELLS:
        found = {rate: Trial(optimizer, batch, rate).perplexity(out) for rate in RATES_AT_32[optimizer]}
        label = f"{optimizer}, batch {batch}"
        tuning[label] = {f"{rate:g}": value for rate, value in found.items()}
        rate = min(found, key=lambda rate: found[rate])
        best[label] = [Trial(optimizer, batch, rate, seed) for seed in SEEDS]
    run_all([trial for trials in best.values() for trial in trials], corpus, out)
    groups: dict[str, list[dict[str, Any]]] = {
        label: [read_run(trial.folder(out)) for trial in trials] for label, trials in best.items()
    }
    for name, held in (("results", groups), ("tuning", tuning)):
        (REPORT / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    page = REPORT / "README.md"
    text = insert(page.read_text(encoding="utf-8"), table(groups))
    page.write_text(insert(text, tuning_table(tuning), "tuning"), encoding="utf-8")
    print(table(groups), tuning_table(tuning), sep="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
