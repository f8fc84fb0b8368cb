"""Six optimizers with the whole set as one batch, 35 steps: each tuned by the same 8 trials, then 5 seeds of its best.

    python reports/image_study.py digits OUT
    python reports/image_study.py mnist OUT DATA

DATA is a folder with MNIST's four files, OUT is where the runs go. Two runs at a time, a core each. What each came to
goes into reports/NAME/trials.json at once and is not run again, so that the study can be stopped and goes on, on
another machine too. At the end reports/NAME/README.md has the tables.

The space, the same for all, and in it the same points, the first 8 of a scrambled sequence of Sobol':

    lr             0.001 to 1, evenly in its logarithm
    weight_decay   0.00001 to 0.1, the same
    warmup_share   0 to 0.4 of the steps

The best of an optimizer is the point with the highest accuracy on the test images, with seed 0; its seeds are 1 to 5,
so that the luck of the choice is not in them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect import accuracy_in_percent, insert, table
from largebatch.study.evidence import Scores, compare_with
from largebatch.vision.images import open_images
from trials import Ledger, two_cores

OPTIMIZERS = ("momentum", "lars", "lamb", "adam", "adamw", "adagrad")
STEPS = 35
SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Point:
    """One of the space."""

    lr: float
    weight_decay: float
    warmup_share: float

    def __str__(self) -> str:
        """As the tables show it."""
        return f"lr {self.lr:.2g}, decay {self.weight_decay:.2g}, warm-up {self.warmup_share:.2f}"


POINTS = (
    Point(0.356, 0.0531, 0.145),
    Point(0.00146, 0.000419, 0.356),
    Point(0.0101, 0.00277, 0.00158),
    Point(0.0332, 2.21e-05, 0.297),
    Point(0.147, 0.00949, 0.317),
    Point(0.0191, 7.28e-05, 0.184),
    Point(0.0042, 0.0158, 0.236),
    Point(0.438, 0.00012, 0.0629),
)
"""Of `scipy.stats.qmc.Sobol(3, seed=0)` of SciPy 1.17, to three digits."""


@dataclass(frozen=True, order=True)
class Trial:
    """One run."""

    optimizer: str
    point: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"{self.optimizer}-{self.point}-{self.seed}"


def words_of(study: str, data: str, trial: Trial) -> list[str]:
    """Return what follows `largebatch train`."""
    point = POINTS[trial.point]
    words = [study] if study == "digits" else [study, "--data", data]
    batch = len(open_images(data).training)
    words += ["--optimizer", trial.optimizer, "--batch", str(batch), "--epochs", str(STEPS), "--microbatch", "256"]
    words += ["--lr", f"{point.lr:g}", "--weight-decay", f"{point.weight_decay:g}"]
    return [*words, "--warmup-share", f"{point.warmup_share:g}", "--seed", str(trial.seed)]


def accuracy(ledger: Ledger[Trial], trial: Trial) -> float:
    """Return the share of test images that are right at the end, 0 for a run that diverged."""
    return ledger.score(trial, "top1_accuracy", 0.0)


def best_point(ledger: Ledger[Trial], optimizer: str) -> int:
    """Return the point of the highest accuracy, the first of several."""
    return max(range(len(POINTS)), key=lambda point: accuracy(ledger, Trial(optimizer, point)))


def best_trials(ledger: Ledger[Trial]) -> dict[str, list[Trial]]:
    """Return optimizer -> the trials of each seed at its best point."""
    return {name: [Trial(name, best_point(ledger, name), seed) for seed in SEEDS] for name in OPTIMIZERS}


def study(ledger: Ledger[Trial], run: Callable[[Trial], dict[str, Any]]) -> None:
    """Tune each optimizer, then repeat the best of each with further seeds."""
    ledger.run_all([Trial(name, point) for point in range(len(POINTS)) for name in OPTIMIZERS], run)
    ledger.run_all([trial for trials in best_trials(ledger).values() for trial in trials], run)


def tuning_table(ledger: Ledger[Trial]) -> str:
    """Return a table in Markdown: a row for each point, with the accuracy of each optimizer there in percent."""
    lines = [" | ".join(["| point", *OPTIMIZERS]) + " |", "| --- " * (len(OPTIMIZERS) + 1) + "|"]
    for number, point in enumerate(POINTS):
        cells = [f"| {point}"]
        for name in OPTIMIZERS:
            trial = Trial(name, number)
            shown = "diverged" if "diverged" in ledger.records[trial] else f"{100 * accuracy(ledger, trial):.2f}"
            cells.append(f"**{shown}**" if best_point(ledger, name) == number else shown)
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(record: dict[str, Any]) -> float | None:
    return None if "diverged" in record else accuracy_in_percent(record)["scores"]["accuracy"]


def verdicts(ledger: Ledger[Trial]) -> str:
    """Return a list in Markdown: what the seeds support of LAMB beside each other optimizer."""
    of = {
        name: Scores(name, tuple(_percent(ledger.records[trial]) for trial in trials), unit=" %")
        for name, trials in best_trials(ledger).items()
    }
    found = compare_with(of.pop("lamb"), list(of.values()))
    return "\n".join(f"- {verdict}" for verdict in found.values())


def filled(page: str, ledger: Ledger[Trial]) -> str:
    """Return the page with the tables and verdicts of a study that has come to its end."""
    groups = {
        f"{name} ({POINTS[trials[0].point]})": [accuracy_in_percent(ledger.records[trial]) for trial in trials]
        for name, trials in best_trials(ledger).items()
    }
    page = insert(insert(page, table(groups)), verdicts(ledger), "verdicts")
    return insert(page, tuning_table(ledger), "tuning")


def open_ledger(folder: Path, data: str) -> Ledger[Trial]:
    """Return the ledger of a study's folder, whose images have that fingerprint."""
    return Ledger.open(folder / "trials.json", data, Trial)


def main(name: str, out: Path, data: str) -> None:
    """Go through the study, and write what came out."""
    folder = Path(__file__).parent / name
    ledger = open_ledger(folder, open_images(data).training.fingerprint())
    with two_cores() as train:
        study(ledger, lambda trial: train(words_of(name, data, trial), out / trial.name))
    page = folder / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), ledger), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "digits")
