"""Whether an optimizer can be the base of the general layerwise strategy, found out by trying.

The strategy takes the base's step at one rate for a direction, ``x <- x - rate * u``, and gives it another length. So
the step has to be proportional to the rate: not so where the rate is kept in the state (ASGD, Rprop, schedule-free
optimizers), inside the momentum (the LARS of 2017), or capped by something else (Adafactor). A twin of the base
takes two steps on tensors like one small parameter of each group, at two rates; the base itself is not touched.
"""

import copy
import inspect
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from largebatch.optim.shards import local
from largebatch.optim.state import HALF, STATE_DTYPE

_log = logging.getLogger("largebatch.optim")
BASE_RATE = 2.0**16
"""The rate at which bases step. With ``stepped = fl(x - rate * u)`` the rounding is at most 2^-24 of |x| or of rate *
|u|, so that u from ``(x - stepped) / rate`` is off by 2^-24 * max(|x| / rate, |u|). At rate 1 the small steps of SGD
drown in the weights' rounding; at this one no more than a bit of u is lost wherever |u| > |x| / 65536. It fails where
rate * u overflows, for |u| above 1e33. A power of two, by which the division is exact."""
_TOLERANCE = 1e-3
"""Of the largest element of a step: far above rounding, far below what a rate kept in the state does."""


def check_base(base: Any) -> None:
    """Refuse what cannot be a base.

    Raises:
        ValueError: no optimizer, a wrapper of one, one that has a `Layerwise` already, one whose step needs a closure
            or sparse gradients, or one whose step is not proportional to its learning rate.
    """
    if not isinstance(base, Optimizer):
        given = f"the class {base.__name__}" if isinstance(base, type) else f"of type {type(base).__name__}"
        raise ValueError(f"base_optimizer is {given}; it must be an object of a torch.optim.Optimizer class")
    name = type(base).__name__
    if any(isinstance(getattr(type(base), part, None), property) for part in ("param_groups", "state")):
        raise ValueError(f"{name} is a wrapper of an optimizer; base_optimizer must be the optimizer inside")
    if any("lr" not in group for group in base.param_groups):
        raise ValueError(f"{name} has a parameter group without lr; a base optimizer has to have a learning rate")
    parameters = list(inspect.signature(type(base).step).parameters.values())[1:]
    if isinstance(base, LBFGS) or any(p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise ValueError(f"the step of {name} needs a closure; a base optimizer has to step without one")
    if isinstance(base, SparseAdam):
        raise ValueError("SparseAdam needs sparse gradients; a base optimizer has to take dense ones")
    try:
        proportional = _proportional(base)
    except Exception as error:
        # A base that only this trial upsets is still one; what really fails will fail in its step.
        _log.warning("could not try whether the step of %s is proportional to its rate: %s", name, error)
        return
    if not proportional:
        raise ValueError(
            f"the step of {name} is not proportional to its learning rate (it keeps the rate in its state, or bounds "
            "the step by something else), so that it gives no direction; a base optimizer has to take it plainly"
        )


def state_can_be_made_ahead(base: Optimizer) -> bool:
    """Return whether a step of zeros at zero, its count then taken back, leaves the base as it was when new."""
    ends = []
    for ahead in (False, True):
        twin, tensors = _twin(base, with_state=False)
        if any(a.is_meta for a in tensors):
            return True  # tensors without data: nothing to compare
        if ahead:
            make_state(twin, tensors)
        for factor in (1.0, -0.7):
            _give_gradients(tensors, factor)
            _step(twin, BASE_RATE)
        ends.append([a.detach().clone() for a in tensors])
    return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def make_state(base: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Let the base create the state of parameters by a step of zeros at zero, and take the count back."""
    parameters = list(parameters)
    held = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.zero_()
        p.grad = torch.zeros_like(p)
    _step(base, BASE_RATE)
    for p, old in zip(parameters, held, strict=True):
        p.copy_(old)
        p.grad = None
        state = base.state.get(p, {})
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0


def _proportional(base: Optimizer) -> bool:
    """Return whether the steps at a rate are twice those at half of it, for one gradient and between two.

    Between two gradients, because a decay of the weights, which is proportional, may be so much longer than the rest
    of a step that it hides what the rest does.
    """
    whole = [_second_step(base, BASE_RATE, factor) for factor in (1.0, -0.7)]
    half = [_second_step(base, BASE_RATE / 2, factor) for factor in (1.0, -0.7)]
    if not any(a.is_meta or a.any() for a in whole[0]):
        raise RuntimeError("its copy moves nothing")
    return all(
        _alike(one, 2 * other) and _alike(one - two, 2 * (other - another))
        for one, two, other, another in zip(*whole, *half, strict=True)
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.is_meta or bool((a - b).abs().max() <= _TOLERANCE * a.abs().max())


def _second_step(base: Optimizer, rate: float, factor: float) -> list[Tensor]:
    """Return the step at a rate and with a gradient, from the same weights after a first step has made the state."""
    twin, tensors = _twin(base, with_state=True)
    starts = [a.detach().clone() for a in tensors]
    _give_gradients(tensors, 0.5)
    _step(twin, BASE_RATE)
    for a, start in zip(tensors, starts, strict=True):
        a.copy_(start)
    _give_gradients(tensors, factor)
    _step(twin, rate)
    return [start - a for start, a in zip(starts, tensors, strict=True)]


@torch.no_grad()
def _twin(base: Optimizer, *, with_state: bool) -> tuple[Optimizer, list[Tensor]]:
    """Return an optimizer like the base, over a tensor like the smallest parameter of each group, and these tensors."""
    groups: list[dict[str, Any]] = []
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    tensors: list[Tensor] = []
    # What else the base has is copied, for its steps may change it: with this memory of what stands for what, so that
    # parameters and groups that it holds a second time are the twin's own there too, and never those of the base.
    memory: dict[int, Any] = {id(base.param_groups): groups, id(base.state): state}
    chosen = [
        (group, min((p for p in group["params"] if p.numel()), key=Tensor.numel))
        for group in base.param_groups
        if any(p.numel() for p in group["params"])
    ]
    for group in base.param_groups:
        memory.update({id(p): torch.nn.Parameter(p.detach().new_empty(0)) for p in group["params"]})
    for _, p in chosen:
        # Not the weights themselves, which might be of any size, or all alike.
        # What lies here of one in shards, with its state; where nothing does, a whole one, without.
        like = local(p) if local(p).numel() else torch.empty(p.shape, dtype=p.dtype, device=p.device)
        values = torch.linspace(0.1, 1, like.numel(), device=p.device).view(like.shape)
        own = torch.empty_like(like, dtype=STATE_DTYPE.get(p.dtype, p.dtype)).copy_(values)
        memory[id(p)] = own
        tensors.append(own)
    for (group, p), own in zip(chosen, tensors, strict=True):
        if with_state and base.state.get(p) and local(p).numel():
            copied = copy.deepcopy(dict(base.state[p]), memory)
            state[own] = widened({key: local(a) if isinstance(a, Tensor) else a for key, a in copied.items()})
        options = {key: copy.deepcopy(value, memory) for key, value in group.items() if key != "params"}
        groups.append({**options, "params": [own]})
        memory[id(group)] = groups[-1]
    twin = object.__new__(type(base))
    for name, value in base.__dict__.items():
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            twin.__dict__[name] = OrderedDict()
        elif name not in ("param_groups", "state", "step"):  # schedulers wrap the step of the object
            twin.__dict__[name] = copy.deepcopy(value, memory)
    twin.param_groups, twin.state = groups, state
    return twin, tensors


def widened(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with its half-precision tensors in float32."""
    return {
        key: value.to(torch.float32) if isinstance(value, Tensor) and value.dtype in HALF else value
        for key, value in state.items()
    }


def _give_gradients(tensors: Iterable[Tensor], factor: float) -> None:
    for a in tensors:
        gradient = torch.linspace(-0.5, 1, a.numel(), device=a.device).view(a.shape)
        a.grad = (factor * gradient + factor**2 / 3).to(a.dtype)


@torch.no_grad()
def _step(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # without the profiler's and everybody's hooks
    step(optimizer)
