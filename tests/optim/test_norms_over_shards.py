"""Weights in shards by any layout move as whole ones do; two processes here, four among the slow tests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shard_workers
import torch
from shard_workers import LAYOUTS, RULES, SHAPES, STEPS, WHOLE, backends_of, ending, gradients
from torch import Tensor

pytestmark = pytest.mark.xdist_group("norms over shards")

Found = list[dict[str, Any]]
"""What each process found, by scenario."""

with_four = pytest.mark.parametrize(
    "ranks", [2, pytest.param(4, marks=pytest.mark.slow)], indirect=True, scope="module", ids=["2 ranks", "4 ranks"]
)


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return what each of some processes found."""
    count, folder = request.param, tmp_path_factory.mktemp("ranks")
    command = [sys.executable, shard_workers.__file__]
    workers = [
        subprocess.Popen([*command, str(rank), str(count), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    try:
        told = [worker.communicate(timeout=500)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0] * count, told
    return [torch.load(Path(folder) / f"rank-{rank}.pt", weights_only=False) for rank in range(count)]


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], limit: float) -> None:
    """Compare by the norm of the difference over that of what is wanted, tensor by tensor."""
    assert found.keys() == wanted.keys()
    for name, a in wanted.items():
        if a.isnan().any():
            torch.testing.assert_close(found[name], a, equal_nan=True)
            continue
        difference = float(torch.linalg.vector_norm(found[name].double() - a.double()))
        assert difference <= limit * max(float(torch.linalg.vector_norm(a.double())), 1e-30), name


@with_four
@pytest.mark.parametrize("rule", RULES)
def test_every_layout_moves_as_whole_weights_do(ranks: Found, rule: str) -> None:
    for backend in backends_of(rule):
        wanted = ending(rule, backend, WHOLE)
        for found in ranks:
            for layout in LAYOUTS:
                own = found["every_rule"][f"{layout}, {rule}, {backend}"]
                for what in ("weights", "ratios", "norm"):
                    assert_close(own[what], wanted[what], 1e-12)


@with_four
@pytest.mark.parametrize("rule", ["LAMB", "LANS", "LARS"])
def test_in_single_precision(ranks: Found, rule: str) -> None:
    for key, own in ranks[0]["single_precision"].items():
        _, of_rule, backend = key.split(", ")
        if of_rule == rule:
            assert_close(own["weights"], ending(rule, backend, WHOLE, torch.float32)["weights"], 1e-6)


@with_four
@pytest.mark.parametrize("rule", ["LAMB", "LANS", "Layerwise AdamW"])
def test_layers_within_a_parameter_may_be_cut(ranks: Found, rule: str) -> None:
    for found in ranks:
        for key, own in found["stacked_blocks"].items():
            _, of_rule, backend = key.split(", ")
            if of_rule == rule:
                wanted = ending(rule, backend, WHOLE, stacked=True)
                assert_close(own["weights"], wanted["weights"], 1e-12)
                assert_close(own["ratios"], wanted["ratios"], 1e-12)


@with_four
def test_one_exchange_for_each_mesh_and_a_second_with_clipping(ranks: Found) -> None:
    meshes = dict.fromkeys(LAYOUTS, 1) | {"replicated": 0, "mixed": 3, "in_two_dimensions": 3}
    for found in ranks:
        for layout, several in meshes.items():
            for rule, (_, _, each) in RULES.items():
                sizes = found["exchanges"][f"{layout}, {rule}"]
                assert len(sizes) <= several * each, (layout, rule, sizes)
                if layout != "in_two_dimensions":
                    assert len(sizes) == several * each
                assert max(sizes, default=0) <= 3 * len(SHAPES), "sums, not weights"


@with_four
def test_gradients_that_are_still_to_be_summed(ranks: Found) -> None:
    params = {name: torch.nn.Parameter(a) for name, a in shard_workers.weights().items()}
    optimizer = shard_workers.LAMB(params.items(), max_grad_norm=0.5)
    shard_workers.stepped(optimizer, params, WHOLE)
    wanted = {name: p.detach() for name, p in params.items()}
    for found in ranks:
        assert_close(found["partial_gradients"]["weights"], wanted, 1e-10)
        norm = float(torch.cat([g.flatten() for g in gradients(STEPS - 1).values()]).norm())
        assert found["partial_gradients"]["norm"] == pytest.approx(norm, rel=1e-12)


@with_four
def test_norms_of_what_lies_here_would_be_noticed(ranks: Found) -> None:
    with pytest.raises(AssertionError):
        assert_close(ranks[0]["local_norms"]["weights"], ending("LAMB", "plain", WHOLE)["weights"], 1e-2)


@with_four
def test_a_step_is_skipped_on_all_processes(ranks: Found) -> None:
    for found in ranks:
        for layout, seen in found["skipped"].items():
            assert seen == {"moved": [True, False], "count": 1}, layout


@with_four
@pytest.mark.parametrize("rule", ["LAMB", "Layerwise AdamW"])
def test_masters_and_moments_lie_as_their_parameters_do(ranks: Found, rule: str) -> None:
    for found in ranks:
        assert found["masters"][f"{rule}, lies"]
        own, wanted = found["masters"][f"{rule}, rows"], found["masters"][f"{rule}, whole"]
        for name, state in wanted.items():
            assert {a.dtype for a in own[name].values()} == {torch.float32}
            assert_close(own[name], state, 1e-6)


@with_four
def test_a_state_goes_on_in_another_layout(ranks: Found) -> None:
    wanted = ending("LAMB", "fused", WHOLE)["weights"]
    for found in ranks:
        assert_close(found["reloaded"]["weights"], wanted, 1e-12)


@with_four
def test_what_cannot_be_had_is_said(ranks: Found) -> None:
    for found in ranks:
        told = found["refused"]
        assert "ValueError: parameter w is a DTensor with the placements (Partial(sum),)" in told["partial"]
        assert "NotImplementedError: differentiable=True: parameter w is a DTensor" in told["differentiable"]
        assert "ValueError: the loaded exp_avg of parameter 0 is a DTensor, the parameter is" in told["state in shards"]
        assert "is a DTensor, the parameter is not; full_state_dict=True" in told["state in shards, layerwise"]
        assert told["left alone"]
        assert told["rate"].startswith("ValueError: lr is a DTensor; it must be a number or a plain tensor")
        if len(ranks) > 2:  # two processes along one dimension cut it once
            assert "NotImplementedError: stacked blocks along dimension 0" in told["cut twice"]


@with_four
def test_a_step_with_few_gradients_or_none(ranks: Found) -> None:
    for found in ranks:
        ratios = found["without_gradients"]["ratios"]
        assert [name for name, ratio in ratios.items() if not ratio.isnan().any()] == ["small"]
        for name, p in found["without_gradients"]["weights"].items():
            assert torch.equal(p, shard_workers.weights()[name]) == (name != "small")


@with_four
def test_relative_steps_are_those_of_whole_layers(ranks: Found) -> None:
    for found in ranks:
        wanted = found["watched"].pop("whole")
        for seen in found["watched"].values():
            assert seen == pytest.approx(wanted, rel=1e-12, nan_ok=True)
