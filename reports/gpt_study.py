"""GPT at batch 32 and 512 with LAMB and AdamW, the rate of each of the four tuned: see rate_study.py.

    python reports/gpt_study.py CORPUS OUT

CORPUS is what `largebatch prepare --tokenizer bpe` wrote, OUT is where the runs go.
"""

import sys
from pathlib import Path
from typing import Any

from largebatch.text.shards import read_manifest
from rate_study import RateStudy, Trial

SIZES = ("--hidden-size", "128", "--layers", "2", "--attention-heads", "2", "--sequence-length", "64")


def perplexity_last(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the perplexity as the last score, which the table shows of each seed."""
    if "diverged" in record:
        return record
    scores = dict(record["scores"])
    perplexity = scores.pop("perplexity")
    return {**record, "scores": {**scores, "perplexity": perplexity}}


STUDY = RateStudy(
    name="gpt",
    batches=(32, 512),
    first_rates={"lamb": (0.008, 0.016, 0.032), "adamw": (0.001, 0.002, 0.004)},
    cost=lambda scores: scores["perplexity"],
    cost_name="perplexity",
    shown=perplexity_last,
)


def words_of(trial: Trial, corpus: Path) -> list[str]:
    """Return what follows `largebatch train`."""
    words = ["gpt-mini", *SIZES, "--corpus", str(corpus), "--optimizer", trial.optimizer]
    return [*words, "--batch", str(trial.batch), "--lr-at-32", f"{trial.rate:g}", "--seed", str(trial.seed)]


def main(corpus: Path, out: Path) -> None:
    """Go through the study, and write what came out."""
    STUDY.main(read_manifest(corpus)["input"]["sha256"], out, lambda trial: words_of(trial, corpus))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
