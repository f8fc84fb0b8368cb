"""The chain of trust of every rule: oracle in float64 -> plain -> foreach and fused kernels; wrong rules are caught."""

from typing import Any

import numpy as np
import pytest
import rules
import torch
import zoo
from rules import CASES, Case, Groups
from wrong_lamb import WRONG_LAMB
from wrong_rules import WRONG_GENERAL, WRONG_LANS, WRONG_LARS

from largebatch.optim import LAMB
from largebatch.optim.kernels import pieces
from oracle import Oracle

RUNS = [
    pytest.param(case, name, backend, id=f"{rule}, {name}, {backend}")
    for rule, case in CASES.items()
    for name in case.option_sets
    for backend in case.backends
]
WRONG = {
    "LAMB": WRONG_LAMB,
    "LANS": WRONG_LANS,
    "LARS": WRONG_LARS,
    "Layerwise over SGD": WRONG_GENERAL,
}


def assert_close(found: Any, expected: Any, rtol: float, what: str) -> None:
    """Compare to `rtol` of each element, and of the largest element where terms cancel."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale, err_msg=what)


def follow(case: Case, judge: type[Oracle], groups: Groups, **how: Any) -> None:
    """Run one of our rules beside an oracle over the zoo and compare everything after each step."""
    made = zoo.parameters(zoo.weights())
    ours, oracle = case.build(zoo.groups_over(made, groups), **how), judge(zoo.weights(), groups)
    for step in zoo.run(made, ours):
        for number, group in enumerate(oracle.groups):
            group["lr"] = zoo.learning_rate(number, step)
        given = zoo.gradients(step)
        oracle.step(given)
        norm = np.sqrt(sum(float(np.sum(g * g)) for g in given if g is not None))
        assert_close(ours.grad_norm(), norm, 1e-12, f"grad_norm at step {step}")
        ratios = ours.trust_ratios()
        for i, name in enumerate(zoo.NAMES):
            state, where = ours.state.get(made[i], {}), f"{name} at step {step}"
            assert_close(made[i].detach(), oracle.x[i], 1e-12, where)
            if isinstance(state.get("step"), torch.Tensor) and made[i].numel():
                assert float(state["step"]) == oracle.t[i], where
            if step % 10 == 0:
                for key in oracle.KEYS:
                    if state.get(key) is not None:
                        assert_close(state[key], oracle.state[i][key], 1e-12, f"{key} of {where}")
            if name != "empty":
                expected = oracle.ratios[i] or np.full(ratios[name].T.shape, np.nan)
                assert_close(ratios[name].T, expected, 1e-12, f"ratio of {where}")


@pytest.mark.parametrize(("case", "name", "backend"), RUNS)
def test_fifty_steps_equal_the_oracle(case: Case, name: str, backend: str) -> None:
    follow(case, case.judge, case.option_sets[name], **rules.how(backend))


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [pytest.param(rule, wrong, id=f"{rule}: {wrong.__name__}") for rule, some in WRONG.items() for wrong in some],
)
def test_a_wrong_rule_is_caught(rule: str, wrong: type[Oracle]) -> None:
    case = CASES[rule]
    with pytest.raises(AssertionError):
        follow(case, wrong, case.option_sets["everything"], foreach=False)


def test_there_are_enough_wrong_rules() -> None:
    assert len(WRONG_LAMB) >= 30
    assert len(WRONG_LANS) >= 15
    assert len(WRONG_LARS) >= 15
    assert len(WRONG_GENERAL) >= 5


@pytest.mark.parametrize("rule", ["LAMB", "LANS", "LARS", "Layerwise over SGD"])
@pytest.mark.parametrize(("piece", "kept"), [(1, 0), (4, 10), (7, 10**9), (10**9, 0), (10**9, 10)])
def test_foreach_in_any_pieces_equals_the_oracle(
    monkeypatch: pytest.MonkeyPatch, rule: str, piece: int, kept: int
) -> None:
    monkeypatch.setattr(pieces, "CPU_PIECE_ELEMENTS", piece)
    monkeypatch.setattr(pieces, "CPU_KEPT_ELEMENTS", kept)
    case = CASES[rule]
    follow(case, case.judge, case.option_sets["everything"], foreach=True)


def _error(made: list[torch.nn.Parameter], exact: list[np.ndarray], least: float = 1e-30) -> float:
    """Return the largest error of any weight, relative to the largest weight of its tensor or to `least`."""
    return max(
        float(np.abs(p.detach().double().numpy() - x).max() / max(np.abs(x).max(), least))
        for p, x in zip(made, exact, strict=True)
        if x.size
    )


@pytest.mark.parametrize("rule", ["LAMB", "LANS", "LARS", "Layerwise over SGD"])
@pytest.mark.parametrize(
    ("dtype", "masters"),
    [(torch.float32, False), *((d, m) for d in (torch.bfloat16, torch.float16) for m in (False, True))],
)
@pytest.mark.parametrize("backend", ["foreach", "fused"])
def test_fast_kernels_err_at_most_twice_as_much_as_plain(
    rule: str, dtype: torch.dtype, masters: bool, backend: str
) -> None:
    case = CASES[rule]
    groups = case.option_sets["everything"]
    start = [torch.tensor(a).to(dtype).double().numpy() for a in zoo.weights()]
    oracle = case.judge(start, groups)
    runs = {}
    plain = 0.0
    for some in ("plain", backend):
        made = zoo.parameters(start, dtype)
        optimizer = case.build(zoo.groups_over(made, groups), master_weights=masters, **rules.how(some))
        runs[some] = made, zoo.run(made, optimizer)
    for step, _ in zip(runs["plain"][1], runs[backend][1], strict=True):
        for number, group in enumerate(oracle.groups):
            group["lr"] = zoo.learning_rate(number, step)
        given = [g if g is None else torch.tensor(g).to(dtype).double().numpy() for g in zoo.gradients(step)]
        oracle.step(given)
        plain, fast = (_error(runs[some][0], oracle.x) for some in ("plain", backend))
        assert fast <= 2 * plain + torch.finfo(torch.float32).eps, step
    if masters:  # without them the error grows from step to step
        assert _error(runs["plain"][0], oracle.x, least=1e-3) < torch.finfo(dtype).eps


@rules.every_backend
def test_norms_of_long_float32_tensors_are_exact(backend: str) -> None:
    torch.manual_seed(0)
    x = torch.nn.Parameter(torch.randn(1000, 3001))
    x.grad = torch.randn(1000, 3001) * 1e-3
    exact = x.grad.double().square().sum().sqrt()
    optimizer = LAMB([("x", x)], betas=(0.0, 0.0), eps=1e-30, weight_decay=0.0, **rules.how(backend))
    assert abs(float(optimizer.grad_norm() / exact) - 1) < 2e-7
    assert abs(float(torch.linalg.vector_norm(x.grad) / exact) - 1) > 2e-6, "then torch's own would do"
    weights = x.detach().double().square().sum().sqrt()
    optimizer.step()
    # With r = sign(g): ||u|| = sqrt(number of elements).
    assert abs(float(optimizer.trust_ratios()["x"]) * x.numel() ** 0.5 / float(weights) - 1) < 2e-7
