"""Reading a run folder: columns, gaps, torn and damaged lines, refusals in one sentence."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_run import LAYERS, NOT_ADAPTED, make_lines, make_record, write_run

from largebatch.errors import InputError
from largebatch.report.run_folder import RunFolder

RECORD = make_record()
LINES = make_lines(RECORD)


def test_everything_is_read(tmp_path: Path) -> None:
    run = RunFolder.read(write_run(tmp_path, RECORD, LINES))
    trains = [line for line in LINES if line["kind"] == "train"]
    assert run.train.step.tolist() == list(range(1, 301))
    assert run.train.samples.tolist() == [line["samples"] for line in trains]
    assert run.train.lr.tolist() == [line["lr"] for line in trains]  # to the bit
    assert run.train.losses["nsp"].tolist() == [line["losses"]["nsp"] for line in trains]
    assert math.isnan(run.train.loss[56])
    assert math.isnan(run.train.losses["mlm"][56])
    assert int(np.isfinite(run.train.loss).sum()) == 299
    assert [(stage.name, stage.first_step, stage.last_step) for stage in run.stages] == [
        ("length-64", 0, 270),
        ("length-128", 270, 300),
    ]
    assert run.stages[1].last_samples == 270 * 256 + 30 * 128
    assert [evaluation.step for evaluation in run.evaluations] == [50, 100, 150, 200, 250, 270, 300]
    assert run.layers.names == (*LAYERS, *NOT_ADAPTED)
    assert run.layers.ratios.shape == (len(LAYERS) + 2, 30)
    assert np.isnan(run.layers.ratios[-2:]).all()
    assert run.moments == {"length-64": "reset", "length-128": "kept"}
    assert run.skips == ((57, "loss mlm"),)
    assert (run.steps_taken, run.planned_steps) == (300, 300)


def test_samples_are_known_at_every_step(tmp_path: Path) -> None:
    run = RunFolder.read(write_run(tmp_path, RECORD, LINES))
    assert run.samples_at(run.train.step).tolist() == run.train.samples.tolist()
    assert run.samples_at(np.array([0.0, 270.0, 271.0])).tolist() == [0, 69_120, 69_248]


@pytest.mark.parametrize("tail", ['{"kind": "train", "step": 301', "\x00\x00", '{"kind": "eval"}'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    whole = RunFolder.read(write_run(tmp_path / "whole", RECORD, LINES))
    torn = RunFolder.read(write_run(tmp_path / "torn", RECORD, LINES, tail))
    assert torn.steps_taken == whole.steps_taken == 300
    assert len(torn.evaluations) == len(whole.evaluations)


def test_terms_and_layers_may_come_and_go(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 1, "losses": {"a": 1.0}},
        {"kind": "train", "step": 2, "losses": {"b": 2.0}},
        {"kind": "train", "step": 3},
        {"kind": "layers", "step": 1, "ratios": {"x": 1.0}},
        {"kind": "layers", "step": 2, "ratios": {"y": 2.0, "x": None}},
        {"kind": "something new", "step": 2},
    ]
    run = RunFolder.read(write_run(tmp_path, RECORD, lines))
    nan = math.nan
    assert run.train.losses["a"].tolist() == pytest.approx([1.0, nan, nan], nan_ok=True)
    assert run.train.losses["b"].tolist() == pytest.approx([nan, 2.0, nan], nan_ok=True)
    assert run.layers.ratios.tolist() == [
        pytest.approx([1.0, nan], nan_ok=True),
        pytest.approx([nan, 2.0], nan_ok=True),
    ]


def test_a_run_without_steps(tmp_path: Path) -> None:
    run = RunFolder.read(write_run(tmp_path, RECORD, []))
    assert (run.steps_taken, len(run.train), run.evaluations, run.layers.names) == (0, 0, (), ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "line 2: no JSON object stands there"),
        ("[1, 2]", "line 2: no JSON object stands there"),
        ('{"kind": "train"}', "line 2: a field is missing or ill-typed"),
        ('{"kind": "train", "step": 2, "loss": "high"}', "line 2: a field is missing or ill-typed"),
        ('{"kind": "train", "step": 2, "losses": [1]}', "line 2: a field is missing or ill-typed"),
        ('{"kind": "layers", "step": 2}', "line 2: a field is missing or ill-typed"),
        ('{"kind": "eval", "step": 2, "metrics": {"a": "b"}}', "line 2: a field is missing or ill-typed"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_run(tmp_path, RECORD, [LINES[0]], f"{line}\n{json.dumps(LINES[1])}\n")
    with pytest.raises(InputError, match=message):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"run.json is damaged or missing"),
        ("\udcff", r"run.json is damaged or missing"),
        ("[]", "is no record of a run in format version 1"),
        ('{"format_version": 2}', "is no record of a run in format version 1"),
        ('{"format_version": 1}', "is damaged: it names no stages"),
        ('{"format_version": 1, "run": {"stages": []}}', "is damaged: it names no stages"),
        ('{"format_version": 1, "run": {"stages": [{"name": "a"}]}}', "is damaged: it names no stages"),
        (
            '{"format_version": 1, "run": {"stages": [{"name": "a", "steps": 0, "global_batch_samples": 1}]}}',
            "is damaged: it names no stages",
        ),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_run(tmp_path, RECORD, LINES)
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        RunFolder.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is no folder, a run folder with run\.json"):
        RunFolder.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no run\.json"):
        RunFolder.read(tmp_path)
    write_run(tmp_path, RECORD, LINES)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"holds no metrics\.jsonl"):
        RunFolder.read(tmp_path)
