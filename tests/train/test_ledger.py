"""The ledger: exact numbers, torn last lines, and cutting back to a checkpoint."""

import json
from pathlib import Path

import pytest

from largebatch.errors import InputError
from largebatch.train.ledger import Ledger, read_ledger


def test_numbers_come_back_to_the_bit(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, 0.1 + 0.2, -7.0]
    ledger = Ledger(tmp_path / "metrics.jsonl")
    for value in values:
        ledger.write("train", loss=value)
    ledger.close()
    assert [line["loss"] for line in read_ledger(tmp_path / "metrics.jsonl")] == values


def test_what_json_does_not_know_becomes_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    ledger.write("train", loss=float("nan"), losses={"a": float("inf")})
    ledger.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"kind": "train", "loss": None, "losses": {"a": None}}


def test_a_torn_last_line_is_ignored_and_a_torn_inner_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert [line["step"] for line in read_ledger(path)] == [1]
    path.write_text('{"kind": "tra\n{"kind": "train", "step": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        list(read_ledger(path))


def test_a_resume_keeps_what_the_checkpoint_knew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    ledger = Ledger(path)
    ledger.write("train", step=1)
    kept = ledger.sync()
    ledger.write("train", step=2)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"torn')
    resumed = Ledger(path, keep_bytes=kept)
    resumed.write("train", step=2, again=True)
    resumed.close()
    assert [line["step"] for line in read_ledger(path)] == [1, 2]
    assert not (tmp_path / "metrics.jsonl.partial").exists()


@pytest.mark.parametrize("keep", [5, 10_000])
def test_a_ledger_that_was_changed_is_refused_and_left_alone(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(InputError, match="was changed"):
        Ledger(path, keep_bytes=keep)
    assert path.read_text() == '{"kind": "train", "step": 1}\n'
