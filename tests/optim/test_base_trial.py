"""Which bases the general strategy takes and refuses, and that their trial leaves them alone."""

import logging
from typing import Any

import pytest
import torch
from bases import BASES, EachParameter, parameters
from peers import timm_lamb, timm_lookahead
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adafactor,
    AdamW,
    Optimizer,
    Rprop,
    SparseAdam,
)

from largebatch.optim import LAMB, Layerwise


class KeepsTheRate(EachParameter):
    """Takes the rate of its first step for ever."""

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        rate = self.state[p].setdefault("lr", group["lr"])
        p.sub_(rate * gradient)


class RateInTheMomentum(EachParameter):
    """The momentum of LARS 2017."""

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        v = self.state[p].setdefault("v", torch.zeros_like(p))
        v.mul_(0.9).add_(group["lr"] * (gradient + group["weight_decay"] * p))
        p.sub_(v)


class Bounded(EachParameter):
    """No element moves by more than 1, but for the decay."""

    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_((group["lr"] * gradient).clamp(-1, 1))


class Wrapper(Optimizer):
    """Forwards groups and state to what it wraps, as Accelerate's does."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.inner.param_groups = groups


class NoRate(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


class NeedsAClosure(SGD):
    def step(self, closure: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: LBFGS(p), "LBFGS needs a closure"),
        (lambda p: NeedsAClosure(p, lr=0.1), "NeedsAClosure needs a closure"),
        (lambda p: SparseAdam(p), "SparseAdam needs sparse gradients"),
        (lambda p: ASGD(p), "ASGD is not proportional to its learning rate"),
        (lambda p: Rprop(p), "Rprop is not proportional"),
        (lambda p: Adafactor(p), "Adafactor is not proportional"),
        (lambda p: KeepsTheRate(p, lr=0.1), "KeepsTheRate is not proportional"),
        (lambda p: RateInTheMomentum(p, lr=0.1), "RateInTheMomentum is not proportional"),
        # A decay is proportional, and may be so long that it hides the rest of the step.
        (lambda p: Adafactor(p, weight_decay=0.01), "Adafactor is not proportional"),
        (lambda p: Adafactor(p, weight_decay=1.0), "Adafactor is not proportional"),
        (lambda p: RateInTheMomentum(p, lr=0.1, weight_decay=0.1), "RateInTheMomentum is not proportional"),
        (lambda p: RateInTheMomentum(p, lr=0.1, weight_decay=10.0), "RateInTheMomentum is not proportional"),
        (lambda p: Bounded(p, lr=0.1, weight_decay=0.001), "Bounded is not proportional"),
        (lambda p: Bounded(p, lr=0.1, weight_decay=1.0), "Bounded is not proportional"),
        (
            lambda p: Wrapper(SGD(p, lr=0.1)),
            "Wrapper is a wrapper of an optimizer; base_optimizer must be the optimizer",
        ),
        (lambda p: NoRate(p), "NoRate has a parameter group without lr"),
        (lambda p: LAMB(p), "base_optimizer is a LAMB, which is layerwise already"),
        (lambda p: Layerwise(SGD(p)), "which is layerwise already"),
        (lambda p: timm_lamb()(p), "Lamb has an option max_grad_norm of its own"),
        (lambda p: p, "base_optimizer is of type list; it must be an object of a torch.optim.Optimizer class"),
        (lambda p: SGD, "base_optimizer is the class SGD; it must be an object"),
        (lambda p: AdamW(p, differentiable=True), "base optimizer has differentiable=True"),
    ],
)
def test_what_gives_no_direction_is_refused(make: Any, message: str) -> None:
    made = parameters(torch.float32)
    before = [p.detach().clone() for p in made]
    base = make(made)
    with pytest.raises(ValueError, match=message):
        Layerwise(base)
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_what_the_base_has_to_have_too_is_said(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=True: the base optimizer has to have it too"):
        Layerwise(SGD(parameters()), capturable=name == "capturable", differentiable=name == "differentiable")


@pytest.mark.parametrize("name", BASES)
def test_the_trial_leaves_the_base_alone(name: str) -> None:
    made = parameters(torch.float32)
    base = BASES[name](made)
    if name == "own":
        for p in made:
            p.grad = torch.ones_like(p)
        base.step()  # one that has gone on before
    state = {
        p: {key: torch.as_tensor(value).clone() for key, value in values.items()} for p, values in base.state.items()
    }
    grads, weights = [p.grad for p in made], [p.detach().clone() for p in made]
    seen: list[Any] = []
    base.register_step_post_hook(lambda *_: seen.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(base, 1)
    counter = torch.get_rng_state()
    Layerwise(base)
    assert torch.equal(torch.get_rng_state(), counter)
    assert not seen
    assert scheduler.last_epoch == 0
    assert [p.grad for p in made] == grads
    assert all(torch.equal(p, old) for p, old in zip(made, weights, strict=True))
    assert state.keys() == base.state.keys()
    assert all(
        torch.equal(torch.as_tensor(base.state[p][key]), value) for p in state for key, value in state[p].items()
    )
    assert base.param_groups[0]["lr"] == 0.1


class Upset(SGD):
    """Its step needs something that a copy does not have."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.mine = {id(p) for group in self.param_groups for p in group["params"]}

    def step(self, closure: Any = None) -> Any:
        assert all(id(p) in self.mine for group in self.param_groups for p in group["params"])
        return super().step(closure)


def test_a_base_that_only_the_trial_upsets_is_taken_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    made = parameters(torch.float32)
    optimizer = Layerwise(Upset(made))
    assert "could not try whether the step of Upset is proportional" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    for p in made:
        p.grad = torch.ones_like(p)
    optimizer.step()
    half = parameters(torch.bfloat16)
    with pytest.raises(AssertionError):
        Layerwise(Upset(half)).init_state()
    assert half[0].grad is None


class Counts(SGD):
    """Has attributes, a tensor in its groups, and its parameters a second time."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.seen: list[int] = []
        self.count = torch.zeros(())
        self.again = [p for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            group["k"] = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen.append(1)
        self.count += 1
        for group in self.param_groups:
            group["k"] += 1
        for p in self.again:
            if p.grad is not None:
                p.sub_(self.param_groups[0]["lr"] * p.grad)


def test_the_trial_reaches_nothing_of_the_base_by_another_way() -> None:
    made = parameters(torch.float32)
    before = [p.detach().clone() for p in made]
    for p in made:
        p.grad = torch.ones_like(p)
    base = Counts(made)
    optimizer = Layerwise(base)
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))
    assert base.seen == []
    assert float(base.count) == float(base.param_groups[0]["k"]) == 0
    assert base.again[0] is made[0]
    optimizer.step()
    torch.testing.assert_close((made[0].detach() - before[0]).norm(), 0.1 * before[0].norm())


def test_a_base_within_a_base_is_left_alone_by_the_trial() -> None:
    made = parameters(torch.float32)
    before = [p.detach().clone() for p in made]
    for p in made:
        p.grad = torch.ones_like(p)
    inner = SGD(made, lr=0.1, momentum=0.9)
    Layerwise(timm_lookahead()(inner))
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))
    assert not inner.state


def test_wrappers_are_refused_before_they_are_emptied() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        inner = AdamW(parameters(torch.float32))
        wrapped = Accelerator(cpu=True).prepare(inner)
        with pytest.raises(ValueError, match="AcceleratedOptimizer is a wrapper"):
            Layerwise(wrapped)
        assert len(inner.param_groups) == 1
    finally:
        AcceleratorState._reset_state(True)


def test_a_refused_wrapping_leaves_the_base_as_it_was_and_a_second_one_is_refused() -> None:
    made = parameters()
    base = AdamW(made)
    keys = set(base.param_groups[0])
    with pytest.raises(ValueError, match="norm is 3"):
        Layerwise(base, norm=3)  # pyright: ignore[reportArgumentType]
    assert set(base.param_groups[0]) == keys
    optimizer = Layerwise(base, norm=2, max_grad_norm=1.0)
    assert optimizer.param_groups[0]["max_grad_norm"] == 1.0
    with pytest.raises(ValueError, match="this AdamW is the base of a Layerwise already; make another"):
        Layerwise(base, max_grad_norm=2.0)


def test_a_misspelt_option_in_a_group_of_the_base_is_refused() -> None:
    base = AdamW([{"params": parameters(), "max_grad_nrm": 1.0}])
    with pytest.raises(ValueError, match="'max_grad_nrm'; did you mean 'max_grad_norm'"):
        Layerwise(base)


class BoundedWhereAsked(EachParameter):
    def move_(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        step = group["lr"] * gradient
        p.sub_(step.clamp(-1, 1) if group.get("bounded") else step)


def test_every_group_of_a_base_is_tried() -> None:
    made = parameters()
    Layerwise(BoundedWhereAsked([{"params": [p]} for p in made], lr=0.1))
    groups = [{"params": [p], "bounded": p is made[-1]} for p in made]
    with pytest.raises(ValueError, match="BoundedWhereAsked is not proportional"):
        Layerwise(BoundedWhereAsked(groups, lr=0.1))


def test_groups_of_empty_parameters_are_passed_over_by_the_trial() -> None:
    x = nn.Parameter(torch.ones(3))
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.empty(0))]}, {"params": []}, {"params": [x]}]
    optimizer = Layerwise(AdamW(groups, lr=0.1))
    x.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close((x.detach() - 1).norm(), torch.tensor(0.1 * 3**0.5))
