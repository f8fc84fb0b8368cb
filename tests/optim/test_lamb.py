"""The chain of trust of LAMB: oracle in float64 -> plain kernels -> foreach kernels; wrong rules are caught."""

from typing import Any

import lamb_zoo as zoo
import numpy as np
import pytest
import torch
from wrong_lamb import WRONG_RULES

from largebatch.optim import LAMB
from largebatch.optim.kernels import foreach
from oracle import Lamb as Oracle

OPTION_SETS: dict[str, tuple[zoo.Options, ...]] = {
    "defaults": (zoo.PLAIN_GROUP,),
    "no correction": ({**zoo.PLAIN_GROUP, "bias_correction": False},),
    "not adapted": ({**zoo.PLAIN_GROUP, "adapt": False, "weight_decay": 0.0},),
    "nesterov first": ({**zoo.PLAIN_GROUP, "nesterov": "first"},),
    "nesterov both": ({**zoo.PLAIN_GROUP, "nesterov": "both"},),
    "norm 1": ({**zoo.PLAIN_GROUP, "norm": 1},),
    "norm inf": ({**zoo.PLAIN_GROUP, "norm": "inf"},),
    "clipped, maximised": ({**zoo.PLAIN_GROUP, "max_grad_norm": 0.7, "maximize": True},),
    "at most 1": ({**zoo.PLAIN_GROUP, "ratio_bounds": (0, 1)},),
    "no memory": ({**zoo.PLAIN_GROUP, "betas": (0.0, 0.0), "eps": 1e-2},),
    "everything": zoo.GROUPS,
}


def assert_close(found: Any, expected: Any, rtol: float, what: str) -> None:
    """Compare to `rtol` of each element, and of the largest element where terms cancel."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale, err_msg=what)


def follow(kind: type[Oracle], groups: tuple[zoo.Options, ...], **options: Any) -> None:
    """Run our LAMB beside an oracle over the zoo and compare everything after each step."""
    made = zoo.parameters(zoo.weights())
    ours, oracle = zoo.optimizer_over(made, groups, **options), kind(zoo.weights(), groups)
    for step in zoo.run(made, ours, groups):
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
            assert float(state.get("step", 0)) == oracle.t[i], where
            if step % 10 == 0:
                assert_close(state["exp_avg"], oracle.m[i], 1e-12, f"m of {where}")
                assert_close(state["exp_avg_sq"], oracle.v[i], 1e-12, f"v of {where}")
            if name != "empty":
                expected = oracle.ratios[i] or np.full(ratios[name].shape[1], np.nan)
                assert_close(ratios[name][0], expected, 1e-12, f"ratio of {where}")


@pytest.mark.parametrize("groups", OPTION_SETS.values(), ids=OPTION_SETS)
@pytest.mark.parametrize("backend", ["plain", "foreach"])
def test_fifty_steps_equal_the_oracle(backend: str, groups: tuple[zoo.Options, ...]) -> None:
    follow(Oracle, groups, foreach=backend == "foreach")


@pytest.mark.parametrize("kind", WRONG_RULES, ids=lambda kind: kind.__name__)
def test_a_wrong_rule_is_caught(kind: type[Oracle]) -> None:
    with pytest.raises(AssertionError):
        follow(kind, zoo.GROUPS, foreach=False)


def test_there_are_enough_wrong_rules() -> None:
    assert len(WRONG_RULES) >= 30


@pytest.mark.parametrize(("piece", "kept"), [(1, 0), (4, 10), (7, 10**9), (10**9, 0), (10**9, 10)])
def test_foreach_in_any_pieces_equals_the_oracle(monkeypatch: pytest.MonkeyPatch, piece: int, kept: int) -> None:
    monkeypatch.setattr(foreach, "CPU_PIECE_ELEMENTS", piece)
    monkeypatch.setattr(foreach, "CPU_KEPT_ELEMENTS", kept)
    monkeypatch.setattr(foreach, "CPU_EXACT_ELEMENTS", 5)
    monkeypatch.setattr(foreach, "CPU_ROW_ELEMENTS", 2)
    follow(Oracle, zoo.GROUPS, foreach=True)


def _error(made: list[torch.nn.Parameter], exact: list[np.ndarray]) -> float:
    """Return the largest error of any weight, relative to the largest weight of its tensor."""
    return max(
        float(np.abs(p.detach().double().numpy() - x).max() / max(np.abs(x).max(), 1e-30))
        for p, x in zip(made, exact, strict=True)
        if x.size
    )


@pytest.mark.parametrize(
    ("dtype", "masters"),
    [(torch.float32, False), *((d, m) for d in (torch.bfloat16, torch.float16) for m in (False, True))],
)
def test_foreach_errs_at_most_twice_as_much_as_plain(dtype: torch.dtype, masters: bool) -> None:
    start = [torch.tensor(a).to(dtype).double().numpy() for a in zoo.weights()]
    oracle = Oracle(start, zoo.GROUPS)
    runs = {}
    plain = 0.0
    for backend in (False, True):
        made = zoo.parameters(start, dtype)
        runs[backend] = made, zoo.run(made, zoo.optimizer_over(made, foreach=backend, master_weights=masters))
    for step, _ in zip(runs[False][1], runs[True][1], strict=True):
        for number, group in enumerate(oracle.groups):
            group["lr"] = zoo.learning_rate(number, step)
        given = [g if g is None else torch.tensor(g).to(dtype).double().numpy() for g in zoo.gradients(step)]
        oracle.step(given)
        plain, fast = (_error(runs[backend][0], oracle.x) for backend in (False, True))
        assert fast <= 2 * plain + torch.finfo(torch.float32).eps, step
    if masters:  # without them the error grows from step to step
        assert plain < torch.finfo(dtype).eps


def test_norms_of_long_float32_tensors_are_exact() -> None:
    torch.manual_seed(0)
    x = torch.nn.Parameter(torch.randn(1000, 3001))
    x.grad = torch.randn(1000, 3001) * 1e-3
    exact = x.grad.double().square().sum().sqrt()
    optimizer = LAMB([("x", x)], betas=(0.0, 0.0), eps=1e-30, weight_decay=0.0)
    assert abs(float(optimizer.grad_norm() / exact) - 1) < 2e-7
    assert abs(float(torch.linalg.vector_norm(x.grad) / exact) - 1) > 2e-6, "then torch's own would do"
    weights = x.detach().double().square().sum().sqrt()
    optimizer.step()
    # With r = sign(g): ||u|| = sqrt(number of elements).
    assert abs(float(optimizer.trust_ratios()["x"]) * x.numel() ** 0.5 / float(weights) - 1) < 2e-7


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed gradient", "sliced"])
def test_memory_layout_does_not_matter(layout: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start, grads = torch.randn(700, 4, 12, 12, generator=generator), torch.randn(5, 700, 4, 12, 12, generator=generator)
    results = []
    for kind in ("contiguous", layout):
        a = start.clone()
        if kind == "channels last":
            a = a.contiguous(memory_format=torch.channels_last)
        if kind == "sliced":
            a = torch.stack([a, a], dim=2)[:, :, 1]
        x = torch.nn.Parameter(a)
        optimizer = LAMB([x], lr=0.1, foreach=True)
        for g in grads:
            x.grad = g.transpose(0, 1).contiguous().transpose(0, 1) if kind == "transposed gradient" else g.clone()
            optimizer.step()
        assert x.stride() == a.stride()
        results.append(x.detach().contiguous())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [False, True])
def test_complex_parameters_equal_their_real_view(backend: bool) -> None:
    torch.manual_seed(2)
    start = torch.randn(4, 3, dtype=torch.complex128)
    x, twin = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.view_as_real(start).clone())
    ours = LAMB([x], lr=0.1, max_grad_norm=1.0, foreach=backend)
    real = LAMB([twin], lr=0.1, max_grad_norm=1.0, foreach=backend)
    for _ in range(10):
        g = torch.randn(4, 3, dtype=torch.complex128)
        x.grad, twin.grad = g.conj(), torch.view_as_real(g.conj().resolve_conj()).clone()
        torch.testing.assert_close(ours.grad_norm(), real.grad_norm(), rtol=1e-14, atol=0)
        ours.step()
        real.step()
        assert torch.equal(torch.view_as_real(x.detach()), twin.detach())


@pytest.mark.parametrize("backend", [False, True])
def test_a_tensor_learning_rate_equals_a_number(backend: bool) -> None:
    ends = []
    for lr in (0.03, torch.tensor(0.03, dtype=torch.float64), torch.tensor([0.03], dtype=torch.float64)):
        made = zoo.parameters(zoo.weights())
        optimizer = LAMB(made, lr=lr, foreach=backend)
        for step in range(1, 6):
            zoo.set_gradients(made, zoo.gradients(step))
            optimizer.step()
        ends.append([p.detach().clone() for p in made])
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            assert torch.equal(a, b)


def test_differentiable_steps_have_the_right_gradient() -> None:
    torch.manual_seed(3)
    g = torch.randn(2, 3, dtype=torch.float64)

    def moved(x: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.grad = g
        optimizer = LAMB([x], lr=0.1, differentiable=True, weight_decay=0.1, max_grad_norm=0.5)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.state[x].update(step=torch.tensor(3.0), exp_avg=m.clone(), exp_avg_sq=v.clone())
        optimizer.step()
        return x

    inputs = [torch.randn(2, 3, dtype=torch.float64), g, 0.1 * g, 0.1 + g * g, torch.tensor(0.1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(moved, [a.clone().requires_grad_() for a in inputs])


def test_a_differentiable_step_of_a_zero_layer_has_a_finite_gradient() -> None:
    x, g = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64, requires_grad=True)
    start = x.clone().requires_grad_()
    moved = start.clone()
    moved.grad = g
    LAMB([moved], lr=0.1, differentiable=True).step()
    for gradient in torch.autograd.grad(moved.sum(), (start, g)):
        assert gradient.isfinite().all()
