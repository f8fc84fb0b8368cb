"""The general strategy: what it equals, what it asks of its base, and what it leaves alone."""

from typing import Any

import pytest
import torch
from bases import BASES, EachParameter, Lion, parameters, run
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adagrad,
    AdamW,
    NAdam,
)

from largebatch.optim import LAMB, LARS, Layerwise, base_probe, layer_groups


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("fused", [False, True])
def test_over_adamw_it_is_lamb(dtype: torch.dtype, masters: bool, fused: bool) -> None:
    if fused and dtype.is_complex:
        dtype = torch.float32  # no fused kernel takes complex parameters
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours: dict[str, Any] = {"max_grad_norm": 2.0, "master_weights": masters}
    one, two = parameters(dtype), parameters(dtype)
    lamb = run(LAMB(one, **options, **ours), one)
    general = run(Layerwise(AdamW(two, **options, fused=fused), **ours), two)
    tolerance = {torch.float64: 1e-12, torch.complex64: 1e-5, torch.float32: 1e-5}.get(dtype, 2e-2)
    for a, b in zip(lamb, general, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("nesterov", [False, True])
def test_over_sgd_it_is_algorithm_1_of_lars(nesterov: bool) -> None:
    """Its momentum is 1 / (1 - mu) times as long, which the ratio takes out."""
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    one, two = parameters(), parameters()
    lars = run(LARS(one, **options, nesterov=nesterov, max_grad_norm=2.0), one)
    general = run(Layerwise(SGD(two, **options, nesterov=False), max_grad_norm=2.0), two)
    for a, b in zip(lars, general, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12) is not nesterov
    three = parameters()
    # Nesterov's d + mu * m' with m' = m / (1 - mu) is 1 / (1 - mu) times mu * m + (1 - mu) * d as well.
    ahead = run(Layerwise(SGD(three, **options, nesterov=True), max_grad_norm=2.0), three)
    for a, b in zip(lars, ahead, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12) is nesterov


def test_small_steps_of_the_base_are_not_lost_in_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base steps at a rate at which the difference is exact; at rate 1 a float32 one would not be."""
    errors = {}
    for rate in (base_probe.BASE_RATE, 1.0):
        for module in ("base_step", "layerwise"):
            monkeypatch.setattr(f"largebatch.optim.{module}.BASE_RATE", rate)
        exact, made = parameters(), parameters(torch.float32)
        options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
        expected = run(LARS(exact, **options), exact, size=1e-6)
        found = run(Layerwise(SGD(made, **options)), made, size=1e-6)
        errors[rate] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert errors[base_probe.BASE_RATE] < 2e-6
    assert errors[1.0] > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BASES)
def test_any_base_moves_each_layer_by_lr_times_its_norm(name: str, dtype: torch.dtype) -> None:
    made = parameters(dtype)
    optimizer = Layerwise(BASES[name](made), master_weights=True)
    direct = parameters(torch.float32)
    twin = BASES[name](direct)
    for group in twin.param_groups:
        group["lr"] = 1.0
    for step in range(3):
        before = [optimizer.state.get(p, {}).get("master", p).detach().float().clone() for p in made]
        for p in made:
            p.grad = torch.full_like(p, 0.25) + p.detach() ** 2
        optimizer.step()
        for p, old in zip(made, before, strict=True):
            now = optimizer.state[p].get("master", p).detach().float()
            torch.testing.assert_close((now - old).norm() / old.norm(), torch.tensor(0.1), rtol=1e-4, atol=0)
        if step == 0 and dtype == torch.float32:  # the direction is the base's own, as it would have gone at rate 1
            for p, q in zip(made, direct, strict=True):
                q.grad = p.grad
            twin.step()
            for p, q, old in zip(made, direct, before, strict=True):
                cosine = torch.nn.functional.cosine_similarity((p - old).flatten(), (q - old).flatten(), dim=0)
                assert float(cosine.detach()) > 1 - 1e-6
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_ratio_of_its_own_for_each_group() -> None:
    made = parameters()
    groups = [{"params": made[:1], "adapt": False}, {"params": made[1:2], "lr": 0.3}, {"params": made[2:]}]
    optimizer = Layerwise(SGD(groups, lr=0.1), norm=1)
    before = [p.detach().clone() for p in made]
    for p in made:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    torch.testing.assert_close(made[0].detach(), before[0] - 0.1 * 0.5)
    for p, old, lr in zip(made[1:], before[1:], (0.3, 0.1), strict=True):
        torch.testing.assert_close((p.detach() - old).abs().sum(), lr * old.abs().sum())
    assert optimizer.param_groups[0]["norm"] == 1


class Elsewhere(SGD):
    """Keeps its parameters where no stand-in can take their place."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.kept = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.kept:
            if p.grad is not None:
                p.sub_(self.param_groups[0]["lr"] * p.grad)


def test_parameters_that_a_base_keeps_elsewhere_work_in_full_precision_only() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = parameters(dtype)
        optimizer = Layerwise(Elsewhere(made))
        before = made[0].detach().clone()
        made[0].grad = torch.ones_like(made[0])
        if dtype == torch.float32:
            optimizer.step()
            torch.testing.assert_close((made[0].detach() - before).norm(), 0.1 * before.norm())
        else:
            with pytest.raises(RuntimeError, match="Elsewhere moved half-precision parameters that it keeps elsewhere"):
                optimizer.step()


class Fails(SGD):
    def step(self, closure: Any = None) -> Any:
        super().step()
        if getattr(self, "armed", False):
            raise OSError("in the middle")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_has_changed_when_the_base_raises(dtype: torch.dtype) -> None:
    made = parameters(dtype)
    base = Fails(made, lr=0.1, momentum=0.9)
    optimizer = Layerwise(base, max_grad_norm=0.1, master_weights=True)
    for p in made:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before, grads = [p.detach().clone() for p in made], [p.grad for p in made]
    base.armed = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match="in the middle"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))
    assert all(p.grad is g for p, g in zip(made, grads, strict=True))
    assert base.param_groups[0]["params"] == made
    assert base.param_groups[0]["lr"] == 0.1
    assert set(base.state) == set(made)
    base.armed = False  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


def test_groups_and_state_are_the_bases_own() -> None:
    made = parameters()
    base = AdamW(made, lr=0.1)
    optimizer = Layerwise(base, adapt=False)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 0.5**step)
    for p in made:
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    optimizer.param_groups = [dict(base.param_groups[0])]
    optimizer.state = {}
    assert base.param_groups is optimizer.param_groups
    assert base.state == {}
    assert "Layerwise over AdamW" in repr(optimizer)


def test_the_bases_hooks_see_their_rate_and_its_step() -> None:
    made = parameters()
    base = SGD(made, lr=0.1)
    seen: list[float] = []
    base.register_step_pre_hook(lambda which, *_: seen.append(which.param_groups[0]["lr"]))
    optimizer = Layerwise(base)
    made[0].grad = torch.ones_like(made[0])
    optimizer.step()
    assert seen == [base_probe.BASE_RATE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_dict_of_the_base_alone_loads(dtype: torch.dtype) -> None:
    made = parameters(dtype)
    base = AdamW(made, lr=0.3, weight_decay=0.2)
    for p in made:
        p.grad = torch.full_like(p, 0.3)
    base.step()
    twins = parameters(dtype)
    optimizer = Layerwise(AdamW(twins), norm=1, max_grad_norm=2.0)
    optimizer.load_state_dict(base.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["norm"], group["max_grad_norm"]) == (0.3, 0.2, 1, 2.0)
    assert optimizer.state[twins[0]]["exp_avg"].dtype == torch.float32
    for p in twins:
        p.grad = torch.full_like(p, 0.3)
    optimizer.step()
    assert float(optimizer.state[twins[0]]["step"]) == 2
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(AdamW(parameters(count=2)).state_dict())


def test_a_half_precision_state_from_before_is_taken_over_in_float32() -> None:
    made = parameters(torch.bfloat16)
    base = AdamW(made, lr=0.1)
    for p in made:
        p.grad = torch.full_like(p, 0.3)
    base.step()
    assert base.state[made[0]]["exp_avg"].dtype == torch.bfloat16
    optimizer = Layerwise(base)
    optimizer.step()
    assert base.state[made[0]]["exp_avg"].dtype == torch.float32


def test_init_state_refuses_a_base_that_would_remember_it() -> None:
    for base in (NAdam(parameters()), SGD(parameters(), momentum=0.9, dampening=0.5)):
        optimizer = Layerwise(base)
        with pytest.raises(NotImplementedError, match=f"state of {type(base).__name__} cannot be created"):
            optimizer.init_state()
        assert not any(base.state.values())
    done = Layerwise(NAdam(made := parameters()))
    for p in made:
        p.grad = torch.ones_like(p)
    done.step()
    done.init_state()


def test_layer_groups_work_through_the_base() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = Layerwise(AdamW(layer_groups(model, 0.1), lr=0.01))
    model(torch.ones(2, 3)).pow(2).sum().backward()
    optimizer.step()
    ratios = optimizer.trust_ratios()
    assert float(ratios["0.bias"]) == float(ratios["1.weight"]) == 1
    assert float(ratios["0.weight"]) != 1
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


class MovesAll(SGD):
    """Decays every parameter of its groups, with a gradient or without."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * 0.1)
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_without_a_gradient_is_kept_from_the_base(dtype: torch.dtype) -> None:
    made = parameters(dtype)
    before = [p.detach().clone() for p in made]
    optimizer = Layerwise(MovesAll(made, lr=0.1))
    made[0].grad = torch.ones_like(made[0])
    optimizer.step()
    assert not torch.equal(made[0], before[0])
    assert all(torch.equal(p, old) for p, old in zip(made[1:], before[1:], strict=True))
    assert optimizer.param_groups[0]["params"] == made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_init_state_completes_what_some_parameters_have(dtype: torch.dtype) -> None:
    small, large = nn.Parameter(torch.ones(2, dtype=dtype)), nn.Parameter(torch.ones(5, dtype=dtype))
    optimizer = Layerwise(AdamW([small, large], lr=0.1), master_weights=True)
    small.grad = torch.ones_like(small)
    optimizer.step()
    held, weights = optimizer.state[small]["exp_avg"].clone(), small.detach().clone()
    optimizer.init_state()
    assert torch.equal(small, weights), "it has a gradient, and takes no step"
    assert float(optimizer.state[small]["step"]) == 1
    assert float(optimizer.state[large]["step"]) == 0
    assert torch.equal(optimizer.state[small]["exp_avg"], held)
    assert all(("master" in optimizer.state[p]) is (dtype == torch.bfloat16) for p in (small, large))


def test_init_state_gives_masters_where_the_base_has_made_its_state_itself() -> None:
    x = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Layerwise(Adagrad([x], lr=0.1), master_weights=True)
    assert optimizer.state[x]["sum"].dtype == torch.bfloat16
    optimizer.init_state()
    assert optimizer.state[x]["sum"].dtype == optimizer.state[x]["master"].dtype == torch.float32


def test_init_state_without_data() -> None:
    x = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = Layerwise(AdamW([x]))
    optimizer.init_state()
    assert optimizer.state[x]["exp_avg"].is_meta


class Nested(EachParameter):
    """Has tensors of other shapes, in a list, as bases with preconditioners do."""

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["Q"] = [torch.eye(p.shape[0]), {"half": torch.ones(3, dtype=torch.float32) / 3}]
            state["rows"] = torch.ones(p.shape[0]) / 3
        state["Q"][0].mul_(0.5)
        p.sub_(group["lr"] * gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nested_state_is_copied_and_keeps_its_dtypes(dtype: torch.dtype) -> None:
    made, twins = parameters(dtype), parameters(dtype)
    optimizer, other = Layerwise(Nested(made, lr=0.1)), Layerwise(Nested(twins, lr=0.1))
    for p, q in zip(made, twins, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    one, two = optimizer.state[made[0]], other.state[twins[0]]
    assert torch.equal(one["Q"][0], two["Q"][0])
    assert two["Q"][1]["half"].dtype == two["rows"].dtype == torch.float32
    assert torch.equal(two["rows"], one["rows"])
    other.step()
    assert not torch.equal(one["Q"][0], two["Q"][0])


def test_a_capturable_base_takes_a_state_dict_that_is_not() -> None:
    """How to compute belongs to the object. (On a CPU torch's capturable AdamW cannot step.)"""
    made = parameters(torch.float32)
    saved = AdamW(made)
    saved.step()
    optimizer = Layerwise(AdamW(parameters(torch.float32), capturable=True), capturable=True)
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.param_groups[0]["capturable"] is True


def test_a_gradient_of_another_dtype_is_stepped_in_the_parameters_own() -> None:
    ends = []
    for other in (False, True):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        if other:
            x.grad_dtype = torch.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
        optimizer = Layerwise(AdamW([x], lr=0.1), max_grad_norm=1.0)
        x.grad = torch.tensor([0.5, 0.25], dtype=torch.bfloat16 if other else torch.float32)
        optimizer.step()
        assert x.grad.dtype == (torch.bfloat16 if other else torch.float32)
        ends.append(x.detach().clone())
    torch.testing.assert_close(*ends)


def test_a_base_that_cannot_ascend_is_given_the_negative() -> None:
    ends = []
    for maximize in (False, True):
        made = parameters()
        optimizer = Layerwise(Lion(made, lr=0.1), maximize=maximize)
        for p in made:
            p.grad = torch.linspace(-1, 2, p.numel(), dtype=p.dtype).view(p.shape) * (-1 if maximize else 1)
        optimizer.step()
        ends.append([p.detach() for p in made])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class CountsInIntegers(EachParameter):
    """Its rule depends on a count that is no tensor."""

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        p.sub_(group["lr"] * (gradient + p / state["step"]))


def test_a_count_that_is_no_tensor_is_taken_back_too() -> None:
    made = parameters()
    optimizer = Layerwise(CountsInIntegers(made, lr=0.1))
    optimizer.init_state()
    assert [optimizer.state[p]["step"] for p in made] == [0, 0, 0]
