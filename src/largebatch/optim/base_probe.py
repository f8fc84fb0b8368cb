"""Whether an optimizer can be the base of the general layerwise strategy, found out by trying.

The strategy takes the base's step at one rate for a direction, ``x <- x - rate * u``, and gives it another length. So
the step has to be proportional to the rate: not so where the rate is kept in the state (ASGD, Rprop, schedule-free
optimizers), inside the momentum (the LARS of 2017), or capped by something else (Adafactor). A twin of the base
takes two steps on copies of one small parameter of each group, at other rates; the base itself is not touched.
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
        ValueError: no optimizer, one whose step needs a closure or sparse gradients, or one whose step is not
            proportional to its learning rate.
    """
    if not isinstance(base, Optimizer):
        given = f"the class {base.__name__}" if isinstance(base, type) else f"of type {type(base).__name__}"
        raise ValueError(f"base_optimizer is {given}; it must be an object of a torch.optim.Optimizer class")
    name = type(base).__name__
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
        twin, tensors = _twin(base)
        if ahead:
            make_state(twin, tensors)
        for number in (1, 2):
            _give_gradients(tensors, number)
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
    steps = []
    for last_rate in (BASE_RATE, BASE_RATE / 2):
        twin, tensors = _twin(base)
        if any(a.is_meta for a in tensors):
            return True  # tensors without data: nothing to try with
        _give_gradients(tensors, 1)
        _step(twin, BASE_RATE)
        before = [a.detach().clone() for a in tensors]
        _give_gradients(tensors, 2)
        _step(twin, last_rate)
        steps.append([(a - b) / last_rate for a, b in zip(before, tensors, strict=True)])
    return all(bool((one - half).abs().max() <= _TOLERANCE * one.abs().max()) for one, half in zip(*steps, strict=True))


@torch.no_grad()
def _twin(base: Optimizer) -> tuple[Optimizer, list[Tensor]]:
    """Return an optimizer like the base, over a copy of the smallest parameter of each group, and these copies."""
    twin = object.__new__(type(base))
    twin.__dict__.update(base.__dict__)
    twin.__dict__.pop("step", None)  # schedulers wrap the step of the object
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        twin.__dict__[name] = OrderedDict()
    twin.state = defaultdict(dict)
    twin.param_groups = []
    tensors: list[Tensor] = []
    for group in base.param_groups:
        candidates = [p for p in group["params"] if p.numel()]
        if not candidates:
            continue
        p = min(candidates, key=Tensor.numel)
        own = p.detach().to(STATE_DTYPE.get(p.dtype, p.dtype), copy=True)
        # Weights that are all alike would hide what a rule makes of them.
        own += torch.linspace(0.1, 1, own.numel(), device=own.device).view(own.shape).to(own.dtype)
        if base.state.get(p):
            twin.state[own] = widened(copy.deepcopy(dict(base.state[p])))
        twin.param_groups.append({**group, "params": [own]})
        tensors.append(own)
    return twin, tensors


def widened(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with its half-precision tensors in float32."""
    return {
        key: value.to(torch.float32) if isinstance(value, Tensor) and value.dtype in HALF else value
        for key, value in state.items()
    }


def _give_gradients(tensors: Iterable[Tensor], number: int) -> None:
    for a in tensors:
        a.grad = torch.linspace(-0.5 * number, 1, a.numel(), device=a.device).view(a.shape).to(a.dtype)


@torch.no_grad()
def _step(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # without the profiler's and everybody's hooks
    step(optimizer)
