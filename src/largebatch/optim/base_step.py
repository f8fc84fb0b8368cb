"""One step of a base optimizer at a known rate, with the weights of before kept: what the general strategy starts from.

A full-precision parameter is stepped where it is, after a snapshot, so that any base will do. Of a half-precision one
the step would be rounded away: a float32 stand-in takes its place in the base's groups, with its state, for the
time of the step. (Giving the parameter itself float32 data would reset its gradient accumulator, and with it the
hooks of DDP.) A gradient that is clipped, unscaled or negated is replaced by a copy for the same time. Parameters
without a gradient are kept out of the base's sight, for a base that moves them anyway would do so at this rate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.base_probe import BASE_RATE, make_state, widened
from largebatch.optim.calls import Call
from largebatch.optim.gathering import Member, blocks_of, has_master, real_blocks
from largebatch.optim.shards import local
from largebatch.optim.state import HALF, STATE_DTYPE, master_of


@dataclass(slots=True)
class _Ends:
    """Where parameters start and where they are stepped."""

    snapshots: dict[Tensor, Tensor] = field(default_factory=dict)
    """Of full-precision parameters: copies from before the step."""
    stand_ins: dict[Tensor, Tensor] = field(default_factory=dict)
    """Of half-precision parameters: what the base steps."""
    masters: dict[Tensor, Tensor] = field(default_factory=dict)
    own_gradients: dict[Tensor, Tensor | None] = field(default_factory=dict)
    """The gradients of parameters that have another one for the time of the step."""


def take_base_step(
    base: Optimizer, calls: list[Call], capturables: list[bool | None], found_inf: Tensor | None
) -> None:
    """Let the base step at `BASE_RATE` and give the layers of each call the states "start" and "stepped".

    The base's rates and the parameters' gradients are the same objects afterwards. If the base raises, the
    parameters are as they were.

    Args:
        base: the optimizer.
        calls: the layers that take part.
        capturables: the option of that name in each of the base's groups, None where it has none.
        found_inf: of a GradScaler, for a base that can skip by it.

    Raises:
        RuntimeError: the base moved half-precision parameters that it keeps somewhere else than in its groups.
    """
    ends = _Ends()
    rates = [group["lr"] for group in base.param_groups]
    try:
        for call in calls:
            for member in call.members:
                _prepare(member, call, base, ends)
        versions = {p: p._version for p in ends.stand_ins}
        for group in base.param_groups:
            group["lr"] = BASE_RATE
        # A compiler would break off at the exchange; torch's own bases pass such parameters over anyway.
        hides = not torch.compiler.is_compiling()
        without = [p for group in base.param_groups for p in group["params"] if hides and p.grad is None]
        if ends.stand_ins or without or found_inf is not None:
            with _standing_in(base, ends.stand_ins), _told(base, found_inf):
                base.step()
        elif torch.compiler.is_compiling() and not (base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks):
            _undecorated(type(base).step)(base)
        else:
            base.step()
    except BaseException:
        for p, start in ends.snapshots.items():
            p.detach().copy_(start)
        raise
    finally:
        for group, rate, capturable in zip(base.param_groups, rates, capturables, strict=True):
            group["lr"] = rate
            if torch.compiler.is_compiling() and capturable is not None:
                group["capturable"] = capturable  # see `LastStep`
        for p, gradient in ends.own_gradients.items():
            p.grad = gradient
    for p in ends.stand_ins:
        base.state.get(p, {}).pop("master", None)
    for p, master in ends.masters.items():
        base.state[p]["master"] = master
    if any(p._version != version for p, version in versions.items()):
        raise RuntimeError(
            f"{type(base).__name__} moved half-precision parameters that it keeps elsewhere than in its parameter "
            "groups; it can only be a base for float32 ones"
        )
    for call in calls:
        _hand_over(call, ends)


def _undecorated(step: Any) -> Callable[[Optimizer], Any]:
    """Return a step without profiling and without its own switch of autograd, at which a compiler breaks off.

    Autograd is already as our step wants it.
    """
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step


def create_base_state(base: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Let the base create the state of parameters, on stand-ins; nothing else of it changes."""
    stand_ins = {p: p.detach().to(STATE_DTYPE[p.dtype], copy=True) for p in parameters}
    rates = [group["lr"] for group in base.param_groups]
    gradients = {p: p.grad for group in base.param_groups for p in group["params"]}
    try:
        for p in gradients:
            p.grad = None
        for stand_in in stand_ins.values():
            stand_in.grad = torch.zeros_like(stand_in)
        with _standing_in(base, stand_ins):
            make_state(base, stand_ins.values())
    finally:
        for group, rate in zip(base.param_groups, rates, strict=True):
            group["lr"] = rate
        for p, gradient in gradients.items():
            p.grad = gradient


def _prepare(member: Member, call: Call, base: Optimizer, ends: _Ends) -> None:
    p, grad = member.p, member.grad
    gradient = _seen_gradient(member, call)
    if p.dtype not in HALF and grad.dtype == p.dtype:
        ends.snapshots[p] = p.clone() if call.options["differentiable"] else p.detach().clone()
        if gradient is not p.grad:
            ends.own_gradients[p] = p.grad
            p.grad = gradient
        return
    start = p
    if has_master(p, call.options):
        master = base.state.get(p, {}).get("master")
        start = ends.masters[p] = master_of(p) if master is None else master
    stand_in = start.detach().to(STATE_DTYPE[p.dtype], copy=True)
    stand_in.grad = gradient
    ends.stand_ins[p] = stand_in


def _seen_gradient(member: Member, call: Call) -> Tensor | None:
    """Return the gradient that the base is to see: the parameter's own where nothing is done to it."""
    grad, scale = member.grad, call.layers.g_scale
    if not grad.is_complex() and grad.dtype != call.layers.dtype:
        grad = grad.to(call.layers.dtype)
    if scale is not None:
        grad = grad * scale.to(call.layers.dtype)
    if call.options["maximize"]:
        grad = -grad
    if member.layout is None:
        return grad
    whole: Any = member.p.grad
    unchanged = grad is member.grad and whole.placements == member.layout.placements
    return whole if unchanged else member.layout.of(grad)


@contextmanager
def _standing_in(base: Optimizer, stand_ins: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Let the base meet other tensors in the place of some parameters, with the states of these in float32.

    Parameters without a gradient it does not meet.
    """
    lists = [group["params"] for group in base.param_groups]
    masters: dict[Tensor, Tensor] = {}
    for p, stand_in in stand_ins.items():
        if p in base.state:
            state = widened(base.state.pop(p))
            if "master" in state:
                masters[p] = state.pop("master")
            base.state[stand_in] = state
    for group in base.param_groups:
        seen = [stand_ins.get(p, p) for p in group["params"]]
        group["params"] = [p for p in seen if p.grad is not None]
    try:
        yield
    finally:
        for group, params in zip(base.param_groups, lists, strict=True):
            group["params"] = params
        for p, stand_in in stand_ins.items():
            if stand_in in base.state:
                base.state[p] = base.state.pop(stand_in)
        for p, master in masters.items():
            base.state[p]["master"] = master


@contextmanager
def _told(base: Any, found_inf: Tensor | None) -> Iterator[None]:
    """Tell the base whether to skip its step; the gradients that it meets are unscaled."""
    if found_inf is None:
        yield
        return
    base.grad_scale, base.found_inf = None, found_inf
    try:
        yield
    finally:
        del base.grad_scale, base.found_inf


def _hand_over(call: Call, ends: _Ends) -> None:
    """Give the kernels where each layer started, where the base has taken it, and what is to be written."""
    layers, detach = call.layers, not call.options["differentiable"]
    layers.x, layers.rounded = [], None
    layers.state = {"start": [], "stepped": []}

    for member in call.members:
        p, where = member.p, blocks_of(member, call.options["stacked"])
        start = ends.snapshots.get(p, ends.masters.get(p, p))
        stepped = ends.stand_ins.get(p, p)
        if p in ends.masters:
            layers.rounded = (layers.rounded or []) + real_blocks(member.here, where, detach=detach)
        layers.x += real_blocks(local(ends.masters[p]) if p in ends.masters else member.here, where, detach=detach)
        layers.state["start"] += real_blocks(local(start), where, detach=detach)
        layers.state["stepped"] += real_blocks(local(stepped), where, detach=detach)
