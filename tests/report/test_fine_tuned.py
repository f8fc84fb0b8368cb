"""SQuAD's scores after a pre-training: each seed, mean and spread, and the published row of that very run."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from made_run import make_lines, make_record, write_run

from largebatch.errors import InputError
from largebatch.report.fine_tuned import FineTuned
from largebatch.report.run_folder import RunFolder
from largebatch.report.run_page import write_report
from largebatch.report.summary import terminal_lines


def _fine_tuning(folder: Path, seed: int, f1: float, *, steps: int = 12, taken: int = 12) -> None:
    stage = {"name": "squad", "global_batch_samples": 8, "steps": steps, "peak_lr": 1e-4, "schedule": {}}
    record = make_record()
    record["run"] |= {"task": {"train": "squad/train.json"}, "stages": [stage], "seed": seed}
    fields = {"stage": "squad", "loss": 1.0, "tokens": 9, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.1, "skipped": 0}
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "samples": 8 * step, "losses": {"span": 1.0}, "samples_per_second": 80} | fields
        for step in range(1, taken + 1)
    ]
    metrics = {"exact_match": f1 - 10, "f1": f1}
    lines.append(
        {"kind": "eval", "step": taken, "samples": 8 * taken, "stage": "squad", "loss": 1.2, "metrics": metrics}
    )
    write_run(folder / "squad" / f"seed-{seed}", record, lines)


def _pretraining(folder: Path, batches: tuple[int, int] = (256, 128), **task: int) -> RunFolder:
    record = make_record()
    record["run"]["task"] |= task
    for stage, batch in zip(record["run"]["stages"], batches, strict=True):
        stage["global_batch_samples"] = batch
    return RunFolder.read(write_run(folder, record, make_lines(record)))


def test_mean_and_spread_over_the_seeds_that_have_ended(tmp_path: Path) -> None:
    run = _pretraining(tmp_path)
    scores = {0: 50.0, 2: 53.0, 10: 55.5}
    for seed, f1 in scores.items():
        _fine_tuning(tmp_path, seed, f1)
    _fine_tuning(tmp_path, 11, 90.0, taken=5)
    (tmp_path / "squad" / "seed-12").mkdir()
    found = FineTuned.read(run)
    assert found is not None
    assert [(one.seed, one.f1, one.exact_match) for one in found.runs] == [(s, f, f - 10) for s, f in scores.items()]
    assert found.unfinished == 2
    mean, spread = statistics.mean(scores.values()), statistics.stdev(scores.values())
    sentence = found.sentence()
    assert f"3 seeds: F1 {mean:.2f} (standard deviation {spread:.2f})" in sentence
    assert "2 seeds more have not come to an end" in sentence
    rows = {row[0]: row[1:] for row in found.table().rows}
    assert rows["seed 10"] == ("45.500", "55.500")
    assert rows["mean"] == (f"{mean - 10:.3f}", f"{mean:.3f}")
    assert rows["standard deviation"] == (f"{spread:.3f}", f"{spread:.3f}")
    assert "published" not in rows, "a small model has no published score"


@pytest.mark.parametrize(
    ("batches", "f1"),
    [((512, 512), 91.752), ((32_768, 32_768), 91.475), ((65_536, 32_768), 90.584), ((256, 128), None)],
)
def test_the_published_score_is_that_of_these_batches(
    tmp_path: Path, batches: tuple[int, int], f1: float | None
) -> None:
    run = _pretraining(tmp_path, batches, layers=24, hidden_size=1024)
    _fine_tuning(tmp_path, 0, 91.0)
    found = FineTuned.read(run)
    assert found is not None
    assert (found.published.value if found.published else None) == f1
    assert (f"Published for this batch: F1 {f1}" in found.sentence()) == (f1 is not None)
    assert "standard deviation" not in found.sentence(), "one seed has no spread"
    base = FineTuned.read(_pretraining(tmp_path, batches, layers=12, hidden_size=768))
    assert base is not None
    assert base.published is None


def test_the_page_shows_them(tmp_path: Path) -> None:
    _pretraining(tmp_path)
    assert 'id="fine-tuned"' not in write_report(tmp_path).read_text(encoding="utf-8")
    for seed in range(3):
        _fine_tuning(tmp_path, seed, 60.0 + seed)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'id="fine-tuned"' in page
    assert "F1 61.00 (standard deviation 1.00)" in page
    own = write_report(tmp_path / "squad" / "seed-1").read_text(encoding="utf-8")
    assert "Answers to held-out questions" in own
    assert "A BERT" in own
    lines = terminal_lines(RunFolder.read(tmp_path / "squad" / "seed-1"))
    assert lines[-1] == "SQuAD: exact match 51.00, F1 61.00"


def test_a_damaged_fine_tuning_is_named(tmp_path: Path) -> None:
    run = _pretraining(tmp_path)
    _fine_tuning(tmp_path, 0, 60.0)
    path = tmp_path / "squad" / "seed-0" / "metrics.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"f1"', '"f2"'), encoding="utf-8")
    with pytest.raises(InputError, match="seed-0 holds no fine-tuning on SQuAD"):
        FineTuned.read(run)
    (path.parent / "run.json").write_text(json.dumps({"format_version": 99}), encoding="utf-8")
    with pytest.raises(InputError, match="format version"):
        FineTuned.read(run)
