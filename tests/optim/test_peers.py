"""Agreement with optax, timm and torch over fifty steps, in the settings where the rules coincide."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peers import timm_lamb, timm_lars
from rules import every_backend, how
from torch import nn
from torch.optim import SGD, AdamW

from largebatch.optim import LAMB, LARS

STEPS = 50
SHAPES = ((16, 8), (8,), (3, 4, 5), (1,))
ZEROS = 3
"""A tensor that starts at zero, whose ratio is 1."""


def rate(step: int) -> float:
    """Return a rate that changes at each step: warm-up, then decay."""
    return 0.02 * min(step / 10, (STEPS + 1 - step) / (STEPS - 9))


def weights() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    found = [generator.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    found[ZEROS][:] = 0
    return found


def gradients(step: int) -> list[np.ndarray]:
    generator = np.random.default_rng([1, step])
    return [(generator.standard_normal(shape) * 10.0**-i).astype(np.float32) for i, shape in enumerate(SHAPES)]


def torch_run(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Iterator[list[np.ndarray]]:
    """Yield the weights after each step of an optimizer of torch's kind."""
    made = [nn.Parameter(torch.tensor(a)) for a in weights()]
    optimizer = make(made)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for p, g in zip(made, gradients(step), strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        yield [p.detach().numpy().copy() for p in made]


def optax_run(transformation: Callable[[Any], Any]) -> Iterator[list[np.ndarray]]:
    """Yield the weights after each step of an optax optimizer, which is given a schedule."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = transformation(lambda count: 0.02 * jnp.minimum((count + 1) / 10, (STEPS - count) / (STEPS - 9)))
    params = [jnp.asarray(a) for a in weights()]
    state = optimizer.init(params)

    @jax.jit
    def move(params: Any, state: Any, given: Any) -> Any:
        updates, state = optimizer.update(given, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(1, STEPS + 1):
        params, state = move(params, state, [jnp.asarray(g) for g in gradients(step)])
        yield [np.asarray(p) for p in params]


def largest_difference(one: Iterator[Sequence[np.ndarray]], other: Iterator[Sequence[np.ndarray]]) -> float:
    """Return the largest difference of any weight over all steps, relative to the largest weight of its tensor."""
    found = 0.0
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            found = max(found, float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-3)))
    return found


ROUNDING = 2e-5
"""Fifty steps of float32, whose roundings add up."""


def test_the_largest_difference_sees_small_ones() -> None:
    shifted = ([x * (1 + 1e-4) for x in a] for a in torch_run(LAMB))
    assert largest_difference(torch_run(LAMB), shifted) > ROUNDING


def _optax() -> Any:
    import optax

    return optax


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every_backend
def test_lamb_equals_optaxs(weight_decay: float, backend: str) -> None:
    options: dict[str, Any] = {"eps": 1e-6, "weight_decay": weight_decay}
    theirs = optax_run(lambda schedule: _optax().lamb(schedule, b1=0.9, b2=0.99, **options))
    ours = torch_run(lambda p: LAMB(p, betas=(0.9, 0.99), **how(backend), **options))
    assert largest_difference(ours, theirs) < ROUNDING


@pytest.mark.parametrize("nesterov", [False, True])
@every_backend
def test_lars_of_2017_equals_optaxs_without_decay(nesterov: bool, backend: str) -> None:
    """Its rate is inside the momentum, as in the paper; its denominator takes the decay in otherwise than ours."""
    options: dict[str, Any] = {"trust_coefficient": 0.1, "nesterov": nesterov, "momentum": 0.9, "eps": 0.0}

    def theirs(weight_decay: float) -> Iterator[list[np.ndarray]]:
        return optax_run(lambda schedule: _optax().lars(schedule, weight_decay=weight_decay, **options))

    def ours(weight_decay: float) -> Iterator[list[np.ndarray]]:
        return torch_run(lambda p: LARS(p, lr=1.0, weight_decay=weight_decay, rule="2017", **how(backend), **options))

    assert largest_difference(ours(0.0), theirs(0.0)) < ROUNDING
    assert largest_difference(ours(0.1), theirs(0.1)) > 100 * ROUNDING, "||g + decay * x|| is another denominator"


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "theirs", [{}, {"max_grad_norm": 1.0}, {"trust_clip": True}, {"bias_correction": False}], ids=str
)
def test_lamb_equals_timms(weight_decay: float, theirs: dict[str, Any]) -> None:
    def timms(**options: Any) -> Iterator[list[np.ndarray]]:
        given = {"max_grad_norm": None, "weight_decay": weight_decay, **theirs, **options}
        return torch_run(lambda p: timm_lamb()(p, **given))

    options = dict(theirs)
    if options.pop("trust_clip", False):
        options["ratio_bounds"] = (0.0, 1.0)
    ours = lambda: torch_run(lambda p: LAMB(p, weight_decay=weight_decay, **options))  # noqa: E731
    assert largest_difference(ours(), timms(always_adapt=True)) < ROUNDING
    if weight_decay == 0:
        assert largest_difference(ours(), timms()) > 100 * ROUNDING, "there, no decay switches the ratio off"


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_with_the_rate_outside_equals_timms(weight_decay: float, nesterov: bool) -> None:
    shared: dict[str, Any] = {"momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov, "eps": 1e-8}

    def ours(rule: Any) -> Iterator[list[np.ndarray]]:
        return torch_run(lambda p: LARS(p, lr=1.0, rule=rule, trust_coefficient=0.1, **shared))

    def theirs() -> Iterator[list[np.ndarray]]:
        return torch_run(lambda p: timm_lars()(p, trust_coeff=0.1, always_adapt=True, **shared))

    assert largest_difference(ours("2017-lr-outside"), theirs()) < ROUNDING
    assert largest_difference(ours("2017"), theirs()) > 10 * ROUNDING, "the rate is on the other side of the momentum"


@every_backend
def test_lamb_without_ratio_and_decay_is_adam(backend: str) -> None:
    theirs = torch_run(lambda p: AdamW(p, eps=1e-6, weight_decay=0.0))
    ours = torch_run(lambda p: LAMB(p, adapt=False, weight_decay=0.0, **how(backend)))
    assert largest_difference(ours, theirs) < ROUNDING


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_without_ratio_is_sgd(nesterov: bool) -> None:
    theirs = torch_run(lambda p: SGD(p, momentum=0.9, weight_decay=0.1, nesterov=nesterov))
    shared: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1, "adapt": False, "nesterov": nesterov}
    ours = torch_run(lambda p: LARS(p, rule="2017-lr-outside", **shared))
    assert largest_difference(ours, theirs) < ROUNDING
