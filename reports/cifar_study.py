"""A small ResNet-9 on CIFAR-10 for four epochs at two batches, the rate of each optimizer tuned: see rate_study.py.

    python reports/cifar_study.py DATA OUT

DATA is what README.md beside the ledger names, OUT is where the runs go. The budget is what a CPU can do: an
eighth of the network's width, a sixth of its epochs.
"""

import sys
from pathlib import Path

from collect import accuracy_in_percent
from largebatch.scaling import scale_lr
from largebatch.vision.images import open_images
from rate_study import RateStudy, Trial

BUDGET = ("--width", "8", "--epochs", "4", "--evaluate-every-steps", "0")
STUDY = RateStudy(
    name="cifar10",
    batches=(512, 4096),
    first_rates={
        "lamb": (0.01, 0.02, 0.04),
        "lars": (0.02, 0.04, 0.08),
        "momentum": (0.2, 0.4, 0.8),
        "adamw": (0.004, 0.008, 0.016),
    },
    cost=lambda scores: 100 * (1 - scores["top1_accuracy"]),
    cost_name="errors in percent",
    shown=accuracy_in_percent,
)


def words_of(trial: Trial, data: str) -> list[str]:
    """Return what follows `largebatch train`."""
    rate = scale_lr(trial.rate, STUDY.batches[0], trial.batch)
    words = ["cifar10", "--data", data, *BUDGET, "--optimizer", trial.optimizer, "--batch", str(trial.batch)]
    return [*words, "--lr", f"{rate:g}", "--seed", str(trial.seed)]


def main(data: str, out: Path) -> None:
    """Go through the study, and write what came out."""
    STUDY.main(open_images(data).training.fingerprint(), out, lambda trial: words_of(trial, data))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
