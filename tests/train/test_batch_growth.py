"""A batch that grows: the same samples, one schedule over them, the rate with the square root of the batch."""

import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.cli import main
from largebatch.errors import InputError
from largebatch.schedules import Schedule
from largebatch.train.batch_growth import Growth, grown, read_growth, with_noise, written
from largebatch.train.data_order import DataOrder
from largebatch.train.ledger import read_ledger
from largebatch.train.loop import Training
from largebatch.train.run import Stage
from train.test_loop import training
from train.toy import toy

STAGE = Stage(name="all", global_batch_samples=512, steps=400, peak_lr=0.02, schedule=Schedule(warmup_steps=40))


def rates(stages: tuple[Stage, ...]) -> list[tuple[int, int, float]]:
    """Return (samples before, batch, rate) of each step."""
    found, samples = [], 0
    for stage in stages:
        for step in range(stage.steps):
            found.append((samples, stage.global_batch_samples, stage.lr(step)))
            samples += stage.global_batch_samples
    return found


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(warmup_steps=40),
        Schedule(warmup_steps=100, shape="cosine", end_factor=0.1),
        Schedule(warmup_steps=4, shape="step", milestone_steps=(100, 300)),
        Schedule(warmup_steps=40, offset_steps=100, span_steps=700),
        Schedule(shape="constant"),
    ],
    ids=["linear", "cosine", "steps", "part of another", "constant"],
)
@pytest.mark.parametrize("growth", [((64, 0.05), (128, 0.2), (256, 0.5)), ((100, 0.13),)], ids=["doubling", "odd"])
def test_the_rate_is_the_schedules_at_the_same_samples(schedule: Schedule, growth: Growth) -> None:
    whole = replace(STAGE, schedule=schedule)
    found = rates(grown(whole, growth))
    for samples, batch, rate in found:
        wanted = whole.peak_lr * math.sqrt(batch / 512)
        at = samples / 512
        near = [whole.schedule.factor(min(max(round(at + shift), 0), 400), 400) for shift in (-1.5, 0, 1.5)]
        assert min(near) - 0.01 <= rate / wanted <= max(near) + 0.01
    assert found[-1][0] + 512 == pytest.approx(400 * 512, abs=512)


def test_parts_have_their_shares_of_the_samples() -> None:
    parts = grown(STAGE, ((64, 0.05), (128, 0.2), (256, 0.5)))
    assert [part.global_batch_samples for part in parts] == [64, 128, 256, 512]
    samples = [part.steps * part.global_batch_samples / (400 * 512) for part in parts]
    assert samples == pytest.approx([0.05, 0.15, 0.3, 0.5], abs=1e-3)
    assert sum(part.steps for part in parts) > 400
    assert [part.name for part in parts] == ["all-64", "all-128", "all-256", "all-512"]
    assert parts[-1].peak_lr == STAGE.peak_lr
    kept = grown(replace(STAGE, reset_moments=True), ((64, 0.05),))
    assert [part.reset_moments for part in kept] == [True, False]


def indices_read(stages: tuple[Stage, ...], data: int) -> Counter[tuple[int, int]]:
    """Return how often each (epoch, sample) is read, stage after stage."""
    run, found = replace(toy(), stages=stages), Counter[tuple[int, int]]()
    for number, stage in enumerate(stages):
        first, before = run.data_begins(number)
        batch = stage.global_batch_samples
        order = DataOrder(seed=0, stage=first, dataset_samples=data, global_batch_samples=batch, samples_before=before)
        found.update(sample for step in range(stage.steps) for sample in order.first_samples(step, batch))
    return found


def test_parts_read_on_in_one_order_of_the_data() -> None:
    parts = grown(STAGE, ((64, 0.05), (128, 0.2)))
    samples = sum(part.steps * part.global_batch_samples for part in parts)
    found = indices_read(parts, data=3 * samples // 5)
    assert set(found.values()) == {1}, "no sample of an epoch is read twice"
    assert sum(found.values()) == samples
    assert {sample for epoch, sample in found if epoch == 0} == set(range(3 * samples // 5)), "and none left out"
    anew = tuple(replace(part, continues_data=False) for part in parts)
    assert max(indices_read(anew, data=3 * samples // 5).values()) > 1, "an order for each part repeats some"


def test_a_run_reads_on_and_resumes_in_a_middle_part(tmp_path: Path) -> None:
    stage = replace(toy().stages[0], global_batch_samples=16, steps=8)
    task = replace(toy().task, samples=50, log_samples=str(tmp_path / "read"))
    plain = replace(toy(), stages=grown(stage, ((4, 0.25), (8, 0.5))), task=task, keep_checkpoints=9)
    assert [part.steps for part in plain.stages] == [8, 4, 4]
    whole = training(plain, tmp_path / "whole")
    whole.train(resume=False)
    read = [word for line in (tmp_path / "read").read_text().splitlines() for word in line.split()]
    assert len(read) == 128
    assert len(set(read)) == 128, "no sample of an epoch is read twice"
    assert {word for word in read if word.startswith("0:")} == {f"0:{index}" for index in range(50)}

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in (tmp_path / "cut" / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > 9:
            shutil.rmtree(later)
    again = training(plain, tmp_path / "cut")
    again.train(resume=True)
    assert torch.equal(weights(again), weights(whole)), "step 9 is in the part at 8"


def weights(trained: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def test_a_stage_after_a_grown_one_begins_an_order_of_its_own() -> None:
    parts = grown(STAGE, ((64, 0.05),))
    run = replace(
        toy(), stages=(*parts, replace(STAGE, name="second"), *grown(replace(STAGE, name="third"), ((128, 0.5),)))
    )
    assert [run.data_begins(number)[0] for number in range(5)] == [0, 0, 2, 3, 3]
    assert [run.data_begins(number)[1] == 0 for number in range(5)] == [True, False, True, True, False]


def test_the_first_stage_cannot_go_on_in_data() -> None:
    with pytest.raises(InputError, match="goes on in the data of the one before"):
        replace(toy(), stages=(replace(STAGE, continues_data=True),))
    other = replace(STAGE, name="other", continues_data=True, task_options={"sequence_length": 3})
    with pytest.raises(InputError, match="goes on in the data of the one before"):
        replace(toy(), stages=(STAGE, other))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("256", "allowed is BATCH:SHARE"),
        ("256:0.1;512:0.2", "allowed is BATCH:SHARE"),
        ("256:1.2.3", "allowed is BATCH:SHARE"),
        ("512:0.1", "the batches"),
        ("256:0.1,128:0.2", "the batches"),
        ("0:0.1", "the batches"),
        ("128:0.2,256:0.1", "the shares"),
        ("128:1.0", "the shares"),
        ("128:0.0001,256:0.5", "leaves no step"),
    ],
)
def test_what_does_not_grow_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        grown(STAGE, read_growth(text))


def test_it_is_read_as_it_was_written() -> None:
    growth = ((64, 0.05), (128, 0.2))
    assert read_growth(written(growth)) == growth


def test_it_follows_a_noise_scale() -> None:
    ends = [0.25, 0.5, 0.75, 1.0]
    assert with_noise(512, ends, [30, 100, 300, 900]) == ((32, 0.25), (128, 0.5))
    assert with_noise(512, ends, [100, 60, 70, 80]) == ((128, 0.75),), "a batch does not shrink again"
    assert with_noise(512, ends, [1000, 10, 10, 10]) == ()
    assert with_noise(512, ends, [math.inf] * 4) == ()
    assert with_noise(500, ends, [1, 1, 1, 1]) == ((125, 0.75),), "halves that are whole"


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_ledger(out / "metrics.jsonl") if line["kind"] == kind]


def test_a_run_grows_its_batch_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["train", "digits", "--batch", "400", "--epochs", "6", "--batch-growth", "50:0.2,200:0.5"]
    assert main([*words, "--out", str(out)]) == 0
    sizes = [line["samples"] for line in lines(out, "train")]
    steps = [b - a for a, b in zip([0, *sizes[:-1]], sizes, strict=True)]
    assert sorted(set(steps)) == [50, 200, 400]
    assert steps == sorted(steps)
    assert [line["moments"] for line in lines(out, "stage")] == ["new", "kept", "kept"]
    capsys.readouterr()
    assert main(["train", "digits", "--batch", "400", "--epochs", "6", "--out", str(out), "--resume"]) == 2
    assert "cannot go on with another stages" in capsys.readouterr().err
    assert main([*words[:-1], "500:0.2", "--out", str(tmp_path / "other")]) == 2
    assert "batch_growth has the batches [500]" in capsys.readouterr().err


def test_a_dry_run_says_what_rate_each_part_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits", "--batch", "256", "--microbatch", "16", "--epochs", "20", "--batch-growth", "32:0.5"]
    assert main([*words, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("stage "))
    assert re.search(r"; peak lr 0\.0\d+ after [1-9]\d* warm-up steps", first)
    later = re.search(r"; highest lr ([0-9.]+) after 0 warm-up steps, first ([0-9.]+)", second)
    assert later is not None, second
    assert float(later[1]) == pytest.approx(float(later[2]), rel=1e-2), "its warm-up lies behind it"
