"""State dicts of other makers: what they hold is taken over, and what we could not go on with is refused."""

from typing import Any

import pytest
import torch
from peers import timm_lamb, timm_lars
from test_state import saved_and_loaded
from torch import nn

from largebatch.optim import LAMB, LANS, LARS, Layerwise


def _steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]


def _twins(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in parameters]


def assert_go_on_alike(ours: Any, mine: list[nn.Parameter], theirs: Any, others: list[nn.Parameter]) -> None:
    for optimizer, parameters in ((ours, mine), (theirs, others)):
        _steps(optimizer, parameters, 5, seed=1)
    for p, other in zip(mine, others, strict=True):
        torch.testing.assert_close(p, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["for-loop", "foreach", "fused", "capturable step", "tensor betas"])
def test_the_state_dict_of_adamw_loads(how: str) -> None:
    x = _parameters()
    theirs = torch.optim.AdamW(x, lr=0.01, eps=1e-7, foreach=how == "foreach", fused=how == "fused")
    _steps(theirs, x, 5)
    given = saved_and_loaded(theirs.state_dict())
    if how == "capturable step":
        given["param_groups"][0]["capturable"] = True
    if how == "tensor betas":
        given["param_groups"][0]["betas"] = (torch.tensor(0.9), torch.tensor(0.999))
    mine = _twins(x)
    ours = LAMB(mine, norm=1, adapt=False)
    ours.load_state_dict(given)
    group = ours.param_groups[0]
    assert (group["lr"], group["eps"], group["norm"], group["adapt"]) == (0.01, 1e-7, 1, False)
    assert (group["fused"], group["foreach"], group["capturable"]) == (None, None, False)
    assert "amsgrad" not in group
    for p, q in zip(mine, x, strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[p][key], theirs.state[q][key])
            assert ours.state[p][key].data_ptr() != given["state"][0][key].data_ptr()
    # Without the ratio LAMB is AdamW, so that it must go on as AdamW would have.
    assert_go_on_alike(ours, mine, theirs, x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"max_grad_norm": None, "trust_clip": True},
        {"bias_correction": False, "max_grad_norm": 0.5},
    ],
    ids=str,
)
def test_the_state_dict_of_timms_lamb_loads_and_goes_on(options: dict[str, Any]) -> None:
    x = _parameters()
    theirs = timm_lamb()(x, lr=0.01, **options)
    _steps(theirs, x, 5)
    mine = _twins(x)
    ours = LAMB(mine)
    ours.load_state_dict(saved_and_loaded(theirs.state_dict()))
    assert float(ours.state[mine[0]]["step"]) == 5
    foreign = {"always_adapt", "trust_clip", "grad_averaging", "step", "caution", "max_lr_snapshot"}
    assert not foreign & set(ours.param_groups[0])
    assert_go_on_alike(ours, mine, theirs, x)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"momentum": 0.0}, {"nesterov": True}, {"always_adapt": False}],
    ids=str,
)
def test_the_state_dict_of_timms_lars_loads_and_goes_on(options: dict[str, Any]) -> None:
    x = _parameters()
    theirs = timm_lars()(x, **{"lr": 0.5, "momentum": 0.9, "always_adapt": True, **options})
    _steps(theirs, x, 5)
    mine = _twins(x)
    ours = LARS(mine, lr=1.0)
    ours.load_state_dict(saved_and_loaded(theirs.state_dict()))
    assert ours.param_groups[0]["rule"] == "2017-lr-outside"
    assert_go_on_alike(ours, mine, theirs, x)


@pytest.mark.parametrize(
    ("ours", "theirs", "maker"),
    [
        (LARS, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "torch's SGD"),
        (LARS, torch.optim.AdamW, "torch's Adam"),
        (LARS, LAMB, "LAMB"),
        (LAMB, lambda p: LARS(p, lr=0.1), "LARS"),
        (LAMB, LANS, "LANS"),
        (LANS, LAMB, "LAMB"),
        (LANS, torch.optim.AdamW, "torch's Adam"),
        (LAMB, torch.optim.NAdam, "an optimizer that is not known here"),
        (LAMB, torch.optim.RAdam, "an optimizer that is not known here"),
        (LAMB, lambda p: timm_lars()(p), "timm's Lars"),
        (LAMB, torch.optim.Adagrad, "an optimizer that is not known here"),
    ],
)
def test_the_state_of_another_rule_is_refused_whatever_its_keys(ours: Any, theirs: Any, maker: str) -> None:
    """LANS's moments have LAMB's names and other units, and SGD's momentum holds gradients without ratios."""
    x = _parameters()
    given = theirs(x)
    _steps(given, x, 2)
    optimizer = ours(_twins(x), lr=0.1)
    before = str(optimizer.param_groups)
    with pytest.raises(
        ValueError, match=f"the state dict is of {maker}, whose state {ours.__name__} cannot go on with"
    ):
        optimizer.load_state_dict(given.state_dict())
    assert not optimizer.state
    assert str(optimizer.param_groups) == before


@pytest.mark.parametrize("given", [{}, None, {"state": {}}, [1]])
def test_what_is_no_state_dict_is_refused(given: Any) -> None:
    for optimizer in (LAMB(_parameters()), Layerwise(torch.optim.SGD(_parameters()))):
        with pytest.raises(ValueError, match="must be a mapping with 'state' and 'param_groups'"):
            optimizer.load_state_dict(given)


@pytest.mark.parametrize("step", [-1, "x", torch.tensor(-3.0), None, torch.ones(2)])
def test_a_step_that_is_no_count_is_refused_and_nothing_changes(step: Any) -> None:
    x = _parameters()
    optimizer = LAMB(x, lr=0.25)
    _steps(optimizer, x, 1)
    given = saved_and_loaded(optimizer.state_dict())
    given["param_groups"][0]["lr"] = 0.5
    given["state"][1]["step"] = step
    with pytest.raises(
        ValueError, match=r"the loaded state of parameter 1|the loaded step of parameter 1 is .*; it must be a number"
    ):
        optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_what_we_could_not_go_on_with_is_refused_and_nothing_changes() -> None:
    x = [nn.Parameter(torch.ones(3))]
    x[0].grad = torch.ones(3)
    lamb, lars = LAMB(x), LARS(x, lr=0.1)
    for ours in (lamb, lars):
        ours.step()
    sgd = torch.optim.SGD(x, momentum=0.9, nesterov=True)
    other_shape = LAMB([other := nn.Parameter(torch.ones(4))])
    other.grad = torch.ones(4)
    for ours, optimizer, message in (
        (lamb, torch.optim.AdamW(x, amsgrad=True), "of torch's Adam has amsgrad=True; here it has to be False"),
        (lamb, torch.optim.Adam(x, weight_decay=0.5), "of torch's Adam has weight_decay=0.5 in the gradient"),
        (lamb, sgd, "is of torch's SGD"),
        (lamb, other_shape, r"exp_avg of parameter 0 has shape \(4,\), the parameter \(3,\)"),
        (lamb, torch.optim.AdamW(x, eps=0.0), "eps is 0.0"),
        (lamb, LAMB([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]), "doesn't match the size"),
        (lamb, timm_lamb()(x, caution=True), "of timm's Lamb has caution=True; here it has to be False"),
        (lamb, timm_lamb()(x, decoupled_decay=True), "decoupled_decay=True"),
        (lamb, timm_lamb()(x, grad_averaging=False), "grad_averaging=False"),
        (lars, timm_lars()(x, trust_clip=True), "of timm's Lars has trust_clip=True"),
    ):
        before = {key: value.clone() for key, value in ours.state[x[0]].items()}
        group = dict(ours.param_groups[0])
        optimizer.step()
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(optimizer.state_dict())
        assert all(torch.equal(ours.state[x[0]][key], value) for key, value in before.items())
        assert ours.param_groups[0] == group
