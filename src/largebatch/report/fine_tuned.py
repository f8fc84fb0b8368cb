"""What came of a pre-training once it was fine-tuned: SQuAD's scores over seeds, beside the published ones."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from largebatch.errors import InputError
from largebatch.report import wording
from largebatch.report.charts import Table
from largebatch.report.run_folder import RunFolder
from largebatch.scaling import BERT_SQUAD_F1, Figure

_LARGE = {"layers": 24, "hidden_size": 1024}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One fine-tuning that came to its end."""

    seed: int
    exact_match: float
    """Percent."""
    f1: float
    """Percent."""


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """All fine-tunings of a pre-training."""

    runs: tuple[FineTuning, ...]
    unfinished: int
    """How many have begun and not ended."""
    published: Figure[float] | None
    """F1 of the same batch in the paper, where the model is BERT-Large."""

    @classmethod
    def read(cls, run: RunFolder) -> "FineTuned | None":
        """Return what lies below the folder of a pre-training; None if nothing does.

        Raises:
            InputError: a run there is damaged.
        """
        finished, unfinished = [], 0
        for folder in sorted((run.folder / "squad").glob("seed-*"), key=_number):
            found = _read(folder)
            if found is None:
                unfinished += 1
            else:
                finished.append(found)
        if not finished and not unfinished:
            return None
        return cls(runs=tuple(finished), unfinished=unfinished, published=_published(run))

    def sentence(self) -> str:
        """Say what came out, with the number of seeds and the spread."""
        if not self.runs:
            return "Fine-tuning on SQuAD has begun; no seed has come to its end."
        f1, exact = ([getattr(run, name) for run in self.runs] for name in ("f1", "exact_match"))
        text = (
            f"Fine-tuned on SQuAD with {wording.plural(len(f1), 'seed')}: F1 {_mean(f1)}, exact match {_mean(exact)}, "
            "in percent of the dev questions."
        )
        if self.unfinished:
            text += f" {wording.plural(self.unfinished, 'seed more has', 'seeds more have')} not come to an end."
        if self.published is not None:
            text += f" Published for this batch: F1 {self.published.value:.3f} ({self.published.source})."
        return text

    def table(self) -> Table:
        """Return the scores of each seed, their mean and spread, and the published one."""
        rows = [(f"seed {run.seed}", f"{run.exact_match:.3f}", f"{run.f1:.3f}") for run in self.runs]
        f1, exact = ([getattr(run, name) for run in self.runs] for name in ("f1", "exact_match"))
        if len(f1) > 1:
            rows.append(("mean", f"{statistics.mean(exact):.3f}", f"{statistics.mean(f1):.3f}"))
            rows.append(("standard deviation", f"{statistics.stdev(exact):.3f}", f"{statistics.stdev(f1):.3f}"))
        if self.published is not None:
            rows.append(("published", "–", f"{self.published.value:.3f}"))
        return Table(header=("fine-tuning", "exact match", "F1"), rows=tuple(rows))


def _number(folder: Path) -> tuple[int, str]:
    digits = folder.name.removeprefix("seed-")
    return (int(digits) if digits.isdecimal() else 1 << 62, folder.name)


def _read(folder: Path) -> FineTuning | None:
    if not (folder / "run.json").is_file() or not (folder / "metrics.jsonl").is_file():
        return None
    run = RunFolder.read(folder)
    if run.last_evaluation is None:
        return None
    metrics, seed = run.last_evaluation.metrics, run.record["run"].get("seed")
    if not isinstance(seed, int) or not {"f1", "exact_match"} <= metrics.keys():
        raise InputError(f"{folder} holds no fine-tuning on SQuAD: its last evaluation has no exact_match and f1")
    return FineTuning(seed=seed, exact_match=metrics["exact_match"], f1=metrics["f1"])


def _published(run: RunFolder) -> Figure[float] | None:
    task = run.record["run"].get("task")
    if not isinstance(task, dict) or any(task.get(name) != size for name, size in _LARGE.items()):
        return None
    return BERT_SQUAD_F1.get(tuple(stage.global_batch_samples for stage in run.stages))  # pyright: ignore[reportArgumentType, reportCallIssue]


def _mean(values: list[float]) -> str:
    """Return a mean with its spread; of one value, the value."""
    if len(values) == 1 or any(map(math.isnan, values)):
        return f"{statistics.mean(values):.2f}"
    return f"{statistics.mean(values):.2f} (standard deviation {statistics.stdev(values):.2f})"
