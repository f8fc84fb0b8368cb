"""What LAMB refuses, and that every option of its signature either changes the step or raises."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from largebatch.optim import LAMB

NAN, INF = math.nan, math.inf

BAD_VALUES: dict[str, list[Any]] = {
    "lr": [-1e-3, NAN, INF, "1e-3", None, True, torch.tensor([0.1, 0.2]), torch.tensor(-1.0), torch.tensor(1)],
    "betas": [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), 0.9, ("0.9", 0.9)],
    "eps": [-1e-6, 0, NAN, INF, "tiny"],
    "weight_decay": [-0.1, NAN, INF, None],
    "bias_correction": [1, None, "yes"],
    "nesterov": [True, False, "third", 1],
    "adapt": [0, None, "no"],
    "norm": [0, 3, "2", INF, True, None],
    "phi_bounds": [(1, 0), (-1, 1), (0, NAN), (0,), 3.0, ("0", "1"), (INF, INF)],
    "ratio_bounds": [(1, 0), (-1, 1), (NAN, 1), (0, 1, 2), 3.0],
    "max_grad_norm": [0, 0.0, -1, NAN, INF, "1"],
    "stacked": [3, (0,), (0, 0), (0.0, 3), (True, 1), (5, 2), (0, 4), (1, 3), (-3, 1)],
    "master_weights": [1, None],
    "maximize": [1, None],
    "foreach": [1, "yes"],
    "capturable": [1, None],
    "differentiable": [1, None],
    "fused": [1, "yes"],
}


def over(*shape: int, **options: Any) -> LAMB:
    return LAMB([nn.Parameter(torch.ones(*(shape or (3, 4))))], **options)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values])
def test_a_bad_value_is_refused_with_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b.*\b(must be|needs|None switches)\b") as caught:
        over(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    given = [value, *value] if isinstance(value, tuple) else [value]
    assert isinstance(value, torch.Tensor) or any(repr(part) in message for part in given)
    with pytest.raises(ValueError, match=name):
        LAMB([{"params": [nn.Parameter(torch.ones(3, 4))], name: value}])


@pytest.mark.parametrize("name", ["fused", "capturable", "norm_process_group"])
def test_what_is_not_built_says_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"{name}.*this version"):
        over(**{name: True})


@pytest.mark.parametrize("other", ["foreach", "master_weights"])
def test_contradictions_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match=f"differentiable=True and {other}=True"):
        over(differentiable=True, **{other: True})
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="differentiable must be the same for all groups"):
        LAMB([{"params": [x], "differentiable": True}])


def test_an_option_set_out_of_range_later_is_refused_before_anything_changes() -> None:
    optimizer = over()
    (x,) = optimizer.param_groups[0]["params"]
    x.grad = torch.ones_like(x)
    for name, value in (("lr", -1e-9), ("lr", NAN), ("max_grad_norm", 0), ("betas", (0.9, 1.0)), ("fused", True)):
        good = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = value
        with pytest.raises((ValueError, NotImplementedError), match=name):
            optimizer.step()
        optimizer.param_groups[0][name] = good
    assert not optimizer.state
    assert torch.equal(x, torch.ones_like(x))


def test_a_misspelt_option_is_refused_and_other_keys_are_kept() -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="'weight_decy'; did you mean 'weight_decay'"):
        LAMB([{"params": [x], "weight_decy": 0.0}])
    assert LAMB([{"params": [x], "initial_lr": 1.0, "name": "head"}]).param_groups[0]["name"] == "head"


def test_a_refused_group_is_not_added() -> None:
    optimizer = over()
    x = nn.Parameter(torch.ones(2))
    for bad in ({"params": [x], "lr": -1}, {"params": [x, x]}, {"params": [x], "param_names": ["a", "b"]}):
        with pytest.raises(ValueError, match=r"lr|twice|names"):
            optimizer.add_param_group(bad)
        assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": optimizer.param_groups[0]["params"]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([x])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="empty parameter list"):
        LAMB([])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.float8_e4m3fn])
def test_parameters_without_moments_are_refused(dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.zeros(2, dtype=torch.float32).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=f"{dtype}.*must be one of float16, bfloat16, float32"):
        LAMB([x])


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = LAMB([dense, table.weight])
    dense.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    for act in (optimizer.step, optimizer.grad_norm):
        with pytest.raises(RuntimeError, match="sparse"):
            act()
    assert not optimizer.state
    assert torch.equal(dense, torch.ones(2))
    assert torch.equal(table.weight, before)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_sharded_parameters_are_refused() -> None:
    mesh = init_device_mesh("cpu", (2,))
    x = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()]))
    assert isinstance(x, DTensor)
    with pytest.raises(NotImplementedError, match=r"parameter head is a DTensor.*no norms over shards"):
        LAMB([("head", x)])


def test_flattened_parameters_are_refused() -> None:
    x = nn.Parameter(torch.ones(4))
    x._fsdp_flattened = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(NotImplementedError, match="parameter 0 is a flattened shard"):
        LAMB([x])


CHANGES: dict[str, Any] = {
    "lr": 0.2,
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "weight_decay": 0.4,
    "bias_correction": False,
    "nesterov": "first",
    "adapt": False,
    "norm": 1,
    "phi_bounds": (0.0, 1.0),
    "ratio_bounds": (0.0, 0.1),
    "max_grad_norm": 0.01,
    "stacked": (0, 3),
    "maximize": True,
}
"""A value of each option that must change the step; `master_weights`, for half precision, has its own test."""
HOW = {"params", "master_weights", "foreach", "differentiable", "fused", "capturable", "norm_process_group"}


def test_every_option_is_tried() -> None:
    assert set(inspect.signature(LAMB).parameters) == set(CHANGES) | HOW


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("backend", [False, True], ids=["plain", "foreach"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_step_also_per_group(name: str, backend: bool, per_group: bool) -> None:
    ends = []
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator)
    gradients = torch.randn(3, 3, 4, generator=generator) * torch.tensor([1.0, 0.1, 0.01]).view(3, 1, 1)
    for change in ({}, {name: CHANGES[name]}):
        x = nn.Parameter(start.clone())
        options: dict[str, Any] = {"lr": 0.1, "eps": 1e-3, "foreach": backend}
        given: dict[str, Any] = {"params": [x], **(change if per_group else {})}
        optimizer = LAMB([given], **(options if per_group else {**options, **change}))
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        ends.append(x.detach())
    assert not torch.allclose(ends[0], ends[1], rtol=1e-4)
