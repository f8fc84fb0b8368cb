"""What must hold for LAMB whatever the numbers, each property beside a variant for which it does not hold."""

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lamb_zoo as zoo
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from largebatch.optim import LAMB, base
from largebatch.optim.gathering import Member, portions
from largebatch.optim.kernels import foreach
from oracle import Lamb as Oracle

F64 = torch.float64
both_backends = pytest.mark.parametrize("backend", [False, True], ids=["plain", "foreach"])


def steps(start: Tensor, grads: list[Tensor], **options: Any) -> Tensor:
    """Return where `start` ends after a step with each gradient."""
    x = nn.Parameter(start.clone())
    optimizer = LAMB([x], **options)
    for g in grads:
        x.grad = g.clone()
        optimizer.step()
    return x.detach()


def random(*shape: int, seed: int = 0, count: int = 5) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    make: Callable[[], Tensor] = lambda: torch.randn(*shape, dtype=F64, generator=generator)  # noqa: E731
    return make(), [make() for _ in range(count)]


@both_backends
@pytest.mark.parametrize(("norm", "order"), [(1, 1), (2, 2), ("inf", torch.inf)])
def test_an_adapted_layer_moves_by_exactly_lr_times_its_norm(backend: bool, norm: Any, order: float) -> None:
    start, grads = random(5, 4)
    for number in range(1, 4):
        before = steps(start, grads[: number - 1], lr=0.03, norm=norm, foreach=backend)
        after = steps(start, grads[:number], lr=0.03, norm=norm, foreach=backend)
        moved, size = (torch.linalg.vector_norm(a, order) for a in (after - before, before))
        torch.testing.assert_close(moved, 0.03 * size, rtol=1e-12, atol=0)
    free = steps(start, grads[:1], lr=0.03, norm=norm, foreach=backend, adapt=False)
    assert (
        abs(torch.linalg.vector_norm(free - start, order) / (0.03 * torch.linalg.vector_norm(start, order)) - 1) > 0.01
    )


@both_backends
def test_scaling_the_loss_leaves_the_step_as_eps_vanishes(backend: bool) -> None:
    start, grads = random(5, 4)

    def difference(eps: float) -> float:
        ends = [steps(start, [s * g for g in grads], lr=0.1, eps=eps, foreach=backend) for s in (1e-3, 1e3)]
        return float((ends[0] - ends[1]).abs().max())

    assert difference(1e-30) < 1e-13
    assert difference(1e-3) > 1e-4


@both_backends
def test_permutation_commutes_with_the_step(backend: bool) -> None:
    start, grads = random(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for stacked, commutes in ((None, True), ((0, 3), False)):
        ends = steps(start, grads, lr=0.1, stacked=stacked, foreach=backend)[order]
        permuted = steps(start[order], [g[order] for g in grads], lr=0.1, stacked=stacked, foreach=backend)
        assert torch.allclose(ends, permuted, rtol=1e-12, atol=1e-14) is commutes


@both_backends
def test_each_stacked_block_moves_as_a_layer_of_its_own(backend: bool) -> None:
    start, grads = random(4, 6)
    for dim, shape in ((0, 2), (1, 3), (-1, 3)):
        whole = steps(start, grads, lr=0.1, stacked=(dim, 2), foreach=backend)
        for block in range(2):
            alone = steps(
                start.narrow(dim, block * shape, shape),
                [g.narrow(dim, block * shape, shape) for g in grads],
                lr=0.1,
                foreach=backend,
            )
            torch.testing.assert_close(whole.narrow(dim, block * shape, shape), alone, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(whole, steps(start, grads, lr=0.1, foreach=backend))


@both_backends
def test_without_the_ratio_it_is_adamw(backend: bool) -> None:
    start, grads = random(5, 4, count=50)
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    x = nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([x], **options)
    for g in grads:
        x.grad = g
        theirs.step()
    ours = steps(start, grads, adapt=False, foreach=backend, **options)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-11, atol=1e-13)
    assert not torch.allclose(steps(start, grads, foreach=backend, **options), x.detach(), rtol=1e-3)


@both_backends
def test_maximising_is_minimising_the_negative(backend: bool) -> None:
    start, grads = random(5, 4)
    down = steps(start, [-g for g in grads], max_grad_norm=1.0, foreach=backend)
    assert torch.equal(steps(start, grads, maximize=True, max_grad_norm=1.0, foreach=backend), down)
    assert not torch.equal(steps(start, grads, max_grad_norm=1.0, foreach=backend), down)


@both_backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_with_rate_zero_and_zero_gradients_changes_nothing(backend: bool, dtype: torch.dtype) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    before = [p.detach().clone() for p in made]
    optimizer = zoo.optimizer_over(made, foreach=backend, master_weights=True)
    for lr, unchanged in ((0.0, True), (0.5, False)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p in made:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True)) is unchanged


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_left_as_they_are(backend: bool, dtype: torch.dtype) -> None:
    made = zoo.parameters(zoo.weights(), dtype)
    zoo.set_gradients(made, zoo.gradients(30))
    held = [(p.grad, p.grad.clone(), p.grad._version) for p in made if p.grad is not None]
    optimizer = zoo.optimizer_over(made, foreach=backend, maximize=True, max_grad_norm=1e-3)
    optimizer.grad_norm()
    optimizer.step()
    for p, (same, copy, version) in zip(made, held, strict=True):
        assert p.grad is same
        assert torch.equal(same, copy)
        assert same._version == version


@both_backends
def test_betas_and_other_options_may_change_between_steps(backend: bool) -> None:
    made, groups = zoo.parameters(zoo.weights()), ({**zoo.PLAIN_GROUP, "lr": 0.1},)
    ours, oracle = zoo.optimizer_over(made, groups, foreach=backend), Oracle(zoo.weights(), groups)
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


def test_the_order_of_parameters_and_groups_does_not_matter() -> None:
    ends = []
    for turn in (1, -1):
        made = zoo.parameters(zoo.weights())
        groups = [{**group, "members": group["members"][::turn]} for group in zoo.GROUPS][::turn]
        optimizer = zoo.optimizer_over(made, groups)
        for step in range(1, 10):
            zoo.set_gradients(made, zoo.gradients(step))
            optimizer.step()
        ends.append((made, optimizer.trust_ratios()))
    assert list(ends[0][1]) != list(ends[1][1])
    for i, name in enumerate(zoo.NAMES):
        torch.testing.assert_close(ends[0][0][i], ends[1][0][i], rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(ends[0][1][name], ends[1][1][name], rtol=1e-13, atol=0, equal_nan=True)


def test_trust_ratios_have_names_and_shapes_and_nan_where_nothing_moved() -> None:
    made = zoo.parameters(zoo.weights())
    optimizer = zoo.optimizer_over(made)
    first = optimizer.trust_ratios()
    assert set(first) == set(zoo.NAMES)
    assert all(ratio.isnan().all() for ratio in first.values())
    zoo.set_gradients(made, zoo.gradients(1))
    optimizer.step()
    ratios = optimizer.trust_ratios()
    assert ratios["stacked"].shape == (1, 3)
    assert ratios["excluded"].tolist() == ratios["zero"].tolist() == [[1.0]]
    assert {name for name, ratio in ratios.items() if ratio.isnan().any()} == {"empty", "no-gradient-yet"}
    assert all(ratio.dtype == F64 and not ratio.requires_grad for ratio in ratios.values())
    optimizer.zero_grad()
    optimizer.step()
    assert all(ratio.isnan().all() for ratio in optimizer.trust_ratios().values())
    nameless = LAMB([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))])
    assert list(nameless.trust_ratios()) == ["0", "1"]


def test_grad_norm_is_that_of_the_gradients_as_they_are() -> None:
    made = zoo.parameters(zoo.weights())
    optimizer = zoo.optimizer_over(made, max_grad_norm=0.1)
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
    np.testing.assert_allclose(float(LAMB([half]).grad_norm()), 60000, rtol=1e-6)


def test_a_gradient_that_is_not_a_number_shows_in_the_weights() -> None:
    start, grads = random(3, 2, count=1)
    grads[0][0, 0] = torch.nan
    for backend in (False, True):
        assert steps(start, grads, foreach=backend).isnan().all()


def test_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LAMB([x], lr=0.1)

    def closure() -> float:
        loss = (x**2).sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 25.0
    assert float(x.detach().norm()) < 5


def test_groups_may_be_added_late_and_do_not_change_the_callers_dict() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    given: dict[str, Any] = {"params": [first]}
    optimizer = LAMB([given], lr=0.1)
    assert given == {"params": [first]}
    for p in (first, second):
        p.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.2})
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in (first, second)] == [2, 1]
    torch.testing.assert_close((second.detach() - 1).norm(), torch.tensor(0.2 * 3**0.5))


def test_schedulers_and_gradient_scalers_of_torch_work() -> None:
    ends = []
    for scaled in (False, True):
        x = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = LAMB([x], lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
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
        ends.append((x.detach(), float(optimizer.state[x]["step"])))
    torch.testing.assert_close(ends[0], ends[1])


def _address(a: Tensor) -> int:
    return a.untyped_storage().data_ptr()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations have made and that still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_address(a) for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for a in tree_leaves(made):
            if isinstance(a, Tensor) and (key := _address(a)) not in given | self.known:
                size = a.untyped_storage().nbytes()
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(a, self.forget, key, size)
        return made

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([3, 4, 5], 7, [[3, 4], [5]]),
        ([3, 4, 5], 6, [[3], [4], [5]]),
        ([9, 1, 1, 0, 9], 2, [[9], [1, 1, 0], [9]]),
        ([2, 2], math.inf, [[2, 2]]),
        ([], 5, []),
    ],
)
def test_layers_are_portioned_by_their_elements(sizes: list[int], limit: float, expected: list[list[int]]) -> None:
    members = [Member(n, torch.empty(size), torch.empty(size)) for n, size in enumerate(sizes)]
    found = list(portions(members, limit))
    assert [[member.p.numel() for member in portion] for portion in found] == expected
    assert [member.number for portion in found for member in portion] == list(range(len(sizes)))


@contextmanager
def limits(monkeypatch: pytest.MonkeyPatch, piece: int, kept: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(foreach, "CPU_PIECE_ELEMENTS", piece)
        patch.setattr(foreach, "CPU_KEPT_ELEMENTS", kept)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_read_back_from_the_device(dtype: torch.dtype) -> None:
    """Tensors without data stand for a device: whoever looks at a value, or mixes devices, fails."""
    made = [nn.Parameter(p.detach().to("meta")) for p in zoo.parameters(zoo.weights(), dtype)]
    optimizer = zoo.optimizer_over(made, foreach=True, master_weights=True)
    for p in made:
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
    assert optimizer.grad_norm().is_meta
    assert all(ratio.is_meta for ratio in optimizer.trust_ratios().values())
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.grad_norm().item()


def test_the_default_device_is_not_taken_for_that_of_the_parameters() -> None:
    start, grads = random(3, 4)
    expected = steps(start, grads, max_grad_norm=1.0)
    x = nn.Parameter(start.clone())
    with torch.device("meta"):
        optimizer = LAMB([x], max_grad_norm=1.0)
        for g in grads:
            x.grad = g.clone()
            optimizer.step()
    assert optimizer.trust_ratios()["0"].device == x.device
    assert torch.equal(x, expected)


@both_backends
def test_options_may_be_numbers_of_numpy(backend: bool) -> None:
    start, grads = random(3, 4)
    options: dict[str, Any] = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.5}
    bounds: dict[str, Any] = {"ratio_bounds": (0.0, 0.5), "phi_bounds": (0.0, 2.0), "max_grad_norm": 0.5}
    expected = steps(start, grads, **options, **bounds, foreach=backend)
    same: dict[str, Any] = {
        name: tuple(map(np.float32, value)) if isinstance(value, tuple) else np.float32(value)
        for name, value in {**options, **bounds}.items()
    }
    assert torch.equal(steps(start, grads, **same, foreach=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_foreach_needs_bounded_memory(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    piece, kept = 1 << 12, 1 << 14

    def peak(piece: int, kept: int) -> int:
        made = [nn.Parameter(torch.ones(n, dtype=dtype)) for n in (1 << 18, 3000, 1 << 14, 20, *[5000] * 30)]
        for p in made:
            p.grad = torch.ones_like(p)
        optimizer = LAMB(made, foreach=True, max_grad_norm=1.0)
        optimizer.init_state()
        with limits(monkeypatch, piece, kept), LiveBytes() as count:
            optimizer.step()
            optimizer.grad_norm()
        return count.peak

    # Kept directions, and four float32 temporaries of a piece (two, and copies of x and g in float32), and scalars.
    bound = 4 * (kept + 4 * piece) + 20_000
    assert 4 * kept < peak(piece, kept) < bound
    assert peak(piece, 10**9) > 2 * bound
    assert peak(10**9, kept) > 2 * bound


class Marked(Tensor):
    """A subclass of Tensor, for which multi-tensor operations may not exist."""


def test_the_default_chooses_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "_logged", set())
    caplog.set_level(logging.INFO, logger="largebatch.optim")
    for choice in (None, None, True, False):
        x = nn.Parameter(torch.ones(2))
        x.grad = torch.ones(2)
        optimizer = LAMB([x], foreach=choice)
        optimizer.step()
        optimizer.step()
    x = torch.ones(2).as_subclass(Marked).requires_grad_()
    x.grad = torch.ones(2)
    LAMB([x]).step()
    assert [record.getMessage() for record in caplog.records] == [
        f"LAMB on cpu: {kernels} kernels (the default; foreach=... chooses)" for kernels in ("foreach", "plain")
    ]
