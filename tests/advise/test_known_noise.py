"""On a quadratic whose noise and critical batch can be computed, training measures both."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from advise.quadratic import HELD_OUT, HESSIAN, START, VARIANCES, Draws, expected_loss, gone_on
from largebatch.advise.critical_batch import EVALUATIONS, Branch, Findings, find
from largebatch.cli import main
from largebatch.noise_scale import NoiseEstimate, over_steps
from largebatch.train.ledger import read_ledger

RECIPE = "advise.quadratic:quadratic"
BATCH, LR, STEPS, ORDERS, SAMPLES = 16, 0.3, 60, 6, 2048
MULTIPLES = (1, 2, 4, 8)


def test_the_noise_scale_is_within_a_tenth(tmp_path: Path) -> None:
    """At a rate of zero every step is at the same place, where both terms of the scale are known."""
    out = tmp_path / "run"
    words = ["--batch", "64", "--lr", "0", "--steps", "250", "--layers-every-steps", "1"]
    assert main(["train", RECIPE, *words, "--out", str(out)]) == 0
    lines = list(read_ledger(out / "metrics.jsonl"))
    trains = [line for line in lines if line["kind"] == "train"]
    found = over_steps([NoiseEstimate(line["gradient_square"], line["covariance_trace"]) for line in trains])
    square, trace = HESSIAN**2 * START**2, HESSIAN**2 * VARIANCES
    assert found.scale == pytest.approx(trace.sum() / square.sum(), rel=0.1)
    assert found.interval[0] <= trace.sum() / square.sum() <= found.interval[1]
    layers = [line for line in lines if line["kind"] == "layers"]
    for name, at in (("first", slice(0, 5)), ("second", slice(5, 12))):
        own = [NoiseEstimate(line["gradient_squares"][name], line["covariance_traces"][name]) for line in layers]
        assert over_steps(own).scale == pytest.approx(trace[at].sum() / square[at].sum(), rel=0.1)
    for line, train in zip(layers, trains, strict=True):
        assert sum(line["covariance_traces"].values()) == pytest.approx(train["covariance_trace"], rel=1e-5)


def computed() -> Findings:
    """Return what branches come to whose losses are expectations, without any scatter."""
    data = Draws(10**6, HELD_OUT)
    held_out = np.stack([data[0, index] for index in range(HELD_OUT)])
    center = held_out.mean(axis=0)
    constant = float((HESSIAN * held_out.var(axis=0)).sum() / 2)
    mean, variance = gone_on(START, np.zeros(12), LR, BATCH, STEPS - 20)
    branches = []
    for k in MULTIPLES:
        losses, at = [], (mean, variance)
        for _ in range(EVALUATIONS if k == 1 else EVALUATIONS * 3 // 2):
            at = gone_on(*at, LR * math.sqrt(k), k * BATCH, SAMPLES // EVALUATIONS // (k * BATCH))
            losses.append(expected_loss(*at, center, constant))
        branches.append(Branch(multiple=k, order=0, state="complete", losses=tuple(losses)))
    return find(branches, BATCH, SAMPLES, 0.01)


def test_the_critical_batch_is_within_a_factor_of_one_and_a_half(tmp_path: Path) -> None:
    wanted = computed().growth
    assert wanted is not None
    out = tmp_path / "run"
    words = ["--batch", str(BATCH), "--lr", str(LR), "--steps", str(STEPS)]
    assert main(["train", RECIPE, *words, "--out", str(out)]) == 0
    asked = ["--checkpoint", str(STEPS - 20), "--orders", str(ORDERS), "--samples", str(SAMPLES)]
    assert main(["advise", str(out), *asked, "--out", str(tmp_path / "advice")]) == 0
    lines = (tmp_path / "advice" / "branches.jsonl").read_text().splitlines()
    found = find([Branch.read(json.loads(line)) for line in lines], BATCH, SAMPLES, 0.01)
    assert found.growth is not None
    assert 1 / 1.5 <= found.growth.critical_batch / wanted.critical_batch <= 1.5
    for one, exact in zip(found.tried, computed().tried, strict=True):
        if math.isfinite(exact.excess) and math.isfinite(one.excess):
            assert one.excess == pytest.approx(exact.excess, abs=0.15)
