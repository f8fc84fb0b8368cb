"""The state of every optimizer: dtypes, resuming to the bit, copies, hooks, checkpoints."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from rules import CASES, MAKERS, Case
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from largebatch.optim import LAMB, Layerwise, layer_groups

every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def saved_and_loaded(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Send a state dict through a file as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def built(case: Case, made: list[nn.Parameter], **options: Any) -> Any:
    return case.build(zoo.groups_over(made, case.option_sets["everything"]), **options)


@pytest.mark.parametrize("backend", [False, True], ids=["plain", "foreach"])
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_case
def test_resuming_is_bit_identical(case: Case, dtype: torch.dtype, masters: bool, backend: bool) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    optimizer = built(case, made, foreach=backend, master_weights=masters)
    saved: dict[str, Any] = {}
    resumed: list[nn.Parameter] = []
    for step in zoo.run(made, optimizer, steps=30):
        if step == 15:
            saved = saved_and_loaded(optimizer.state_dict())
            resumed = [nn.Parameter(p.detach().clone()) for p in made]
    other = built(case, resumed, foreach=backend, master_weights=masters)
    other.load_state_dict(saved)
    for step in range(16, 31):
        for number, group in enumerate(other.param_groups):
            group["lr"] = zoo.learning_rate(number, step)
        zoo.set_gradients(resumed, zoo.gradients(step))
        other.step()
    for name, a, b in zip(zoo.NAMES, made, resumed, strict=True):
        assert torch.equal(a, b), name
        for key, value in optimizer.state[a].items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other.state[b][key]), (name, key)
                assert value.dtype == other.state[b][key].dtype
    fresh = built(case, resumed, foreach=backend)  # without the state the next step is another
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


@every_maker
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
def test_moments_have_the_dtype_of_the_contract_also_after_loading(
    make: Callable[..., Any], dtype: torch.dtype, capturable: bool
) -> None:
    x = nn.Parameter(torch.ones(3, dtype=dtype))
    x.grad = torch.full_like(x, 0.3)
    layerwise = "layerwise" in repr(make)
    optimizer = make([x], master_weights=True, capturable=capturable and not layerwise)
    optimizer.step()
    wide = WIDE.get(dtype, dtype)
    before = {key: value.clone() for key, value in optimizer.state[x].items()}
    assert ("master" in before) is (wide != dtype)
    for _ in range(2):
        state = optimizer.state[x]
        assert set(state) == set(before)
        assert all(value.dtype == wide for key, value in state.items() if key != "step")
        assert state.get("step", torch.zeros(())).dtype == torch.float32
        assert all(torch.equal(value, before[key]) for key, value in state.items())
        optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    if wide != dtype and not layerwise:  # what torch's own method would have done
        torch.optim.Optimizer.load_state_dict(optimizer, saved_and_loaded(optimizer.state_dict()))
        assert optimizer.state[x]["master"].dtype == dtype


@every_maker
def test_masters_carry_the_steps_that_half_precision_would_lose(make: Callable[..., Any]) -> None:
    ends = {}
    master = torch.empty(0)
    for masters in (False, True):
        x = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = make([x], lr=1e-3, weight_decay=0.0, master_weights=masters)
        for _ in range(20):
            x.grad = torch.ones_like(x)
            optimizer.step()
        ends[masters] = x.detach().float()
        if masters:
            master = optimizer.state[x]["master"]
            assert torch.equal(master.bfloat16(), x.detach())
            assert (master < 1).all()
    assert torch.equal(ends[False], torch.ones(4))
    assert master.max() < 1 - 1e-5
    if "2017" not in repr(make):
        torch.testing.assert_close(master, torch.full((4,), 0.999**20), rtol=1e-5, atol=0)


@every_maker
def test_a_master_is_dropped_when_the_option_is_switched_off(make: Callable[..., Any]) -> None:
    x = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = make([x], lr=0.1, master_weights=True)
    for masters in (True, False):
        optimizer.param_groups[0]["master_weights"] = masters
        x.grad = torch.ones_like(x)
        optimizer.step()
        assert ("master" in optimizer.state[x]) is masters


def test_without_momentum_there_is_no_buffer() -> None:
    for rule in ("algorithm1", "2017", "2017-lr-outside"):
        x = nn.Parameter(torch.ones(4))
        optimizer = MAKERS["LARS"]([x], lr=0.1, momentum=0.0, rule=rule)
        for momentum, keys in ((0.0, set()), (0.9, {"momentum_buffer"}), (0.0, set())):
            optimizer.param_groups[0]["momentum"] = momentum
            x.grad = torch.ones_like(x)
            optimizer.step()
            assert set(optimizer.state[x]) == keys


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


@every_case
def test_names_are_kept_in_groups_and_state_dict(case: Case) -> None:
    optimizer = built(case, zoo.parameters(zoo.weights()))
    groups = saved_and_loaded(optimizer.state_dict())["param_groups"]
    assert [name for group in groups for name in group["param_names"]] == list(zoo.NAMES)


@pytest.mark.parametrize("name", ["LAMB", "Layerwise AdamW"])
def test_users_hooks_see_plain_tensors_and_may_change_them(name: str) -> None:
    x = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    x.grad = torch.ones_like(x)
    optimizer = MAKERS[name]([x])
    optimizer.step()
    seen: list[Any] = []

    def before(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append(state_dict["state"][0]["exp_avg"])
        state = {0: {**state_dict["state"][0], "exp_avg": torch.full((3,), 0.1)}}
        return {**state_dict, "state": state}

    def after(changed: torch.optim.Optimizer) -> None:
        seen.append(changed.state[x]["exp_avg"])
        assert seen[-1].dtype == torch.float32, "torch's cast is undone before"

    def told(_: Any, state_dict: dict[str, Any] | None = None) -> None:
        seen.append(torch.zeros(()) if state_dict is None else state_dict["state"][0]["exp_avg"])

    optimizer.register_state_dict_pre_hook(told)
    optimizer.register_state_dict_post_hook(told)
    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(seen) == 4
    assert all(isinstance(value, Tensor) for value in seen)
    assert torch.equal(optimizer.state[x]["exp_avg"], torch.full((3,), 0.1))
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


@every_case
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_alike_and_shares_nothing(case: Case, duplicate: Any) -> None:
    made = zoo.parameters(zoo.weights(), torch.bfloat16)
    optimizer = built(case, made, master_weights=True)
    for _ in zoo.run(made, optimizer, steps=5):
        pass
    twin = duplicate(optimizer)
    copies: list[nn.Parameter] = [p for group in twin.param_groups for p in group["params"]]
    assert all(a is not b for a, b in zip(made, copies, strict=True))
    zoo.set_gradients(made, zoo.gradients(6))
    zoo.set_gradients(copies, zoo.gradients(6))
    optimizer.step()
    assert not torch.equal(made[0], copies[0])
    twin.step()
    for a, b in zip(made, copies, strict=True):
        assert torch.equal(a, b)
    assert repr(optimizer) == repr(twin)
    assert "ratio_bounds" in repr(optimizer)


@every_maker
def test_init_state_makes_what_a_step_would_and_keeps_what_there_is(make: Callable[..., Any]) -> None:
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ends = []
    made_ahead: set[str] = set()
    for ahead in (False, True):
        x, frozen = nn.Parameter(start.clone().t()), nn.Parameter(torch.ones(2), requires_grad=False)
        half = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        optimizer = make([x, frozen, half], lr=0.1, master_weights=True)
        if ahead:
            optimizer.init_state()
            assert torch.equal(x, start.t())
            assert x.grad is None
            assert optimizer.param_groups[0]["lr"] == 0.1
            state = optimizer.state[x]
            assert all(not value.any() for value in state.values())
            assert all(value.stride() == x.stride() for key, value in state.items() if key != "step")
            assert optimizer.state[half]["master"].dtype == torch.float32
            made_ahead = set(state)
        assert not optimizer.state.get(frozen)
        for number in (1, 2):
            x.grad = torch.full_like(x, 0.5) * number + start.t()
            half.grad = torch.ones_like(half)
            optimizer.step()
        ends.append((x.detach().clone(), half.detach().clone()))
        assert not ahead or set(optimizer.state[x]) == made_ahead
        held = {key: value.clone() for key, value in optimizer.state[x].items()}
        optimizer.init_state()
        assert all(torch.equal(optimizer.state[x][key], value) for key, value in held.items())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_maker
def test_distributed_checkpoint_initialises_the_state_and_leaves_the_weights(make: Callable[..., Any]) -> None:
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = make(model.named_parameters(), lr=0.5, weight_decay=0.3)
    found = get_optimizer_state_dict(model, optimizer)
    assert set(found["state"]) == {"weight", "bias"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert optimizer.param_groups[0]["lr"] == 0.5


@every_maker
def test_distributed_checkpoint_resumes_to_the_bit(make: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).bfloat16()

    def made(model: nn.Module) -> Any:
        return make(layer_groups(model), lr=0.1, master_weights=True)

    def step(model: nn.Module, optimizer: Any) -> None:
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


@every_maker
def test_a_frozen_layer_keeps_its_state(make: Callable[..., Any]) -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = make([x])
    held: dict[str, Tensor] = {}
    for takes_part in (True, False, False, True):
        x.grad = torch.ones(3) if takes_part else None
        optimizer.step()
        if not takes_part:
            assert all(torch.equal(optimizer.state[x][key], value) for key, value in held.items())
        held = {key: value.clone() for key, value in optimizer.state[x].items()}
    assert float(held.get("step", 2)) == 2


def test_the_count_of_steps_follows_the_parameter_when_capturable() -> None:
    x = nn.Parameter(torch.zeros(3, device="meta"))
    x.grad = torch.zeros_like(x)
    for capturable, device in ((False, "cpu"), (True, "meta")):
        optimizer = LAMB([x], capturable=capturable)
        optimizer.init_state()
        assert optimizer.state[x]["step"].device.type == device
    later = LAMB([x])
    later.init_state()
    later.param_groups[0]["capturable"] = True
    later.init_state()
    assert later.state[x]["step"].device.type == "meta"
    earlier = LAMB([x])
    earlier.init_state()
    optimizer.load_state_dict(earlier.state_dict())
    assert optimizer.state[x]["step"].device.type == "meta"
    assert optimizer.param_groups[0]["capturable"]


def test_a_file_whose_options_do_not_fit_is_refused_and_nothing_changes() -> None:
    x = nn.Parameter(torch.ones(4))
    x.grad = torch.ones(4)
    for optimizer in (LAMB([x], lr=0.1), Layerwise(torch.optim.AdamW([x], lr=0.1))):
        optimizer.step()
        group, held = dict(optimizer.param_groups[0]), optimizer.state[x]["exp_avg"].clone()
        for change, message in (
            ({"stacked": (0, 3)}, r"stacked=\(0, 3\) needs a dimension 0 that 3 divides"),
            ({"lr": torch.tensor(-1.0)}, r"lr is -1\.0"),
            ({"norm": 7}, "norm is 7"),
        ):
            given = copy.deepcopy(optimizer.state_dict())
            given["param_groups"][0].update(change)
            given["state"][0]["exp_avg"] += 1
            with pytest.raises(ValueError, match=message):
                optimizer.load_state_dict(given)
            assert optimizer.param_groups[0] == group
            assert torch.equal(optimizer.state[x]["exp_avg"], held)


def test_a_master_of_another_shape_is_refused() -> None:
    x = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    x.grad = torch.ones_like(x)
    for base in (lambda: LAMB([x], master_weights=True), lambda: Layerwise(torch.optim.SGD([x]), master_weights=True)):
        optimizer = base()
        optimizer.step()
        given = copy.deepcopy(optimizer.state_dict())
        given["state"][0]["master"] = torch.ones(3)
        with pytest.raises(ValueError, match=r"loaded master of parameter 0 has shape \(3,\), the parameter \(4,\)"):
            optimizer.load_state_dict(given)


def test_options_that_a_file_lacks_keep_the_live_value_in_the_general_strategy_too() -> None:
    x = nn.Parameter(torch.ones(4))
    optimizer = Layerwise(torch.optim.AdamW([x]), norm=2)
    optimizer.param_groups[0].update(norm=1, max_grad_norm=3.0)
    given = copy.deepcopy(optimizer.state_dict())
    for name in ("norm", "max_grad_norm", "adapt"):
        del given["param_groups"][0][name]
    optimizer.load_state_dict(given)
    group = optimizer.param_groups[0]
    assert (group["norm"], group["max_grad_norm"], group["adapt"]) == (1, 3.0, True)


def test_names_that_repeat_are_not_used() -> None:
    groups = [{"params": [("x", nn.Parameter(torch.ones(n)))]} for n in (2, 3)]
    assert list(LAMB(groups).trust_ratios()) == ["0", "1"]
