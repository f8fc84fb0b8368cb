"""The step time on paper: textbook numbers, a fit that finds what made the times, and the published table."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import scaling_model
from scaling_measured import link_from, table
from scaling_model import (
    Cluster,
    Fit,
    Link,
    batch_time,
    bert_large_flops,
    efficiency,
    exchange_seconds,
    fitted,
    hierarchical_seconds,
    published_times,
    ring_seconds,
    step_seconds,
)

FAST = Link(bytes_per_second=100e9, latency_seconds=0.0)
SLOW = Link(bytes_per_second=10e9, latency_seconds=1e-5)


def test_a_ring_moves_nearly_twice_the_bytes() -> None:
    assert ring_seconds(1e9, 1, FAST) == 0
    assert ring_seconds(1e9, 2, FAST) == pytest.approx(0.01)
    assert ring_seconds(1e9, 1000, FAST) == pytest.approx(0.02, rel=2e-3)
    assert ring_seconds(0, 1025, SLOW) == pytest.approx(2 * 1024 * 1e-5)


def test_nodes_of_one_and_a_single_node_are_one_ring() -> None:
    assert hierarchical_seconds(1e9, 16, 1, FAST, SLOW) == ring_seconds(1e9, 16, SLOW)
    assert hierarchical_seconds(1e9, 16, 16, FAST, SLOW) == ring_seconds(1e9, 16, FAST)
    two_levels = hierarchical_seconds(1e9, 16, 8, FAST, SLOW)
    assert two_levels == pytest.approx(2 * 7 / 8 * 0.01 + 1e9 / 8 / 10e9 + 2e-5)
    assert two_levels < ring_seconds(1e9, 16, SLOW)
    with pytest.raises(ValueError, match="devices is 12, allowed is a multiple of per_node, 8"):
        hierarchical_seconds(1e9, 12, 8, FAST, SLOW)


def test_a_link_is_found_from_the_exchanges_of_two() -> None:
    sizes = (4e3, 4e5, 4e7)
    found = link_from(sizes, [ring_seconds(size, 2, SLOW) for size in sizes])
    assert (found.bytes_per_second, found.latency_seconds) == pytest.approx((10e9, 1e-5), rel=1e-6)


def test_the_page_has_the_table_of_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    numbers = json.loads((root / "benchmarks" / "results" / "scaling_measured.json").read_text(encoding="utf-8"))
    assert table(numbers) in (root / "docs" / "scaling-out.md").read_text(encoding="utf-8")


def test_a_step_waits_for_what_nothing_hides() -> None:
    assert step_seconds(compute=1.0, exchange=0.5, hidden=0.3, optimizer=0.1, waiting=0.1) == pytest.approx(1.4)
    assert step_seconds(compute=1.0, exchange=0.5, hidden=0.9) == 1.0
    assert step_seconds(compute=1.0, exchange=0.0, data=3.0) == 3.0


def test_operations_of_bert_large() -> None:
    assert bert_large_flops(128) == pytest.approx(6 * 302e6 * 128, rel=0.08), "six for each weight and token, and heads"
    assert 4 < bert_large_flops(512) / bert_large_flops(128) < 4.3


def test_the_fit_finds_what_made_the_times() -> None:
    truth = Fit(80e12, 0.05, 0.01)
    made = [replace(row, seconds=truth.seconds(row)) for row in published_times()]
    found = fitted(made)
    assert found.flops_per_second == pytest.approx(80e12, rel=1e-6)
    assert (found.fixed_seconds, found.doubling_seconds) == pytest.approx((0.05, 0.01), rel=1e-6)


def test_the_published_times_are_met() -> None:
    rows = published_times()
    fit = fitted(rows)
    errors = [fit.seconds(row) / row.seconds - 1 for row in rows]
    assert max(map(abs, errors)) < 0.06
    ends = {row.batch: row for row in rows}
    shares = [efficiency(ends[batch].seconds, 1024, rows[0]) for batch in ("32,768", "64K/32K")]
    assert shares == pytest.approx([0.768, 1.018], abs=2e-3), "the paper's own"
    without = replace(fit, doubling_seconds=0.0)
    assert min(without.seconds(row) / row.seconds - 1 for row in rows) < -0.2, "devices that do not wait would be seen"


def test_small_batches_leave_a_cluster_idle_and_large_ones_learn_little() -> None:
    cluster = Cluster(devices=1024)
    times = [batch_time(cluster, 2**n) for n in range(10, 17)]
    assert [one.batch for one in times if one.epoch_hours == min(a.epoch_hours for a in times)] == [65_536]
    best = min(times, key=lambda one: one.target_hours).batch
    assert best > min((batch_time(Cluster(devices=8), 2**n) for n in range(8, 17)), key=lambda a: a.target_hours).batch
    assert math.isclose(exchange_seconds(Cluster(devices=1), 1e9), 0.0)
    with pytest.raises(ValueError, match="batch is 512, allowed is 1,024 or more"):
        batch_time(cluster, 512)


@pytest.mark.parametrize("words", [[], ["publish"], ["cluster", "--devices", "12"], ["cluster", "--devices", "100000"]])
def test_a_mistake_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scaling_model.main(words)
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert "allowed is" in told


@pytest.mark.parametrize("words", ["published", "cluster", "cluster --devices 1024"])
def test_the_page_has_the_tables_of_the_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    scaling_model.main(words.split())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (Path(__file__).parents[1] / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    shown = re.split(rf"python benchmarks/scaling_model.py {words}\n```\n", page)[1].strip().splitlines()
    assert shown[: len(table)] == table
