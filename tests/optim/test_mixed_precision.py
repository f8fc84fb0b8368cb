"""The contract of a GradScaler: scaled gradients, and steps that are skipped on the device."""

import copy
from typing import Any

import numpy as np
import pytest
import rules
import torch
import zoo
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from largebatch.optim import LAMB, LANS, LARS, Layerwise

CAPTURABLE = {name: rules.CASES[name] for name in ("LAMB", "LANS", "LARS")}
every_case = pytest.mark.parametrize("case", CAPTURABLE.values(), ids=CAPTURABLE)


def built(case: rules.Case, made: list[nn.Parameter], **options: Any) -> Any:
    return case.build(zoo.groups_over(made, case.option_sets["everything"]), **options)


@every_case
@rules.every_backend
def test_scaled_gradients_and_skipped_steps_equal_the_oracle(case: rules.Case, backend: str) -> None:
    """Every third step has a gradient that is not finite; the oracle does not get to see it."""
    made = zoo.parameters(zoo.weights())
    groups = case.option_sets["everything"]
    ours, oracle = built(case, made, **rules.how(backend), capturable=True), case.judge(zoo.weights(), groups)
    assert ours._step_supports_amp_scaling
    for step in range(1, 20):
        skipped = step % 3 == 1  # the first of all among them
        given = zoo.gradients(step)
        for number, group in enumerate(ours.param_groups):
            group["lr"] = oracle.groups[number]["lr"] = zoo.learning_rate(number, step)
        zoo.set_gradients(made, [g if g is None else 1024 * g for g in given])
        if skipped and made[0].grad is not None:
            made[0].grad[0, 0] = torch.inf if step % 2 else torch.nan
        ours.grad_scale = torch.tensor(1024.0)
        ours.found_inf = torch.tensor(float(skipped))
        if not skipped:
            norm = np.sqrt(sum(float(np.sum(g * g)) for g in given if g is not None))
            np.testing.assert_allclose(float(ours.grad_norm()), norm, rtol=1e-12)
        held = [p.detach().clone() for p in made]
        ours.step()
        if skipped:
            assert all(torch.equal(p, old) for p, old in zip(made, held, strict=True))
            assert all(ratio.isnan().all() for ratio in ours.trust_ratios().values())
        else:
            oracle.step(given)
        for i, (p, x) in enumerate(zip(made, oracle.x, strict=True)):
            np.testing.assert_allclose(p.detach(), x, rtol=1e-11, atol=1e-13, err_msg=f"{zoo.NAMES[i]} at {step}")
            if "step" in ours.state.get(p, {}) and p.numel():
                assert float(ours.state[p]["step"]) == oracle.t[i]


@every_case
@rules.every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_skipped_step_changes_nothing_at_all(case: rules.Case, backend: str, dtype: torch.dtype) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    optimizer = built(case, made, **rules.how(backend), capturable=True, master_weights=True)
    for _ in zoo.run(made, optimizer, steps=8):  # until every layer has its state
        pass
    before = [p.detach().clone() for p in made], copy.deepcopy(optimizer.state_dict())
    zoo.set_gradients(made, zoo.gradients(30))
    for p in made:
        if p.grad is not None and p.grad.numel():
            p.grad.view(-1)[0] = torch.inf
    for found, unchanged in ((1.0, True), (0.0, False)):
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        same = all(torch.equal(p, old) for p, old in zip(made, before[0], strict=True))
        states = zip(optimizer.state_dict()["state"].values(), before[1]["state"].values(), strict=True)
        same_states = all(torch.equal(state[key], old[key]) for state, old in states for key in state)
        assert (same, same_states) == (unchanged, unchanged)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", rules.MAKERS)
def test_a_gradient_scaler_gives_the_steps_of_unscaled_gradients(name: str, capturable: bool) -> None:
    ends = []
    for scaled in (False, True):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        options: dict[str, Any] = {} if name == "LANS" else {"max_grad_norm": 5.0}
        if not name.startswith("Layerwise"):
            options["capturable"] = capturable
        optimizer = rules.MAKERS[name]([x], lr=0.1, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        scaler = GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            overflow = step == 2
            if overflow and not scaled:
                continue
            loss = (x**3).sum() * (torch.inf if overflow else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not overflow:
                schedule.step()
        assert not hasattr(optimizer, "found_inf"), "the scaler takes back what it has set"
        ends.append((x.detach(), float(optimizer.state[x].get("step", 0.0))))
    torch.testing.assert_close(ends[0], ends[1])


class CountsItems:
    """Counts how often a value is read from a tensor while it is active."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = Tensor.item

        def counted(a: Tensor) -> Any:
            self.count += 1
            return real(a)

        monkeypatch.setattr(Tensor, "item", counted)


@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS"])
def test_a_scaler_reads_nothing_back_where_the_step_handles_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    counts = {}
    for capturable in (False, True):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = rules.MAKERS[name]([x], lr=0.1, capturable=capturable)
        scaler = GradScaler("cpu", init_scale=2.0**10)
        scaler.scale((x**3).sum()).backward()
        with monkeypatch.context() as patch:
            items = CountsItems(patch)
            scaler.step(optimizer)
            counts[capturable] = items.count
    assert counts[True] == 0
    assert counts[False] > 0


def test_only_capturable_optimizers_take_over_the_scaling() -> None:
    x = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    for make in (LAMB, LANS, rules.MAKERS["LARS"]):
        assert not make(x)._step_supports_amp_scaling
        assert make(x, capturable=True)._step_supports_amp_scaling
        assert not make(
            [{"params": x[:1]}, {"params": x[1:], "capturable": False}], capturable=True
        )._step_supports_amp_scaling
    assert not Layerwise(torch.optim.AdamW(x))._step_supports_amp_scaling
    assert Layerwise(torch.optim.AdamW(x, fused=True))._step_supports_amp_scaling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layerwise_leaves_skipping_to_a_fused_base(dtype: torch.dtype) -> None:
    """On a CPU torch's fused AdamW takes found_inf too."""
    ends = []
    for scaled in (False, True):
        x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
        base = torch.optim.AdamW([x], lr=0.1, fused=True)
        optimizer = Layerwise(base, max_grad_norm=2.0, master_weights=True)
        for step in range(4):
            overflow = step == 1
            if overflow and not scaled:
                continue
            x.grad = 3 * x.detach() ** 2
            if scaled:
                x.grad *= 64
                optimizer.grad_scale = torch.tensor(64.0)
                optimizer.found_inf = torch.tensor(float(overflow))
            if overflow:
                x.grad[0] = torch.inf
            held = x.detach().clone()
            optimizer.step()
            assert torch.equal(x, held) is overflow
            assert not hasattr(base, "found_inf")
        ends.append(x.detach().float())
    torch.testing.assert_close(ends[0], ends[1])


def test_a_fused_base_does_not_unscale_a_second_time() -> None:
    """By SGD without the ratio, whose step has the gradient's size."""
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Layerwise(torch.optim.SGD([x], lr=0.1, fused=True), adapt=False)
    x.grad = torch.tensor([64.0, 128.0])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(0.0)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([2.9, 3.8]))


def test_layerwise_refuses_to_skip_over_a_base_that_cannot() -> None:
    x = nn.Parameter(torch.ones(2))
    x.grad = torch.ones(2)
    optimizer = Layerwise(torch.optim.AdamW([x]))
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(RuntimeError, match="found_inf is set, but the step of AdamW cannot be skipped"):
        optimizer.step()


def test_lars_by_the_rule_of_2017_keeps_its_momentum_over_a_skipped_step() -> None:
    """Its momentum is moved in the last phase, where the weights would be moved by it."""
    x = nn.Parameter(torch.ones(3))
    optimizer = LARS([x], lr=1.0, rule="2017", capturable=True)
    x.grad = torch.ones(3)
    optimizer.step()
    held = x.detach().clone()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(x, held)
