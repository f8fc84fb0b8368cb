"""Batch norm over groups: PyTorch's for one group, and the same for any cut of a batch into passes and ranks."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from largebatch.train.distributed import World
from largebatch.train.step_statistics import buffers_kept, fold_step_statistics, left_out
from largebatch.vision.batch_norm import BatchNorm, grouped_batch_norm_

ALONE = World(0, 1, torch.device("cpu"))


def _norm(**options: Any) -> BatchNorm:
    torch.manual_seed(1)
    norm = BatchNorm(3, eps=1e-5, momentum=0.1, **options)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def _theirs(norm: BatchNorm) -> nn.BatchNorm2d:
    theirs = nn.BatchNorm2d(3)
    theirs.load_state_dict(norm.state_dict())
    return theirs


def _inputs(samples: int = 12) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(samples, 3, 4, 5) * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 2


def _forward(norm: nn.Module, parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs of passes over parts of a batch, and the gradients of the weights."""
    out = torch.cat([norm(part) for part in parts])
    return out, list(torch.autograd.grad(out.sin().sum(), list(norm.parameters())))


@pytest.mark.parametrize("group", [None, 12, 50])
def test_one_group_is_pytorchs(group: int | None) -> None:
    ours = _norm(group=group)
    theirs = _theirs(ours)
    x = _inputs().requires_grad_()
    (found, own), (wanted, his) = _forward(ours, [x]), _forward(theirs, [x])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(own, his, rtol=0, atol=0)
    fold_step_statistics(ours, ALONE, finite=True)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
    ours.eval()
    torch.testing.assert_close(ours(x), theirs.eval()(x))


def test_groups_are_normed_each_for_itself() -> None:
    norm, x = _norm(group=4), _inputs()
    wanted = torch.cat([_theirs(norm)(part) for part in x.split(4)])
    torch.testing.assert_close(norm(x), wanted)
    assert not torch.allclose(_theirs(norm)(x), wanted, rtol=1e-2), "one group of all would be seen"


@pytest.mark.parametrize("cut", [[12], [4, 4, 4], [8, 4]])
def test_the_cut_into_passes_does_not_matter(cut: list[int]) -> None:
    whole, parts = _norm(group=4), _norm(group=4)
    (found, own), (wanted, his) = _forward(parts, list(_inputs().split(cut))), _forward(whole, [_inputs()])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(own, his)
    for norm in (whole, parts):
        fold_step_statistics(norm, ALONE, finite=True)
    torch.testing.assert_close(parts.running_mean, whole.running_mean)
    torch.testing.assert_close(parts.running_var, whole.running_var)
    assert int(parts.num_batches_tracked) == 1  # type: ignore[arg-type]
    passes = _theirs(_norm())
    for part in _inputs().split(4):
        passes(part)
    assert not torch.allclose(passes.running_mean, whole.running_mean, rtol=1e-2), "PyTorch's moves with each pass"  # type: ignore[arg-type]


def test_a_short_last_group_counts_by_its_samples() -> None:
    norm, x = _norm(group=4), _inputs(10)
    norm(x)
    fold_step_statistics(norm, ALONE, finite=True)
    means = torch.stack([part.mean(dim=(0, 2, 3)) * len(part) for part in x.split(4)]).sum(0) / 10
    torch.testing.assert_close(norm.running_mean, 0.1 * means)


def test_a_group_of_one_value_is_its_own_mean() -> None:
    norm, x = _norm(group=2), _inputs(3)[:, :, :1, :1]
    out, gradients = _forward(norm, [x])
    assert norm.bias is not None
    torch.testing.assert_close(out[2].flatten(), norm.bias)
    assert all(gradient.isfinite().all() for gradient in gradients)
    fold_step_statistics(norm, ALONE, finite=True)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(dim=(0, 2, 3)))
    assert norm.running_var is not None
    assert norm.running_var.isfinite().all()


def test_a_skipped_step_leaves_no_trace() -> None:
    norm = _norm(group=4)
    norm(_inputs() * torch.nan)
    fold_step_statistics(norm, ALONE, finite=False)
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    norm(_inputs())
    fold_step_statistics(norm, ALONE, finite=True)
    assert norm.running_mean.isfinite().all()
    before = norm.running_mean.clone()
    fold_step_statistics(norm, ALONE, finite=True)
    torch.testing.assert_close(norm.running_mean, before, msg="a step without passes moves nothing")


def test_passes_that_do_not_count_are_undone() -> None:
    norm = _norm(group=4)
    norm(_inputs())
    sums = norm.step_sums()
    with buffers_kept(norm):
        norm(_inputs() + 5)
    torch.testing.assert_close(norm.step_sums(), sums, rtol=0, atol=0)


def test_a_network_keeps_its_names_and_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)), nn.GroupNorm(2, 4))
    scale: Any = network[1][0].weight  # pyright: ignore[reportIndexIssue]
    nn.init.uniform_(scale)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    grouped_batch_norm_(network, 8, synchronised=False)
    inner = network[1][0]  # pyright: ignore[reportIndexIssue]
    assert isinstance(inner, BatchNorm)
    assert (inner.group, inner.momentum) == (8, 0.3)
    assert list(network.state_dict()) == list(before)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


# Two ranks.


def _rank(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    norm = _norm(group=4) if kind == "groups" else _norm(synchronised=True)
    x = _inputs().chunk(2)[rank]
    if kind == "groups":
        x = torch.cat([part for n, part in enumerate(_inputs(16).split(4)) if n % 2 == rank])
    x = x.clone().requires_grad_()
    if kind == "idle with one value":
        x = x[:1, :, :1, :1]
    idle = kind.startswith("idle") and rank == 1
    with left_out(norm) if idle else nullcontext():
        out = norm(x)
    grads = torch.autograd.grad(out.sin().sum() * (0 if idle else 1), [x, *norm.parameters()])
    fold_step_statistics(norm, world, finite=True)
    held = {"out": out.detach(), "grads": grads, "mean": norm.running_mean, "var": norm.running_var}
    torch.save(held, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _ranks(folder: Path, kind: str) -> list[dict[str, Any]]:
    mp.spawn(_rank, (str(folder), kind), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_synchronised_ranks_norm_together(tmp_path: Path) -> None:
    first, second = _ranks(tmp_path, "synchronised")
    norm = _norm()
    x = _inputs().requires_grad_()
    out = norm(x)
    grads = torch.autograd.grad(out.sin().sum(), [x, *norm.parameters()])
    fold_step_statistics(norm, ALONE, finite=True)
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), out.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([first["grads"][0], second["grads"][0]]), grads[0], rtol=1e-4, atol=1e-5)
    for own, his, all_of in zip(first["grads"][1:], second["grads"][1:], grads[1:], strict=True):
        torch.testing.assert_close(own + his, all_of, rtol=1e-4, atol=1e-4)
    for rank in (first, second):
        torch.testing.assert_close(rank["mean"], norm.running_mean)
        torch.testing.assert_close(rank["var"], norm.running_var)


def test_one_value_of_all_ranks_is_its_own_mean(tmp_path: Path) -> None:
    for rank in _ranks(tmp_path, "idle with one value"):
        torch.testing.assert_close(rank["mean"], 0.1 * _inputs()[0, :, 0, 0])
        torch.testing.assert_close(rank["var"], torch.full((3,), 0.9))


def test_a_rank_without_a_share_leaves_the_others_alone(tmp_path: Path) -> None:
    first, second = _ranks(tmp_path, "idle")
    norm = _norm()
    x = _inputs().chunk(2)[0].clone().requires_grad_()
    out = norm(x)
    grads = torch.autograd.grad(out.sin().sum(), [x, *norm.parameters()])
    fold_step_statistics(norm, ALONE, finite=True)
    torch.testing.assert_close(first["out"], out.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["grads"], grads, rtol=1e-4, atol=1e-4)
    assert not any(gradient.any() for gradient in second["grads"])
    for rank in (first, second):
        torch.testing.assert_close(rank["mean"], norm.running_mean)
        torch.testing.assert_close(rank["var"], norm.running_var)


def test_ranks_share_the_statistics_of_their_groups(tmp_path: Path) -> None:
    found = _ranks(tmp_path, "groups")
    norm = _norm(group=4)
    norm(_inputs(16))
    fold_step_statistics(norm, ALONE, finite=True)
    for rank in found:
        torch.testing.assert_close(rank["mean"], norm.running_mean)
        torch.testing.assert_close(rank["var"], norm.running_var)
