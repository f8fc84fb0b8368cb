"""The figures of gradient noise: averages first, then the ratio; an interval; nothing where nothing was measured."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import LAYERS, NOT_ADAPTED, make_lines, make_record, write_run

from largebatch.report.noise_charts import noise_charts
from largebatch.report.run_folder import RunFolder

RECORD = make_record()


def charts(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    found = noise_charts(RunFolder.read(write_run(folder, RECORD, lines)))
    return {chart.identifier: chart for chart in found}


def test_each_stretch_has_its_ratio_of_averages_and_an_interval(tmp_path: Path) -> None:
    lines = make_lines(RECORD)
    chart = charts(tmp_path, lines)["noise-scale"]
    trains = [line for line in lines if line["kind"] == "train" and line["step"] <= 17]  # 269 steps in 16 parts
    wanted = sum(line["covariance_trace"] for line in trains) / sum(line["gradient_square"] for line in trains)
    step, _, shown, interval, batch = chart.table.rows[0]
    assert (step, batch) == ("17", "256")
    assert float(shown.replace(",", "")) == pytest.approx(wanted, rel=0.01)
    low, high = (float(end.replace(",", "")) for end in interval.split(" to "))
    assert low < wanted < high
    first_of_each = sum(line["covariance_trace"] / line["gradient_square"] for line in trains) / 17
    assert float(shown.replace(",", "")) != pytest.approx(first_of_each, rel=0.01), "divided first"
    assert chart.table.rows[-1][4] == "128"
    assert "In the last 10 steps" in chart.caption
    assert "times the batch" in chart.caption


def test_where_one_step_of_ten_is_measured_each_stretch_has_eight_of_them(tmp_path: Path) -> None:
    lines = make_lines(RECORD)
    trains = [line for line in lines if line["kind"] == "train"]
    for line in trains:
        if line["step"] % 10:
            for name in ("gradient_square", "covariance_trace"):
                line.pop(name, None)
    chart = charts(tmp_path, lines)["noise-scale"]
    assert [row[0] for row in chart.table.rows] == ["90", "180", "270"]
    smoothed = next(series.y for series in chart.series if series.name == "noise scale")
    assert np.isfinite(smoothed[:270]).all(), "the curve goes on between what was measured"
    near = [line for line in trains if line["step"] in range(100, 181, 10)]
    wanted = sum(line["covariance_trace"] for line in near) / sum(line["gradient_square"] for line in near)
    assert smoothed[139] == pytest.approx(wanted), "of forty steps on each side of the 140th"


def test_layers_are_told_by_their_share_of_the_noise(tmp_path: Path) -> None:
    chart = charts(tmp_path, make_lines(RECORD))["noise-by-layer"]
    assert len(chart.table.rows) == len(LAYERS) + len(NOT_ADAPTED)
    assert chart.table.rows[0][0] == "encoder.layer.0.output.dense.bias"
    share = float(chart.table.rows[0][1].removesuffix(" %"))
    rows = len(LAYERS) + len(NOT_ADAPTED)
    assert share == pytest.approx(100 * rows / (rows * (rows + 1) / 2), rel=0.1)
    assert len(chart.series) == 4


def test_without_a_measurement_there_is_no_figure(tmp_path: Path) -> None:
    names = ("gradient_square", "covariance_trace", "gradient_squares", "covariance_traces")
    bare = [{name: value for name, value in line.items() if name not in names} for line in make_lines(RECORD)]
    assert charts(tmp_path / "none", bare) == {}
    assert charts(tmp_path / "few", make_lines(RECORD, 7)) == {}
    assert list(charts(tmp_path / "some", make_lines(RECORD, 20))) == ["noise-scale"]


def test_a_gradient_lost_in_the_noise_has_no_bound(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = make_lines(RECORD)
    for line in lines:
        if "gradient_square" in line:
            line["gradient_square"] = -0.01 + 0.3 * generator.standard_normal()
    chart = charts(tmp_path, lines)["noise-scale"]
    assert any(row[3].endswith("no bound") for row in chart.table.rows)
    for series in chart.series:
        assert not any(value == math.inf for value in series.data()["y"] if value is not None)
