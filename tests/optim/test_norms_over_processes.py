"""Norms that are completed over processes: ZeroRedundancyOptimizer, clipping, steps skipped together."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shared_workers
import torch
from shared_workers import RULES, parameters, run, set_gradients
from torch import nn

from largebatch.optim import LAMB, LANS, Layerwise, layer_groups

pytestmark = pytest.mark.xdist_group("norms over processes")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, shared_workers.__file__]
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    return [torch.load(Path(folder) / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def expected(name: str) -> list[torch.Tensor]:
    kind, options = RULES[name]
    made = parameters()
    return run(kind(made, **options), made)


@pytest.mark.parametrize("name", RULES)
def test_zero_redundancy_equals_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    for found in ranks:
        for p, q in zip(found["zero_redundancy"][name], expected(name), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
    if "clipped" in name:
        unclipped = name.removesuffix(" clipped")
        kind, options = RULES[name]
        made = parameters()
        free = run(kind(made, **{**options, "max_grad_norm": None}), made)
        assert not all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(free, expected(name), strict=True)), unclipped


def test_the_norm_is_that_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    made = parameters()
    set_gradients(made, shared_workers.STEPS - 1)
    norm = float(torch.stack([torch.linalg.vector_norm(p.grad) for p in made if p.grad is not None]).norm())
    for found in ranks:
        assert found["zero_redundancy"]["LAMB clipped: norm"] == pytest.approx(norm, rel=1e-12)


def test_where_names_are_lost_the_ratios_are_numbered(ranks: list[dict[str, Any]]) -> None:
    keys = [found["zero_redundancy"]["LAMB: ratios"] for found in ranks]
    assert all(own == [str(n) for n in range(len(own))] for own in keys)
    assert sum(map(len, keys)) == len(shared_workers.SHAPES)


def test_a_saved_optimizer_goes_on_and_keeps_its_process_group(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["zero_redundancy"].get("LAMB clipped: bytes", 1) > 0
        assert found["resumed"]["keeps its process group"]
        for p, q in zip(found["resumed"]["one"], found["resumed"]["other"], strict=True):
            assert torch.equal(p, q)


def test_clipping_by_a_share_of_the_gradient_is_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "max_grad_norm within ZeroRedundancyOptimizer needs norm_process_group" in found["refused"]["told"]


def test_a_process_without_parameters_takes_part(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["few_parameters"]["norm"] == pytest.approx(found["few_parameters"]["expected"], rel=1e-12)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_all_processes_skip_a_step_together(ranks: list[dict[str, Any]], clip: float | None) -> None:
    for found in ranks:
        assert found["skipped"][f"moved, clip {clip}"] == [True, False]
        assert found["skipped"][f"count, clip {clip}"] == 1


def test_the_general_strategy_is_clipped_by_the_norm_of_all(ranks: list[dict[str, Any]]) -> None:
    made = parameters()
    base = torch.optim.AdamW(made, lr=0.1, eps=1e-2)
    ends = run(Layerwise(base, max_grad_norm=0.5), made)
    for rank, found in enumerate(ranks):
        for p, q in zip(found["general"]["end"], ends[rank::2], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [LAMB, LANS])
def test_named_groups_go_through_zero_redundancy(ranks: list[dict[str, Any]], kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    optimizer = kind(layer_groups(model), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3, dtype=torch.float64)).pow(2).sum().backward()
        optimizer.step()
    for found in ranks:
        for p, q in zip(found["named_groups"][kind.__name__], model.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-13)
        ratios = found["named_groups"][f"{kind.__name__}: ratios"]
        assert ratios == [str(n) for n in range(len(ratios))], "names that are not this share's own are not used"


def test_a_threshold_that_comes_later_is_refused_at_the_step(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "max_grad_norm within ZeroRedundancyOptimizer needs norm_process_group" in found["clipped_later"]["told"]


def test_the_base_of_the_general_strategy_is_skipped_in_all_processes(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["general_skipped"] == {"moved": [True, False], "count": 1}
