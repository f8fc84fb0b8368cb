"""What must hold for every rule whatever the numbers, each property beside a variant for which it does not hold."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from rules import BACKENDS, CASES, MAKERS, every_backend, how
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from largebatch.optim import LAMB, LANS, LARS
from oracle import Lamb as Oracle

F64 = torch.float64
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MOVES_BY_LR = {name: MAKERS[name] for name in ("LAMB", "LARS", "Layerwise AdamW", "Layerwise SGD")}
"""The rules with one direction, over whose norm the ratio is taken."""


def steps(start: Tensor, grads: list[Tensor], make: Callable[..., Any] = LAMB, **options: Any) -> Tensor:
    """Return where `start` ends after a step with each gradient."""
    x = nn.Parameter(start.clone())
    optimizer = make([x], **options)
    for g in grads:
        x.grad = g.clone()
        optimizer.step()
    return x.detach()


def random(*shape: int, seed: int = 0, count: int = 5) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw: Callable[[], Tensor] = lambda: torch.randn(*shape, dtype=F64, generator=generator)  # noqa: E731
    return draw(), [draw() for _ in range(count)]


@every_backend
@pytest.mark.parametrize("make", MOVES_BY_LR.values(), ids=MOVES_BY_LR)
@pytest.mark.parametrize(("norm", "order"), [(1, 1), (2, 2), ("inf", torch.inf)])
def test_an_adapted_layer_moves_by_exactly_lr_times_its_norm(make: Any, backend: str, norm: Any, order: float) -> None:
    start, grads = random(5, 4)
    for number in range(1, 4):
        before = steps(start, grads[: number - 1], make, lr=0.03, norm=norm, **how(backend))
        after = steps(start, grads[:number], make, lr=0.03, norm=norm, **how(backend))
        moved, size = (torch.linalg.vector_norm(a, order) for a in (after - before, before))
        torch.testing.assert_close(moved, 0.03 * size, rtol=1e-11, atol=0)
    free = steps(start, grads[:1], make, lr=0.03, norm=norm, **how(backend), adapt=False)
    moved, size = (torch.linalg.vector_norm(a, order) for a in (free - start, start))
    assert abs(moved / (0.03 * size) - 1) > 0.01


@every_backend
def test_lans_moves_by_its_two_shares_of_lr(backend: str) -> None:
    """At most by lr times the norm; by exactly that where both directions are one, at the first step with beta1 0."""
    start, grads = random(5, 4)
    before = after = start
    for number in range(1, 5):
        before = steps(start, grads[: number - 1], LANS, lr=0.03, **how(backend))
        after = steps(start, grads[:number], LANS, lr=0.03, **how(backend))
        assert (after - before).norm() <= 0.03 * before.norm() * (1 + 1e-12)
    one = steps(start, grads[:1], LANS, lr=0.03, betas=(0.0, 0.9), **how(backend))
    torch.testing.assert_close((one - start).norm(), 0.03 * start.norm(), rtol=1e-12, atol=0)
    assert (after - before).norm() < 0.03 * before.norm() * (1 - 1e-6), "r and c differ after the first step"


@every_backend
@pytest.mark.parametrize("rule", ["2017", "2017-lr-outside"])
def test_the_first_step_of_2017_is_the_coefficients_share_of_lr(backend: str, rule: Any) -> None:
    start, grads = random(5, 4, count=2)
    options: dict[str, Any] = {"lr": 3.0, "rule": rule, "trust_coefficient": 0.02, "weight_decay": 0.0}
    first = steps(start, grads[:1], LARS, **how(backend), **options)
    torch.testing.assert_close((first - start).norm(), 3.0 * 0.02 * start.norm(), rtol=1e-12, atol=0)
    second = steps(start, grads, LARS, **how(backend), **options)
    assert abs((second - first).norm() / (3.0 * 0.02 * first.norm()) - 1) > 0.01, "the momentum joins in"


@every_backend
def test_both_forms_of_2017_agree_while_the_rate_is_constant(backend: str) -> None:
    start, grads = random(5, 4, count=10)
    for constant in (True, False):
        ends = []
        for rule in ("2017", "2017-lr-outside"):
            x = nn.Parameter(start.clone())
            optimizer = LARS([x], lr=2.0, rule=rule, **how(backend))
            for number, g in enumerate(grads):
                optimizer.param_groups[0]["lr"] = 2.0 if constant else 2.0 - 0.15 * number
                x.grad = g.clone()
                optimizer.step()
            ends.append(x.detach())
        assert torch.allclose(*ends, rtol=1e-12, atol=1e-14) is constant


@every_backend
@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS", "Layerwise AdamW", "Layerwise SGD"])
def test_scaling_the_loss_leaves_the_step_as_eps_vanishes(name: str, backend: str) -> None:
    start, grads = random(5, 4)
    make = MAKERS[name]

    def difference(**options: Any) -> float:
        ends = [steps(start, [s * g for g in grads], make, lr=0.1, **how(backend), **options) for s in (1e-3, 1e3)]
        return float((ends[0] - ends[1]).abs().max())

    if name.endswith("SGD") or name == "LARS":
        assert difference(weight_decay=0.0) < 1e-13
        assert difference(weight_decay=0.1) > 1e-4, "the decay has a size of its own"
    else:
        assert difference(eps=1e-30) < 1e-13
        # LANS takes the size out before eps could meet it.
        assert (difference(eps=1e-3) > 1e-4) is (name != "LANS")


@every_backend
@every_maker
def test_permutation_commutes_with_the_step(make: Any, backend: str) -> None:
    start, grads = random(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for stacked, commutes in ((None, True), ((0, 3), False)):
        options: dict[str, Any] = {"lr": 0.1, "stacked": stacked, **how(backend)}
        ends = steps(start, grads, make, **options)[order]
        permuted = steps(start[order], [g[order] for g in grads], make, **options)
        assert torch.allclose(ends, permuted, rtol=1e-12, atol=1e-14) is commutes


@every_backend
@every_maker
def test_each_stacked_block_moves_as_a_layer_of_its_own(make: Any, backend: str) -> None:
    start, grads = random(4, 6)
    for dim, shape in ((0, 2), (1, 3), (-1, 3)):
        whole = steps(start, grads, make, lr=0.1, stacked=(dim, 2), **how(backend))
        for block in range(2):
            alone = steps(
                start.narrow(dim, block * shape, shape),
                [g.narrow(dim, block * shape, shape) for g in grads],
                make,
                lr=0.1,
                **how(backend),
            )
            torch.testing.assert_close(whole.narrow(dim, block * shape, shape), alone, rtol=1e-11, atol=1e-13)
        assert not torch.allclose(whole, steps(start, grads, make, lr=0.1, **how(backend)), rtol=1e-6)


@every_backend
@pytest.mark.parametrize("name", ["LAMB", "Layerwise AdamW"])
def test_without_the_ratio_it_is_adamw(name: str, backend: str) -> None:
    start, grads = random(5, 4, count=50)
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    x = nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([x], **options)
    for g in grads:
        x.grad = g
        theirs.step()
    ours = steps(start, grads, MAKERS[name], adapt=False, **how(backend), **options)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-11, atol=1e-13)
    assert not torch.allclose(steps(start, grads, MAKERS[name], **how(backend), **options), x.detach(), rtol=1e-3)


@every_backend
@every_maker
def test_maximising_is_minimising_the_negative(make: Any, backend: str) -> None:
    start, grads = random(5, 4)
    clip: dict[str, Any] = {} if make is LANS else {"max_grad_norm": 1.0}
    down = steps(start, [-g for g in grads], make, **clip, **how(backend))
    assert torch.equal(steps(start, grads, make, maximize=True, **clip, **how(backend)), down)
    assert not torch.equal(steps(start, grads, make, **clip, **how(backend)), down)


@every_backend
@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_with_rate_zero_and_zero_gradients_changes_nothing(case: Any, backend: str, dtype: torch.dtype) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    before = [p.detach().clone() for p in made]
    groups = case.option_sets["everything"]
    optimizer = case.build(zoo.groups_over(made, groups), **how(backend), master_weights=True)
    for lr, unchanged in ((0.0, True), (0.5, False)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p in made:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        # Without decay in some group the second step would change nothing either.
        assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True)) is unchanged or not any(
            group.get("weight_decay") for group in optimizer.param_groups
        )


@every_backend
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_left_as_they_are(case: Any, backend: str, dtype: torch.dtype) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    zoo.set_gradients(made, zoo.gradients(30))
    held = [(p.grad, p.grad.clone(), p.grad._version) for p in made if p.grad is not None]
    clip: dict[str, Any] = {} if case.build is LANS else {"max_grad_norm": 1e-3}
    groups = [{**group, "maximize": True} for group in case.option_sets["everything"]]
    optimizer = case.build(zoo.groups_over(made, groups), **how(backend), **clip)
    optimizer.grad_norm()
    optimizer.step()
    for p, (same, copy, version) in zip(made, held, strict=True):
        assert p.grad is same
        assert torch.equal(same, copy)
        assert same._version == version


@every_backend
def test_betas_and_other_options_may_change_between_steps(backend: str) -> None:
    made, groups = zoo.parameters(zoo.weights()), ({**zoo.PLAIN_GROUP, "lr": 0.1},)
    ours, oracle = zoo.optimizer_over(made, groups, **how(backend)), Oracle(zoo.weights(), groups)
    stale = Oracle(zoo.weights(), groups)
    changes = ({"betas": (0.5, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}, {"adapt": False}, {"max_grad_norm": 0.1})
    for step, change in enumerate(({}, *changes), 1):
        for group in (ours.param_groups[0], oracle.groups[0]):
            group.update(change)
        zoo.set_gradients(made, zoo.gradients(step))
        ours.step()
        oracle.step(zoo.gradients(step))
        stale.step(zoo.gradients(step))
        for p, x in zip(made, oracle.x, strict=True):
            np.testing.assert_allclose(p.detach(), x, rtol=1e-11, atol=1e-13)
        assert step == 1 or not np.allclose(oracle.x[0], stale.x[0], rtol=1e-6)


@pytest.mark.parametrize("case", [CASES["LAMB"], CASES["LANS"], CASES["LARS"]], ids=["LAMB", "LANS", "LARS"])
def test_the_order_of_parameters_and_groups_does_not_matter(case: Any) -> None:
    ends = []
    for turn in (1, -1):
        made = zoo.parameters(zoo.weights())
        groups = case.option_sets["everything"]
        optimizer = case.build(
            zoo.groups_over(made, [{**group, "members": group["members"][::turn]} for group in groups][::turn])
        )
        for step in range(1, 10):
            zoo.set_gradients(made, zoo.gradients(step))
            optimizer.step()
        ends.append((made, optimizer.trust_ratios()))
    assert list(ends[0][1]) != list(ends[1][1])
    for i, name in enumerate(zoo.NAMES):
        torch.testing.assert_close(ends[0][0][i], ends[1][0][i], rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(ends[0][1][name], ends[1][1][name], rtol=1e-13, atol=0, equal_nan=True)


@every_case
def test_trust_ratios_have_names_and_shapes_and_nan_where_nothing_moved(case: Any) -> None:
    made = zoo.parameters(zoo.weights())
    optimizer = case.build(zoo.groups_over(made, case.option_sets["everything"]))
    directions = 2 if case.build is LANS else 1
    first = optimizer.trust_ratios()
    assert set(first) == set(zoo.NAMES)
    assert first["stacked"].shape == (directions, 3)
    assert all(ratio.isnan().all() for ratio in first.values())
    zoo.set_gradients(made, zoo.gradients(1))
    optimizer.step()
    ratios = optimizer.trust_ratios()
    assert ratios["stacked"].shape == (directions, 3)
    assert ratios["excluded"].tolist() == ratios["zero"].tolist() == [[1.0]] * directions
    assert {name for name, ratio in ratios.items() if ratio.isnan().any()} == {"empty", "no-gradient-yet"}
    assert all(ratio.dtype == F64 and not ratio.requires_grad for ratio in ratios.values())
    optimizer.zero_grad()
    optimizer.step()
    assert all(ratio.isnan().all() for ratio in optimizer.trust_ratios().values())


def test_nameless_parameters_are_numbered() -> None:
    nameless = LAMB([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))])
    assert list(nameless.trust_ratios()) == ["0", "1"]


@every_maker
def test_grad_norm_is_that_of_the_gradients_as_they_are(make: Any) -> None:
    made = zoo.parameters(zoo.weights())
    optimizer = make(made, **({} if make is LANS else {"max_grad_norm": 0.1}))
    assert float(optimizer.grad_norm()) == 0
    for step in (1, 13, 25):
        given = zoo.gradients(step)
        zoo.set_gradients(made, given)
        expected = np.sqrt(sum(float(np.sum(g * g)) for g in given if g is not None))
        assert optimizer.grad_norm().shape == ()
        np.testing.assert_allclose(float(optimizer.grad_norm()), expected, rtol=1e-14)
        optimizer.step()
        np.testing.assert_allclose(float(optimizer.grad_norm()), expected, rtol=1e-14)
    half = nn.Parameter(torch.zeros(40000, dtype=torch.float16))
    half.grad = torch.full_like(half, 300)  # squares and sums are beyond float16
    np.testing.assert_allclose(float(make([half]).grad_norm()), 60000, rtol=1e-6)


@every_backend
@every_maker
def test_a_gradient_that_is_not_a_number_shows_in_the_weights(make: Any, backend: str) -> None:
    start, grads = random(3, 2, count=1)
    grads[0][0, 0] = torch.nan
    assert steps(start, grads, make, **how(backend)).isnan().all()


@every_maker
def test_closure_is_called_with_gradients_and_its_loss_returned(make: Any) -> None:
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = make([x], lr=0.1)

    def closure() -> float:
        loss = (x**2).sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 25.0
    assert float(x.detach().norm()) < 5


@every_maker
def test_groups_may_be_added_late_and_do_not_change_the_callers_dict(make: Any) -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make([first], lr=0.1)
    for p in (first, second):
        p.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    given: dict[str, Any] = {"params": [second], "lr": 0.2}
    optimizer.add_param_group(given)
    assert given == {"params": [second], "lr": 0.2}
    optimizer.step()
    if "step" in optimizer.state[first]:
        assert [float(optimizer.state[p]["step"]) for p in (first, second)] == [2, 1]
    assert not torch.equal(second.detach(), torch.ones(3))
    assert (second.detach() - 1).norm() <= 0.2 * 3**0.5 * (1 + 1e-6)


@pytest.mark.parametrize("case", [CASES["LAMB"], CASES["LANS"], CASES["LARS"]], ids=["LAMB", "LANS", "LARS"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["foreach", "plain, capturable", "foreach, capturable"])
def test_nothing_is_read_back_from_the_device(case: Any, dtype: torch.dtype, backend: str) -> None:
    """Tensors without data stand for a device: whoever looks at a value, or mixes devices, fails."""
    made = [nn.Parameter(p.detach().to("meta")) for p in zoo.parameters(zoo.weights(), dtype)]
    optimizer = case.build(
        zoo.groups_over(made, case.option_sets["everything"]),
        foreach=backend.startswith("foreach"),
        capturable=backend.endswith("capturable"),
        master_weights=True,
    )
    for p in made:
        p.grad = torch.zeros_like(p)
    for skips in (False, False, True):
        if skips and backend.endswith("capturable"):
            optimizer.grad_scale = torch.ones((), device="meta")
            optimizer.found_inf = torch.zeros((), device="meta")
        optimizer.step()
    assert optimizer.grad_norm().is_meta
    assert all(ratio.is_meta for ratio in optimizer.trust_ratios().values())
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.grad_norm().item()


def test_the_default_device_is_not_taken_for_that_of_the_parameters() -> None:
    start, grads = random(3, 4)
    for make in MAKERS.values():
        clip: dict[str, Any] = {} if make is LANS else {"max_grad_norm": 1.0}
        expected = steps(start, grads, make, **clip)
        x = nn.Parameter(start.clone())
        with torch.device("meta"):
            optimizer = make([x], **clip)
            for g in grads:
                x.grad = g.clone()
                optimizer.step()
        assert optimizer.trust_ratios()["0"].device == x.device
        assert torch.equal(x, expected)


@every_backend
def test_options_may_be_numbers_of_numpy(backend: str) -> None:
    start, grads = random(3, 4)
    options: dict[str, Any] = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.5}
    bounds: dict[str, Any] = {"ratio_bounds": (0.0, 0.5), "phi_bounds": (0.0, 2.0), "max_grad_norm": 0.5}
    expected = steps(start, grads, **options, **bounds, **how(backend))
    same: dict[str, Any] = {
        name: tuple(map(np.float32, value)) if isinstance(value, tuple) else np.float32(value)
        for name, value in {**options, **bounds}.items()
    }
    assert torch.equal(steps(start, grads, **same, **how(backend)), expected)


@every_backend
@every_maker
def test_a_tensor_learning_rate_equals_a_number(make: Any, backend: str) -> None:
    ends = []
    for lr in (0.03, torch.tensor(0.03, dtype=torch.float64), torch.tensor([0.03], dtype=torch.float64)):
        made = zoo.parameters(zoo.weights())
        if isinstance(lr, Tensor) and "Layerwise" in str(make):
            optimizer = make(made, lr=0.1, **how(backend))  # the base would not take a tensor here
            optimizer.param_groups[0]["lr"] = lr
        else:
            optimizer = make(made, lr=lr, **how(backend))
        for step in range(1, 6):
            zoo.set_gradients(made, zoo.gradients(step))
            optimizer.step()
        assert optimizer.param_groups[0]["lr"] is lr
        ends.append([p.detach().clone() for p in made])
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed gradient", "sliced"])
@every_maker
def test_memory_layout_does_not_matter(make: Any, layout: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start, grads = torch.randn(700, 4, 12, 12, generator=generator), torch.randn(3, 700, 4, 12, 12, generator=generator)
    results = []
    for kind in ("contiguous", layout):
        a = start.clone()
        if kind == "channels last":
            a = a.contiguous(memory_format=torch.channels_last)
        if kind == "sliced":
            a = torch.stack([a, a], dim=2)[:, :, 1]
        x = nn.Parameter(a)
        optimizer = make([x], lr=0.1, foreach=True)
        for g in grads:
            x.grad = g.transpose(0, 1).contiguous().transpose(0, 1) if kind == "transposed gradient" else g.clone()
            optimizer.step()
        assert x.stride() == a.stride()
        results.append(x.detach().contiguous())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@every_backend
@every_maker
def test_complex_parameters_equal_their_real_view(make: Any, backend: str) -> None:
    torch.manual_seed(2)
    start = torch.randn(4, 3, dtype=torch.complex128)
    x, twin = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    clip: dict[str, Any] = {} if make is LANS else {"max_grad_norm": 1.0}
    ours, real = (make([p], lr=0.1, **how(backend), **clip) for p in (x, twin))
    for _ in range(10):
        g = torch.randn(4, 3, dtype=torch.complex128)
        x.grad, twin.grad = g.conj(), torch.view_as_real(g.conj().resolve_conj()).clone()
        torch.testing.assert_close(ours.grad_norm(), real.grad_norm(), rtol=1e-14, atol=0)
        ours.step()
        real.step()
        torch.testing.assert_close(torch.view_as_real(x.detach()), twin.detach(), rtol=1e-13, atol=1e-15)


def test_a_layer_of_zeros_moves_and_nothing_is_divided_by_zero() -> None:
    for make in MAKERS.values():
        start, grads = torch.zeros(3, 2, dtype=F64), random(3, 2)[1]
        end = steps(start, grads, make, lr=0.1)
        assert end.isfinite().all()
        assert end.all()
        assert steps(torch.ones(3, dtype=F64), [torch.zeros(3, dtype=F64)] * 2, make, lr=0.1).isfinite().all()


def test_a_step_without_any_gradient_is_nothing() -> None:
    for make in MAKERS.values():
        x = nn.Parameter(torch.ones(3))
        optimizer = make([x], lr=math.pi)
        optimizer.step()
        assert torch.equal(x, torch.ones(3))


@every_backend
@pytest.mark.parametrize("name", ["LAMB", "LARS", "Layerwise SGD", "Layerwise AdamW"])
def test_a_layer_whose_gradient_has_been_zero_for_long_never_leaps(name: str, backend: str) -> None:
    """Its direction fades below what float32 can square; it goes on by lr times its norm until there is none left."""
    x = nn.Parameter(random(300, 30)[0].float())
    optimizer = MAKERS[name]([x], lr=0.01, weight_decay=0.0, **how(backend))
    x.grad = random(300, 30, seed=1)[0].float()
    optimizer.step()
    x.grad = torch.zeros_like(x)
    moved = False
    for _ in range(1200):
        before = x.detach().clone()
        optimizer.step()
        step = float((x.detach() - before).double().norm() / before.double().norm())
        assert step < 0.0101, "and it is a number"
        moved |= step > 0.0099
    assert moved
    assert x.isfinite().all()


SIZES = [(1.0, 1e-24), (1.0, 1e18), (1e-25, 1.0), (1e24, 1.0)]
"""Of weights and gradients: what float32 holds, and not its square."""
OUT_OF_REACH = {("LAMB", 1.0, 1e-24), ("Layerwise SGD", 1.0, 1e-24), ("Layerwise SGD", 1e24, 1.0)}
"""LAMB's v holds the squares themselves, and the step of a base has to show in the weights."""


@pytest.mark.parametrize(
    ("name", "weight", "gradient"),
    [
        (name, *size)
        for name in ("LAMB", "LANS", "LARS", "LARS 2017", "Layerwise SGD")
        for size in SIZES
        if (name, *size) not in OUT_OF_REACH
    ],
)
def test_sizes_that_float32_cannot_square_are_measured_all_the_same(name: str, weight: float, gradient: float) -> None:
    start, grads = random(40, 30, count=3)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0}
    if name in ("LAMB", "LANS"):
        options["eps"] = 1e-30
    clips: list[dict[str, Any]] = [{}] if name == "LANS" else [{}, {"max_grad_norm": 1e-3}]
    for clip in clips:
        ends = []
        for dtype in (torch.float64, torch.float32):
            for backend in BACKENDS:
                given = [(gradient * g).to(dtype) for g in grads]
                end = steps((weight * start).to(dtype), given, MAKERS[name], **how(backend), **options, **clip)
                ends.append(end.double() / weight)
        assert name == "LARS 2017" or not torch.allclose(ends[0], start, rtol=1e-3)
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-4)


def test_a_clip_does_not_erase_a_long_gradient() -> None:
    for backend in BACKENDS:
        x = nn.Parameter(torch.ones(64, 64))
        optimizer = LAMB([x], lr=0.1, max_grad_norm=1.0, **how(backend))
        x.grad = torch.full((64, 64), 1e20)
        assert float(optimizer.grad_norm()) == pytest.approx(64e20)
        optimizer.step()
        torch.testing.assert_close(x.detach(), torch.full((64, 64), 0.9))


@pytest.mark.parametrize("make", [LAMB, LANS])
@every_backend
def test_a_look_ahead_without_memory_of_squares_is_a_step_like_others(make: Any, backend: str) -> None:
    start, grads = random(4, 3, count=3)
    options: dict[str, Any] = {"lr": 0.1, "nesterov": "both", **how(backend)}
    end = steps(start, grads, make, betas=(0.9, 0.0), **options)
    torch.testing.assert_close(end, steps(start, grads, make, betas=(0.9, 1e-12), **options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float64])
@every_backend
def test_gradients_that_fade_out_of_range_leave_a_number(backend: str, dtype: torch.dtype) -> None:
    for name in ("LAMB", "LANS", "LARS", "LARS 2017"):
        x = nn.Parameter(torch.ones(4, dtype=dtype))
        optimizer = MAKERS[name]([x], lr=0.01, **how(backend))
        for power in range(330):
            x.grad = (torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64) * 10.0**-power).to(dtype)
            optimizer.step()
            assert x.isfinite().all(), (name, power)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 300_000])
def test_norms_are_exact_whatever_the_length_and_the_size(count: int, size: float, dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.ones(count, dtype=dtype))
    x.grad = (size * torch.rand(count, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = float(x.grad.double().square().sum().sqrt())
    assert float(LAMB([x]).grad_norm()) == pytest.approx(exact, rel=2e-7)
    x.grad[-1] = math.inf
    assert float(LAMB([x]).grad_norm()) == math.inf
    x.grad[0] = math.nan
    assert LAMB([x]).grad_norm().isnan()


@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS", "LARS 2017"])
@pytest.mark.parametrize("foreach", [False, True])
def test_tools_can_trace_a_step_without_data(name: str, foreach: bool) -> None:
    """Memory trackers do: nothing but the count of steps may be read on the host."""
    with FakeTensorMode():
        x = nn.Parameter(torch.ones(100, 100))
        x.grad = torch.ones(100, 100)
        optimizer = MAKERS[name]([x], lr=0.1, foreach=foreach)
        for _ in range(3):
            optimizer.step()
    assert isinstance(optimizer.trust_ratios()["0"], FakeTensor)


def test_norms_of_tensors_that_are_not_dense_are_exact() -> None:
    x = torch.rand(1_000_000, 2, generator=torch.Generator().manual_seed(0)).t()
    p = nn.Parameter(x.contiguous())
    p.grad = x
    assert not x.is_contiguous()
    exact = float(x.double().square().sum().sqrt())
    assert float(LAMB([p]).grad_norm()) == pytest.approx(exact, rel=1e-7)
    optimizer = LARS([p], lr=0.1, momentum=0.0, weight_decay=0.0, foreach=True)
    optimizer.step()
    assert float(optimizer.trust_ratios()["0"]) == pytest.approx(1.0, rel=1e-7)


def test_the_norm_of_gradients_of_a_subclass_of_tensor() -> None:
    class Marked(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert "_foreach" not in getattr(func, "__name__", ""), "this subclass has no multi-tensor operations"
            return super().__torch_function__(func, types, args, kwargs or {})

    x = nn.Parameter(torch.ones(2))
    x.grad = torch.tensor([3.0, 4.0]).as_subclass(Marked)
    assert float(LAMB([x], foreach=False).grad_norm()) == 5


@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.parametrize("make", [LAMB, LANS, MAKERS["LARS"]])
def test_stacked_is_checked_at_each_step(make: Any) -> None:
    for compiled in (False, True):
        x = nn.Parameter(torch.arange(8.0).view(4, 2))
        x.grad = torch.ones(4, 2)
        optimizer = make([x])
        optimizer.param_groups[0]["stacked"] = (0, 3)
        before = x.detach().clone()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        with pytest.raises(Exception, match=r"shape \(4, 2\); stacked=\(0, 3\) needs a dimension 0 that 3 divides"):
            step()
        assert torch.equal(x, before)
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [LAMB, MAKERS["LARS outside"], MAKERS["Layerwise SGD"]])
def test_a_clip_that_only_a_later_group_has(make: Any) -> None:
    ends = []
    for threshold in (None, 0.1):
        x, y = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        options: dict[str, Any] = {"adapt": False, **({"eps": 1.0} if make is LAMB else {})}
        optimizer = make([{"params": [x]}, {"params": [y], "max_grad_norm": threshold}], lr=0.1, **options)
        for p in (x, y):
            p.grad = torch.full((3,), 2.0)
        optimizer.step()
        ends.append((x.detach(), y.detach()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.allclose(ends[0][1], ends[1][1])


@every_backend
@every_maker
def test_a_backward_pass_from_before_the_step_is_refused(make: Any, backend: str) -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = make([x], lr=0.1, **how(backend))
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    before = x._version
    optimizer.step()
    assert x._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
