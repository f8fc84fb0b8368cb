"""What the optimizers refuse, and that every option of their signatures either changes the step or raises."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rules import MAKERS, every_backend, how
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from largebatch.optim import LAMB, LANS, LARS, Layerwise

NAN, INF = math.nan, math.inf

COMMON: dict[str, list[Any]] = {
    "adapt": [0, None, "no"],
    "norm": [0, 3, "2", INF, True, None],
    "phi_bounds": [(1, 0), (-1, 1), (0, NAN), (0,), 3.0, ("0", "1"), (INF, INF)],
    "ratio_bounds": [(1, 0), (-1, 1), (NAN, 1), (0, 1, 2), 3.0],
    "max_grad_norm": [0, 0.0, -1, NAN, INF, "1"],
    "stacked": [3, (0,), (0, 0), (0.0, 3), (True, 1), (5, 2), (0, 4), (1, 3), (-3, 1)],
    "master_weights": [1, None],
    "norm_process_group": ["gloo", True],
    "maximize": [1, None],
    "foreach": [1, "yes"],
    "capturable": [1, None],
    "differentiable": [1, None],
    "fused": [1, "yes"],
}
LR: list[Any] = [-1e-3, NAN, INF, "1e-3", None, True, torch.tensor([0.1, 0.2]), torch.tensor(-1.0), torch.tensor(1)]
OF_ADAM: dict[str, list[Any]] = {
    "lr": LR,
    "betas": [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), 0.9, ("0.9", 0.9)],
    "eps": [-1e-6, 0, 1e-46, NAN, INF, "tiny"],
    "weight_decay": [-0.1, NAN, INF, None],
    "bias_correction": [1, None, "yes"],
    "nesterov": [True, False, "third", 1],
}
BAD_VALUES: dict[str, dict[str, list[Any]]] = {
    "LAMB": {**COMMON, **OF_ADAM},
    "LANS": {**COMMON, **OF_ADAM, "max_grad_norm": [1.0, 0, -1]},
    "LARS": {
        **COMMON,
        "lr": LR,
        "momentum": [1.0, -0.1, NAN, "0.9", None],
        "weight_decay": [-0.1, NAN, INF, None],
        "rule": ["2018", None, 2017, "Algorithm1"],
        "trust_coefficient": [0, -0.001, NAN, INF, "1"],
        "nesterov": [1, None, "first"],
        "eps": [-1e-6, NAN, INF, "tiny"],
    },
    "Layerwise SGD": COMMON,
}


def over(name: str, *shape: int, **options: Any) -> Any:
    return MAKERS[name]([nn.Parameter(torch.ones(*(shape or (3, 4))))], **options)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, options in BAD_VALUES.items()
        for option, values in options.items()
        for value in values
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{option}\b.*\b(must be|needs|None switches)\b") as caught:
        over(name, **{option: value})
    message = str(caught.value)
    assert "\n" not in message
    given = [value, *value] if isinstance(value, tuple) else [value]
    assert isinstance(value, torch.Tensor) or any(repr(part) in message for part in given)
    if "Layerwise" not in name:
        with pytest.raises(ValueError, match=option):
            MAKERS[name]([{"params": [nn.Parameter(torch.ones(3, 4))], option: value}])


@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS"])
def test_fused_kernels_where_there_are_none_are_refused(name: str) -> None:
    x = nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(NotImplementedError, match=f"fused=True: {name} has no fused kernels for parameters on meta"):
        MAKERS[name]([x], fused=True)
    with pytest.raises(NotImplementedError, match="fused=True: Layerwise has no fused kernels for parameters on cpu"):
        Layerwise(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), fused=True)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_contradictions_are_refused(name: str) -> None:
    for other in ("foreach", "master_weights", "fused"):
        with pytest.raises(ValueError, match=f"differentiable=True and {other}=True"):
            over(name, differentiable=True, **{other: True})
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        over(name, foreach=True, fused=True)
    if name == "Layerwise SGD":
        return
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="differentiable must be the same for all groups"):
        MAKERS[name]([{"params": [x], "differentiable": True}])


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Layerwise SGD"])
@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_clip_of_zero_is_told_how_to_switch_clipping_off(name: str, zero: float) -> None:
    with pytest.raises(ValueError, match="would erase the gradient; None switches clipping off"):
        over(name, max_grad_norm=zero)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nesterov=True and momentum=0.*must be positive"):
        over("LARS", nesterov=True, momentum=0)


@pytest.mark.parametrize("make", [LAMB, LANS, LARS, Layerwise])
def test_what_is_no_option_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        make([nn.Parameter(torch.ones(2))], lr=0.1, amsgrad=True)
    for name, parameter in inspect.signature(make).parameters.items():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), name


@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS"])
def test_an_option_set_out_of_range_later_is_refused_before_anything_changes(name: str) -> None:
    optimizer = over(name)
    (x,) = optimizer.param_groups[0]["params"]
    x.grad = torch.ones_like(x)
    for option, value in (("lr", -1e-9), ("lr", NAN), ("max_grad_norm", 0), ("weight_decay", -1), ("fused", 1)):
        good = optimizer.param_groups[0][option]
        optimizer.param_groups[0][option] = value
        with pytest.raises((ValueError, NotImplementedError), match=option):
            optimizer.step()
        optimizer.param_groups[0][option] = good
    assert not optimizer.state
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_misspelt_option_is_refused_and_other_keys_are_kept(name: str) -> None:
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MAKERS[name]([x])
    for misspelt, meant in (("weight_decy", "weight_decay"), ("max_gradnorm", "max_grad_norm")):
        with pytest.raises(ValueError, match=f"'{misspelt}'; did you mean '{meant}'"):
            optimizer.add_param_group({"params": [y], misspelt: 0.0})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [y], "initial_lr": 1.0, "name": "head"})
    assert optimizer.param_groups[1]["name"] == "head"


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_refused_group_is_not_added(name: str) -> None:
    optimizer = over(name)
    x = nn.Parameter(torch.ones(2))
    for bad in ({"params": [x], "lr": -1.0}, {"params": [x, x]}, {"params": [x], "param_names": ["a", "b"]}):
        with pytest.raises(ValueError, match=r"lr|twice|names"):
            optimizer.add_param_group(bad)
        assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": optimizer.param_groups[0]["params"]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([x])
    with pytest.raises(ValueError, match="empty parameter list"):
        MAKERS[name]([])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.float8_e4m3fn])
def test_parameters_without_moments_are_refused(dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.zeros(2, dtype=torch.float32).to(dtype), requires_grad=False)
    for name in ("LAMB", "LANS", "LARS"):
        with pytest.raises(ValueError, match=f"{dtype}.*must be one of float16, bfloat16, float32"):
            MAKERS[name]([x])


@pytest.mark.parametrize("name", BAD_VALUES)
def test_sparse_gradients_are_refused_before_anything_changes(name: str) -> None:
    dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = MAKERS[name]([dense, table.weight])
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
def test_an_optimizer_with_a_process_group_is_copied_within_it_and_does_not_leave_it() -> None:
    for name in ("LAMB", "Layerwise SGD"):
        optimizer = over(name, norm_process_group=dist.group.WORLD, max_grad_norm=1.0)
        assert copy.deepcopy(optimizer)._shared.process_group is dist.group.WORLD
        with pytest.raises(TypeError, match=r"belongs to its process; save its state_dict\(\)"):
            pickle.dumps(optimizer)
        other = {"params": [nn.Parameter(torch.ones(2))], "norm_process_group": dist.new_group([0])}
        with pytest.raises(ValueError, match=r"has the norm_process_group .*; it must be given to the optimizer"):
            optimizer.add_param_group(other)


def test_flattened_parameters_are_refused() -> None:
    x = nn.Parameter(torch.ones(4))
    x._fsdp_flattened = True  # pyright: ignore[reportAttributeAccessIssue]
    for make in MAKERS.values():
        with pytest.raises(NotImplementedError, match="parameter 0 is a flattened shard"):
            make([x])


CHANGES_OF_ALL: dict[str, Any] = {
    "lr": 0.2,
    "weight_decay": 0.4,
    "adapt": False,
    "norm": 1,
    "phi_bounds": (0.0, 1.0),
    "ratio_bounds": (0.0, 1e-5),
    "max_grad_norm": 0.01,
    "stacked": (0, 3),
    "maximize": True,
}
OF_ADAM_CHANGED: dict[str, Any] = {
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "bias_correction": False,
    "nesterov": "first",
}
CHANGES: dict[str, dict[str, Any]] = {
    "LAMB": {**CHANGES_OF_ALL, **OF_ADAM_CHANGED},
    "LANS": {**CHANGES_OF_ALL, **OF_ADAM_CHANGED, "max_grad_norm": "refused"},
    "LARS": {
        **CHANGES_OF_ALL,
        "momentum": 0.5,
        "rule": "2017",
        "trust_coefficient": 0.5,
        "nesterov": True,
        "eps": 0.5,
    },
    "Layerwise": {key: value for key, value in CHANGES_OF_ALL.items() if key not in ("lr", "weight_decay")},
}
"""A value of each option that must change the step; `master_weights`, for half precision, has its own test."""
HOW = {"params", "base_optimizer"} | {"master_weights", "foreach", "differentiable", "fused", "capturable"}
CLASSES = {"LAMB": LAMB, "LANS": LANS, "LARS": LARS, "Layerwise": Layerwise}


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_is_tried(name: str) -> None:
    assert set(inspect.signature(CLASSES[name]).parameters) - HOW == set(CHANGES[name]) | {"norm_process_group"}


@pytest.mark.parametrize("per_group", [False, True])
@every_backend
@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, changes in CHANGES.items() for option in changes]
)
def test_every_option_changes_the_step_also_per_group(name: str, option: str, backend: str, per_group: bool) -> None:
    make = MAKERS["Layerwise AdamW" if name == "Layerwise" else name]
    if CHANGES[name][option] == "refused":
        with pytest.raises(ValueError, match=f"{option}.*must be None"):
            make([nn.Parameter(torch.ones(2))], **{option: 1.0})
        return
    ends = []
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator)
    gradients = torch.randn(3, 3, 4, generator=generator) * torch.tensor([1.0, 0.1, 0.01]).view(3, 1, 1)
    for change in ({}, {option: CHANGES[name][option]}):
        x = nn.Parameter(start.clone())
        options: dict[str, Any] = {"lr": 0.1, **how(backend)}
        if name != "LARS":
            options["eps"] = 1e-3
        given: dict[str, Any] = {"params": [x], **(change if per_group else {})}
        optimizer = make([given], **(options if per_group else {**options, **change}))
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        ends.append(x.detach())
    assert not torch.allclose(ends[0], ends[1], rtol=1e-4)


def test_what_waits_for_the_host_is_refused_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: parameters say that they are on one, and the stream that it is being captured."""

    class OnCuda(torch.Tensor):
        is_cuda = True  # pyright: ignore[reportAssignmentType]

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for make in (LAMB, LANS, MAKERS["LARS"]):
        x = torch.ones(2).as_subclass(OnCuda)
        x.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match="CUDA graph is being captured, but capturable is False"):
            make([x]).step()
        optimizer = make([x], capturable=True, lr=torch.tensor(0.1))
        with pytest.raises(RuntimeError, match="lr is a tensor on the CPU"):
            optimizer.step()
        make([x], capturable=True, lr=0.1).step()


def test_a_device_without_float64_is_refused() -> None:
    class OnMps(torch.Tensor):
        device = torch.device("mps")  # pyright: ignore[reportAssignmentType]

    with pytest.raises(NotImplementedError, match="parameter 0 is on mps, which has no float64"):
        LAMB([torch.ones(2).as_subclass(OnMps)])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_grad_norm", torch.tensor([1.0, 2.0])),
        ("norm", np.array([1, 2])),
        ("lr", 10**400),
        ("nesterov", np.array(["first"])),
        ("weight_decay", 10**400),
    ],
)
def test_arrays_and_endless_numbers_are_refused_in_our_words(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is .*; it must be"):
        over("LAMB", **{option: value})


def test_fractions_are_numbers() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = LAMB([x], lr=Fraction(1, 8), max_grad_norm=Fraction(1), eps=Fraction(1, 64))  # pyright: ignore[reportArgumentType]
    x.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.full((2,), 0.875))


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_group_without_parameters_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a parameter group has 'lr' but not 'params'"):
        over(name).add_param_group({"lr": 0.1})
