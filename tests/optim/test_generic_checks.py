"""The checks that PyTorch has for each of its optimizers, for each of ours, driven by `OptimizerInfo`."""

import copy
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from optimizer_infos import INFOS
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo

CPU = torch.device("cpu")
FLAGS = ("foreach", "fused", "differentiable")


def configurations(flags: bool) -> Iterator[Any]:
    """Yield every optimizer with each of its inputs and, if asked, each of the flags that exclude each other."""
    for info in INFOS:
        for given in info.optim_inputs_func(CPU):
            for flag in ("", *info.supported_impls) if flags else ("",):
                kwargs = {**given.kwargs, **({flag: True} if flag else {"foreach": False} if flags else {})}
                yield pytest.param(info, kwargs, id=f"{info.name}, {given.desc}{', ' * bool(flag)}{flag}")


every_info = pytest.mark.parametrize("info", INFOS, ids=[info.name for info in INFOS])
every_input = pytest.mark.parametrize(("info", "kwargs"), list(configurations(flags=False)))
every_input_and_flag = pytest.mark.parametrize(("info", "kwargs"), list(configurations(flags=True)))


def built(info: OptimizerInfo, parameters: Any, kwargs: dict[str, Any]) -> Any:
    kwargs = {key: value.clone() if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    return info.optim_cls(parameters, **kwargs)  # pyright: ignore[reportCallIssue]


def no_leaf(p: Tensor) -> Tensor:
    """Return a tensor with the values and the requirements of a parameter that autograd lets be stepped in place."""
    p = p.clone()
    p.retain_grad()
    return p


def line(
    dtype: torch.dtype = torch.float64, *, differentiable: bool = False
) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Return the parameters of a linear map and a closure with its loss; no leaves where autograd sees the step."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 5, generator=generator, dtype=torch.float64).to(dtype))
    bias = nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64).to(dtype))
    x = torch.randn(5, generator=generator, dtype=torch.float64).to(dtype)
    parameters = [no_leaf(p) if differentiable else p for p in (weight, bias)]

    def loss() -> Tensor:
        value = (parameters[0].mv(x) + parameters[1]).pow(2).sum()
        for p, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            p.grad = gradient
        return value

    return parameters, loss


def saved_and_loaded(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_info
def test_inputs_leave_the_excluding_flags_to_the_tests(info: OptimizerInfo) -> None:
    for given in info.optim_inputs_func(CPU):
        assert not set(FLAGS) & set(given.kwargs)


@every_info
def test_errors(info: OptimizerInfo) -> None:
    assert info.optim_error_inputs_func is not None
    for case in info.optim_error_inputs_func(CPU, torch.float32):
        given = case.optimizer_error_input
        parameters = [nn.Parameter(torch.ones(2, 2))] if given.params is None else given.params
        if case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                built(info, parameters, given.kwargs)
        else:
            optimizer = built(info, parameters, given.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()


def _line_loss(optimizer: Any, parameters: list[nn.Parameter], x: Tensor) -> Tensor:
    optimizer.zero_grad()
    value = (parameters[0].mv(x) + parameters[1]).pow(2).sum()
    value.backward()
    return value


@every_input
@pytest.mark.parametrize("contiguous", [True, False])
def test_steps_go_in_the_right_direction(info: OptimizerInfo, kwargs: dict[str, Any], contiguous: bool) -> None:
    for schedulers in ((), *info.scheduler_inputs):
        generator = torch.Generator().manual_seed(1)
        weight, bias = torch.randn(10, 5, 2, generator=generator), torch.randn(10, 2, generator=generator)
        weight, bias = (a[..., 0].contiguous() if contiguous else a[..., 0] for a in (weight, bias))
        x = torch.randn(5, generator=generator)
        parameters = [nn.Parameter(weight), nn.Parameter(bias)]
        optimizer = built(info, parameters, kwargs)
        steppers = [make(optimizer) for make in schedulers]

        closure = partial(_line_loss, optimizer, parameters, x)
        first = float(closure().detach())
        for _ in range(20):
            loss_now = optimizer.step(closure)
            for stepper in steppers:
                if isinstance(stepper, ReduceLROnPlateau):
                    stepper.step(loss_now.detach())
                else:
                    stepper.step()
        assert (float(closure().detach()) > first) is bool(kwargs.get("maximize"))


@every_input_and_flag
def test_a_tensor_rate_equals_a_float(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    ends = []
    for rate in (0.01, torch.tensor(0.01, dtype=torch.float64)):
        parameters, loss = line(differentiable=kwargs.get("differentiable", False))
        optimizer = built(info, parameters, {**kwargs, "lr": 0.01})
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(5):
            optimizer.step(loss)
        ends.append([p.detach() for p in parameters])
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-15)


@every_input_and_flag
def test_a_complex_parameter_equals_its_real_view(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(5, 5, dtype=torch.complex128, generator=generator)
    x: Tensor = nn.Parameter(start.clone())
    twin: Tensor = nn.Parameter(torch.view_as_real(start).clone())
    if kwargs.get("differentiable"):
        x, twin = no_leaf(x), no_leaf(twin)
    optimizers = [built(info, [p], kwargs) for p in (x, twin)]
    for _ in range(3):
        x.grad = torch.randn(5, 5, dtype=torch.complex128, generator=generator)
        twin.grad = torch.view_as_real(x.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(torch.view_as_real(x), twin, rtol=1e-13, atol=1e-15)


@every_input
def test_fast_kernels_match_the_loop(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    ends = []
    fused = [{"fused": True}] if "fused" in info.supported_impls else []
    for backend in ({"foreach": False}, {"foreach": True}, *fused):
        parameters, loss = line(differentiable=kwargs.get("differentiable", False))
        optimizer = built(info, parameters, {**kwargs, **backend})
        for _ in range(10):
            optimizer.step(loss)
        ends.append(([p.detach() for p in parameters], [optimizer.state[p] for p in parameters]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-14)


@every_input
def test_foreach_takes_mixed_dtypes_and_any_default_dtype(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            parameters = [p for kind in (torch.float64, torch.float32, torch.bfloat16) for p in line(dtype=kind)[0]]
            optimizer = built(info, parameters, {**kwargs, "foreach": True})
            for _ in range(2):
                for p in parameters:
                    p.grad = torch.full_like(p, 0.5)
                optimizer.step()
            assert all(p.isfinite().all() for p in parameters)
    finally:
        torch.set_default_dtype(default)


@every_info
def test_groups_have_their_own_rate_and_decay(info: OptimizerInfo) -> None:
    for option, values in (("lr", (0.0, 0.1)), ("weight_decay", (0.0, 0.5))):
        parameters, _ = line()
        before = [p.detach().clone() for p in parameters]
        groups = [{"params": [p], option: value} for p, value in zip(parameters, values, strict=True)]
        kwargs = {"lr": 0.1} if option == "weight_decay" else {}
        optimizer = built(info, groups, {**kwargs, "adapt": False})
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.equal(parameters[0], before[0])
        if option == "weight_decay":
            assert not torch.equal(parameters[1], before[1])


@every_input_and_flag
def test_a_step_without_gradients_is_nothing(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, _ = line(differentiable=kwargs.get("differentiable", False))
    before = [p.detach().clone() for p in parameters]
    optimizer = built(info, parameters, kwargs)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert not any(optimizer.state.values())


@every_input_and_flag
def test_zero_gradients_without_decay_are_nothing(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, _ = line(differentiable=kwargs.get("differentiable", False))
    before = [p.detach().clone() for p in parameters]
    optimizer = built(info, parameters, {**kwargs, "weight_decay": 0.0})
    for _ in range(3):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


@every_input_and_flag
def test_empty_parameters_are_taken(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    empty: Tensor = nn.Parameter(torch.empty(5, 0))
    empty = no_leaf(empty) if kwargs.get("differentiable") else empty
    optimizer = built(info, [empty], kwargs)
    empty.grad = torch.empty(5, 0)
    optimizer.step()
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    optimizer.step()


@every_input_and_flag
def test_it_can_be_printed(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, _ = line(differentiable=kwargs.get("differentiable", False))
    text = repr(built(info, [{"params": parameters[:1]}, {"params": parameters[1:]}], kwargs))
    assert "Parameter Group 1" in text
    assert re.search(r"\badapt: (True|False)\b", text)


@every_input_and_flag
def test_state_dicts_are_deterministic_and_go_on(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    kwargs = {key: value for key, value in kwargs.items() if key != "differentiable"}  # autograd's graph is no state
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    for _ in range(5):
        optimizer.step(loss)
    twins, twin_loss = line()
    with torch.no_grad():
        for p, twin in zip(parameters, twins, strict=True):
            twin.copy_(p)
    other = built(info, twins, kwargs)
    given = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(given)
    torch.testing.assert_close(given["state"], optimizer.state_dict()["state"])  # loading has not changed it
    assert str(given["param_groups"]) == str(optimizer.state_dict()["param_groups"])
    for _ in range(5):
        optimizer.step(loss)
        other.step(twin_loss)
        assert all(torch.equal(p, twin) for p, twin in zip(parameters, twins, strict=True))
    one, two = optimizer.state_dict(), other.state_dict()
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)
    # A group that stands twice has the same numbers twice.
    other.param_groups.extend(other.param_groups)
    assert other.state_dict()["param_groups"][-1]["params"] == one["param_groups"][-1]["params"]


@every_input
def test_an_older_state_dict_without_the_flags_loads(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    optimizer.step(loss)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in info.not_og_supported_flags:
            group.pop(flag, None)
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["maximize"] is bool(kwargs.get("maximize"))
    optimizer.step(loss)


@every_input
def test_a_step_that_is_no_tensor_loads(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    optimizer.step(loss)
    old = copy.deepcopy(optimizer.state_dict())
    for state in old["state"].values():
        if "step" in state:
            state["step"] = float(state["step"])
    optimizer.load_state_dict(old)
    optimizer.step(loss)
    if "step" in optimizer.state[parameters[0]]:
        assert float(optimizer.state[parameters[0]]["step"]) == 2


@every_input
@pytest.mark.parametrize("saved_named", [True, False])
@pytest.mark.parametrize("live_named", [True, False])
def test_names_come_and_go_with_state_dicts(
    info: OptimizerInfo, kwargs: dict[str, Any], saved_named: bool, live_named: bool
) -> None:
    def over(named: bool, prefix: str) -> Any:
        parameters, loss = line(differentiable=kwargs.get("differentiable", False))
        names = [f"{prefix}.weight", f"{prefix}.bias"]
        optimizer = built(info, list(zip(names, parameters, strict=True)) if named else parameters, kwargs)
        optimizer.step(loss)
        return optimizer

    saved, live = over(saved_named, "saved"), over(live_named, "live")
    live.load_state_dict(saved.state_dict())
    expected = ["saved.weight", "saved.bias"] if saved_named else ["live.weight", "live.bias"] if live_named else None
    assert live.param_groups[0].get("param_names") == expected


@every_input_and_flag
def test_a_state_dict_survives_a_load_of_weights_only(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    kwargs = {key: value for key, value in kwargs.items() if key != "differentiable"}  # autograd's graph is no state
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    optimizer.step(loss)
    given = optimizer.state_dict()
    found = saved_and_loaded(given)
    torch.testing.assert_close(found["state"], given["state"], rtol=0, atol=0)
    assert str(found["param_groups"]) == str(given["param_groups"])


@every_info
def test_hooks_of_the_step(info: OptimizerInfo) -> None:
    parameters, loss = line()
    optimizer = built(info, parameters, {})
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_pre_hook(lambda which, *_: seen.append(f"all before {which is optimizer}")),
        register_optimizer_step_post_hook(lambda which, *_: seen.append(f"all after {which is optimizer}")),
    ]
    try:
        optimizer.step(loss)
        assert [word for word in seen if "False" not in word] == [
            "all before True",
            "before",
            "after",
            "all after True",
        ]
        for handle in handles[:2]:
            handle.remove()
        seen.clear()
        optimizer.step(loss)
        assert [word for word in seen if "False" not in word] == ["all before True", "all after True"]
    finally:
        for handle in handles:
            handle.remove()


@every_info
def test_hooks_of_state_dicts_come_in_order(info: OptimizerInfo) -> None:
    parameters, loss = line()
    optimizer = built(info, parameters, {})
    optimizer.step(loss)
    seen: list[str] = []

    def note(word: str) -> Callable[..., None]:
        return lambda *_: seen.append(word)

    for register in (
        optimizer.register_state_dict_pre_hook,
        optimizer.register_state_dict_post_hook,
        optimizer.register_load_state_dict_pre_hook,
        optimizer.register_load_state_dict_post_hook,
    ):
        name = register.__name__.removeprefix("register_").removesuffix("_hook")
        register(note(f"{name} 2"))
        register(note(f"{name} 1"), prepend=True)
    state_dict = optimizer.state_dict()
    optimizer.load_state_dict(state_dict)
    stages = ["state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"]
    assert seen == [f"{stage} {number}" for stage in stages for number in (1, 2)]


@every_input
def test_a_deep_copy_has_all_public_attributes(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    optimizer.step(loss)
    twin = copy.deepcopy(optimizer)

    def public(a: Any) -> set[str]:
        return {name for name in a.__dict__ if not name.startswith("_")}

    assert public(optimizer) == public(twin)
    twin.step()


@every_input
def test_the_state_is_not_empty_after_a_step(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    parameters, loss = line(differentiable=kwargs.get("differentiable", False))
    optimizer = built(info, parameters, kwargs)
    optimizer.step(loss)
    assert all(bool(optimizer.state[p]) is (kwargs.get("momentum") != 0) for p in parameters)
    assert all(value is not None for p in parameters for value in optimizer.state[p].values())
