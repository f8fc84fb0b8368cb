"""The state of LAMB: dtypes, resuming to the bit, state dicts of other makers, copies."""

import copy
import io
import pickle
from typing import Any

import lamb_zoo as zoo
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from largebatch.optim import LAMB, layer_groups


def saved_and_loaded(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Send a state dict through a file as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("backend", [False, True], ids=["plain", "foreach"])
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_resuming_is_bit_identical(dtype: torch.dtype, masters: bool, backend: bool) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    optimizer = zoo.optimizer_over(made, foreach=backend, master_weights=masters)
    saved: dict[str, Any] = {}
    resumed: list[nn.Parameter] = []
    for step in zoo.run(made, optimizer, steps=30):
        if step == 15:
            saved = saved_and_loaded(optimizer.state_dict())
            resumed = [nn.Parameter(p.detach().clone()) for p in made]
    other = zoo.optimizer_over(resumed, foreach=backend, master_weights=masters)
    other.load_state_dict(saved)
    for step in range(16, 31):
        for number, group in enumerate(other.param_groups):
            group["lr"] = zoo.learning_rate(number, step)
        zoo.set_gradients(resumed, zoo.gradients(step))
        other.step()
    for name, a, b in zip(zoo.NAMES, made, resumed, strict=True):
        assert torch.equal(a, b), name
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][key]), (name, key)
            assert value.dtype == other.state[b][key].dtype
    fresh = zoo.optimizer_over(resumed, foreach=backend)  # without the state the next step is another
    before = resumed[0].detach().clone()
    ends = []
    for again in (other, fresh):
        with torch.no_grad():
            resumed[0].copy_(before)
            if masters and "master" in other.state[resumed[0]]:
                other.state[resumed[0]]["master"].copy_(before)
        zoo.set_gradients(resumed, zoo.gradients(31))
        for group in again.param_groups:
            group["lr"] = 0.1
        again.step()
        ends.append(resumed[0].detach().clone())
    assert not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
def test_moments_have_the_dtype_of_the_contract_also_after_loading(dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.ones(3, dtype=dtype))
    x.grad = torch.full_like(x, 0.3)
    optimizer = LAMB([x], master_weights=True)
    optimizer.step()
    wide = {torch.bfloat16: torch.float32, torch.float16: torch.float32}.get(dtype, dtype)
    before = {key: value.clone() for key, value in optimizer.state[x].items()}
    for _ in range(2):
        state = optimizer.state[x]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} | ({"master"} if wide != dtype else set())
        assert all(value.dtype == wide for key, value in state.items() if key != "step")
        assert state["step"].dtype == torch.float32
        assert all(torch.equal(value, before[key]) for key, value in state.items())
        optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    if wide != dtype:  # what torch's own method would have done
        torch.optim.Optimizer.load_state_dict(optimizer, saved_and_loaded(optimizer.state_dict()))
        assert optimizer.state[x]["exp_avg"].dtype == dtype


def test_masters_carry_the_steps_that_half_precision_would_lose() -> None:
    ends = {}
    for masters in (False, True):
        x = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = LAMB([x], lr=1e-3, weight_decay=0.0, master_weights=masters)
        for _ in range(20):
            x.grad = torch.ones_like(x)
            optimizer.step()
        ends[masters] = x.detach().float()
        if masters:
            master = optimizer.state[x]["master"]
            assert torch.equal(master.bfloat16(), x.detach())
            torch.testing.assert_close(master, torch.full((4,), 0.999**20), rtol=1e-5, atol=0)
    assert torch.equal(ends[False], torch.ones(4))
    assert (ends[True] < 0.99).all()


def test_a_master_is_dropped_when_the_option_is_switched_off() -> None:
    x = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = LAMB([x], lr=0.1, master_weights=True)
    for masters in (True, False):
        optimizer.param_groups[0]["master_weights"] = masters
        x.grad = torch.ones_like(x)
        optimizer.step()
        assert ("master" in optimizer.state[x]) is masters


@pytest.mark.parametrize("how", ["for-loop", "foreach", "fused", "capturable step"])
def test_the_state_dict_of_adamw_loads(how: str) -> None:
    torch.manual_seed(0)
    x = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    theirs = torch.optim.AdamW(x, lr=0.01, eps=1e-7, foreach=how == "foreach", fused=how == "fused")
    for _ in range(5):
        for p in x:
            p.grad = torch.randn_like(p)
        theirs.step()
    given = saved_and_loaded(theirs.state_dict())
    if how == "capturable step":
        given["param_groups"][0]["capturable"] = True
    ours = LAMB(x, norm=1, adapt=False)
    ours.load_state_dict(given)
    group = ours.param_groups[0]
    assert (group["lr"], group["eps"], group["norm"], group["adapt"]) == (0.01, 1e-7, 1, False)
    assert (group["fused"], group["foreach"], group["capturable"]) == (None, None, False)
    assert "amsgrad" not in group
    for p in x:
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[p][key], theirs.state[p][key])
            assert ours.state[p][key].data_ptr() != given["state"][0][key].data_ptr()
    # Without the ratio LAMB is AdamW, so that it must go on as AdamW would have.
    twins = [nn.Parameter(p.detach().clone()) for p in x]
    for p, twin in zip(x, twins, strict=True):
        p.grad, twin.grad = torch.ones_like(p), torch.ones_like(p)
    ours.step()
    again = torch.optim.AdamW(twins, foreach=False)
    again.load_state_dict(theirs.state_dict())
    again.step()
    for p, twin in zip(x, twins, strict=True):
        torch.testing.assert_close(p, twin)


def test_amsgrad_and_foreign_states_are_refused_and_nothing_changes() -> None:
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    ours = LAMB([x])
    ours.step()
    before, group = {key: value.clone() for key, value in ours.state[x].items()}, dict(ours.param_groups[0])
    ams = torch.optim.AdamW([x], amsgrad=True)
    sgd = torch.optim.SGD([x], momentum=0.9)
    other_shape = LAMB([other := nn.Parameter(torch.ones(4))])
    other.grad = torch.ones(4)
    zero_eps = torch.optim.AdamW([x], eps=0.0)
    for optimizer, message in (
        (ams, "amsgrad=True"),
        (sgd, "has momentum_buffer but not step, exp_avg, exp_avg_sq"),
        (other_shape, r"exp_avg of parameter 0 has shape \(4,\), the parameter \(3,\)"),
        (zero_eps, "eps is 0.0"),
        (LAMB([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]), "doesn't match the size"),
    ):
        optimizer.step()
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(optimizer.state_dict())
        assert all(torch.equal(ours.state[x][key], value) for key, value in before.items())
        assert ours.param_groups[0] == group


def test_options_that_an_older_file_lacks_keep_their_value() -> None:
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    optimizer = LAMB([{"params": [x], "adapt": False}], max_grad_norm=2.0, foreach=True)
    optimizer.step()
    old = copy.deepcopy(optimizer.state_dict())
    for name in ("adapt", "stacked", "max_grad_norm", "foreach", "norm"):
        del old["param_groups"][0][name]
    optimizer.load_state_dict(old)
    group = optimizer.param_groups[0]
    assert (group["adapt"], group["stacked"], group["max_grad_norm"]) == (False, None, 2.0)
    assert (group["foreach"], group["norm"]) == (True, 2)

    pickled = pickle.loads(pickle.dumps(optimizer))
    for name in ("adapt", "ratio_bounds"):  # as in a pickle of a version that did not have them
        del pickled.defaults[name]
        del pickled.param_groups[0][name]
    again = pickle.loads(pickle.dumps(pickled))
    assert (again.param_groups[0]["adapt"], again.param_groups[0]["ratio_bounds"]) == (True, None)


def test_names_are_kept_in_groups_and_state_dict() -> None:
    made = zoo.parameters(zoo.weights())
    optimizer = zoo.optimizer_over(made)
    names = [
        name for group in saved_and_loaded(optimizer.state_dict())["param_groups"] for name in group["param_names"]
    ]
    assert names == list(zoo.NAMES)


def test_users_hooks_see_plain_tensors_and_may_change_them() -> None:
    x = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    x.grad = torch.ones_like(x)
    optimizer = LAMB([x])
    optimizer.step()
    seen: list[Any] = []

    def before(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append(state_dict["state"][0]["exp_avg"])
        state = {0: {**state_dict["state"][0], "exp_avg": torch.full((3,), 0.1)}}
        return {**state_dict, "state": state}

    def after(changed: torch.optim.Optimizer) -> None:
        seen.append(changed.state[x]["exp_avg"])

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(optimizer.state_dict())
    assert all(isinstance(value, Tensor) for value in seen)
    assert torch.equal(optimizer.state[x]["exp_avg"], torch.full((3,), 0.1))
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


@pytest.mark.parametrize("make", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_alike_and_shares_nothing(make: Any) -> None:
    made = zoo.parameters(zoo.weights(), torch.bfloat16)
    optimizer = zoo.optimizer_over(made, master_weights=True)
    for _ in zoo.run(made, optimizer, steps=5):
        pass
    twin = make(optimizer)
    copies: list[nn.Parameter] = [p for group in twin.param_groups for p in group["params"]]
    zoo.set_gradients(made, zoo.gradients(6))
    zoo.set_gradients(copies, zoo.gradients(6))
    optimizer.step()
    assert not torch.equal(made[0], copies[0])
    twin.step()
    for a, b in zip(made, copies, strict=True):
        assert torch.equal(a, b)
    assert repr(optimizer) == repr(twin)
    assert "ratio_bounds" in repr(optimizer)


def test_init_state_makes_what_a_step_would_and_keeps_what_there_is() -> None:
    x, frozen = nn.Parameter(torch.ones(2, 3).t()), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = LAMB([x, frozen])
    optimizer.init_state()
    state = optimizer.state[x]
    assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
    assert all(not value.any() for value in state.values())
    assert state["exp_avg"].stride() == x.stride()
    assert frozen not in optimizer.state
    x.grad = torch.ones_like(x)
    optimizer.step()
    held = {key: value.clone() for key, value in state.items()}
    optimizer.init_state()
    assert all(torch.equal(optimizer.state[x][key], value) for key, value in held.items())


def test_distributed_checkpoint_initialises_the_state_and_leaves_the_weights() -> None:
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = LAMB(model.named_parameters(), lr=0.5, weight_decay=0.3)
    found = get_optimizer_state_dict(model, optimizer)
    assert set(found["state"]) == {"weight", "bias"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_distributed_checkpoint_resumes_to_the_bit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).bfloat16()

    def made(model: nn.Module) -> LAMB:
        return LAMB(layer_groups(model), lr=0.1, master_weights=True)

    def step(model: nn.Module, optimizer: LAMB) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3, dtype=torch.bfloat16)).square().sum().backward()
        optimizer.step()

    optimizer = made(model)
    for _ in range(3):
        step(model, optimizer)
    twin = copy.deepcopy(model)
    other, fresh = made(twin), copy.deepcopy(model)
    set_optimizer_state_dict(twin, other, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    step(model, optimizer)
    step(twin, other)
    step(fresh, made(fresh))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_frozen_layer_keeps_its_state_and_its_step_count() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = LAMB([x])
    for takes_part in (True, False, False, True):
        x.grad = torch.ones(3) if takes_part else None
        optimizer.step()
    assert float(optimizer.state[x]["step"]) == 2
