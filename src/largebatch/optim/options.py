"""The options of a parameter group: what is allowed, and one sentence for what is not.

The checks raise ValueError with what was given and what is allowed. They run when a group is made, when a state
dict is loaded and at each step, for a schedule may write anything into a group; values of tensors are looked at
only in the first two, because a look waits for the device.
"""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from largebatch.optim.shards import check_layout, is_sharded, layout_of
from largebatch.optim.state import STATE_DTYPE

HOW_COMPUTED = ("foreach", "capturable", "differentiable", "fused")
"""Options that say how a step is computed, not which: they belong to the object and not to its state dict."""


def option_defaults(optimizer: type) -> dict[str, Any]:
    """Return the options of parameter groups that have a default, from the optimizer's signature."""
    parameters = inspect.signature(optimizer.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "norm_process_group"}


def given_options(optimizer: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among the arguments of a constructor: all of its signature, so that none is forgotten."""
    names = inspect.signature(optimizer.__init__).parameters
    return {name: arguments[name] for name in names if name not in ("self", "params", "base_optimizer")}


def _allowed(least: float | None, above: float | None, below: float) -> str:
    low = f"at least {least:g}" if least is not None else f"above {above:g}"
    return f"a number {low}" + (f" and below {below:g}" if below < math.inf else ", finite")


def check_number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, below: float = math.inf
) -> None:
    """Refuse what is not a number in ``[least, below)``, or in ``(above, below)``."""
    good = isinstance(value, Real) and not isinstance(value, bool) and _finite(value) and float(value) < below
    if not good or (least is not None and value < least) or (above is not None and value <= above):
        raise ValueError(f"{name} is {value!r}; it must be {_allowed(least, above, below)}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def check_pair(name: str, value: Any, *, least: float, below: float) -> None:
    """Refuse what is not two numbers, each in ``[least, below)``."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; it must be two numbers")
    for index, number in enumerate(value):
        check_number(f"{name}[{index}]", number, least=least, below=below)


def check_bounds(name: str, value: Any) -> None:
    """Refuse what is neither None nor ``0 <= low <= high``, where high may be infinite."""
    if value is None:
        return
    if isinstance(value, (tuple, list)) and len(value) == 2:
        low, high = value
        if (
            isinstance(low, Real)
            and isinstance(high, Real)
            and 0 <= float(low) <= float(high)
            and float(low) < math.inf
        ):
            return
    raise ValueError(f"{name} is {value!r}; it must be None or a pair (low, high) with 0 <= low <= high")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be True or False")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse what is not one of the choices; True and False are not taken for 1 and 0."""
    choices = tuple(choices)
    plain = value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool))
    if not plain or value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def check_lr(lr: Any, *, look_at_tensors: bool) -> None:
    """Refuse a learning rate that is no number at least 0, nor a tensor of one such number."""
    if not isinstance(lr, Tensor):
        check_number("lr", lr, least=0)
        return
    if lr.numel() != 1 or not lr.is_floating_point():
        given = f"a tensor of shape {tuple(lr.shape)} and {lr.dtype}"
        raise ValueError(f"lr is {given}; it must be a number or a floating-point tensor of one element")
    if is_sharded(lr):
        raise ValueError("lr is a DTensor; it must be a number or a plain tensor of one element on each process")
    if look_at_tensors:
        check_number("lr", lr.item(), least=0)


def check_common(group: Mapping[str, Any], *, look_at_tensors: bool) -> None:
    """Check the options that all layerwise optimizers have."""
    check_lr(group["lr"], look_at_tensors=look_at_tensors)
    check_choice("norm", group["norm"], (1, 2, "inf"))
    check_bounds("phi_bounds", group["phi_bounds"])
    check_bounds("ratio_bounds", group["ratio_bounds"])
    for name in ("adapt", "master_weights", "maximize", "capturable", "differentiable"):
        check_flag(name, group[name])
    for name in ("foreach", "fused"):
        if group[name] is not None:
            check_flag(name, group[name])
    if group["max_grad_norm"] is not None:
        check_number("max_grad_norm", group["max_grad_norm"], least=0)
        if group["max_grad_norm"] == 0:
            given = group["max_grad_norm"]
            raise ValueError(f"max_grad_norm is {given!r}, which would erase the gradient; None switches clipping off")
    check_stacked(group["stacked"])
    _refuse_contradictions(group)


def check_stacked(stacked: Any) -> None:
    """Refuse what is neither None nor two integers (dim, count)."""
    if stacked is None:
        return
    pair = isinstance(stacked, (tuple, list)) and len(stacked) == 2
    if not pair or any(isinstance(n, bool) or not isinstance(n, Integral) for n in stacked) or stacked[1] < 1:
        raise ValueError(f"stacked is {stacked!r}; it must be None or two integers (dim, count) with count >= 1")


def _refuse_contradictions(group: Mapping[str, Any]) -> None:
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach=True and fused=True: only one kind of kernel can take the step")
    if group["differentiable"] and group["fused"]:
        raise ValueError("differentiable=True and fused=True: only the plain kernels are differentiable")
    if group["differentiable"] and group["foreach"]:
        raise ValueError("differentiable=True and foreach=True: only the plain kernels are differentiable")
    if group["differentiable"] and group["master_weights"]:
        raise ValueError("differentiable=True and master_weights=True: a rounded copy has no derivative")


def check_names(group: Mapping[str, Any], options: Iterable[str]) -> None:
    """Refuse a key of a group that is nearly the name of an option; other keys belong to other tools."""
    options = tuple(options)
    for key in group:
        if isinstance(key, str) and key not in options and key not in ("params", "param_names", "norm_process_group"):
            near = difflib.get_close_matches(key, options, n=1, cutoff=0.87)
            if near:
                raise ValueError(f"a parameter group has the unknown option {key!r}; did you mean {near[0]!r}?")


def check_parameter(name: str, p: Tensor, stacked: tuple[int, int] | None) -> None:
    """Refuse a parameter whose layers' norms this version cannot compute.

    Raises:
        ValueError: a dtype without moments, a shape that `stacked` does not divide, or a sum that is still to be made.
        NotImplementedError: a flattened parameter, one on a device without float64, or blocks along a dimension that
            is cut twice.
    """
    if p.dtype not in STATE_DTYPE:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in STATE_DTYPE)
        raise ValueError(f"parameter {name} is {p.dtype}; it must be one of {allowed}")
    if p.device.type == "mps":
        raise NotImplementedError(f"parameter {name} is on mps, which has no float64; norms are summed up in it")
    if getattr(p, "_fsdp_flattened", False):
        raise NotImplementedError(
            f"parameter {name} is a flattened shard (FSDP1), in which norms of layers are lost; use fully_shard (FSDP2)"
        )
    layout = layout_of(p)
    if layout is not None:
        check_layout(name, layout)
    if stacked is not None:
        check_stacked_shape(f"parameter {name}", p, stacked)
        if layout is not None:
            layout.ranges(*stacked)


def check_stacked_shape(what: str, p: Tensor, stacked: tuple[int, int]) -> None:
    """Refuse a parameter that (dim, count) does not cut into equal layers."""
    dim, count = stacked
    if not -p.ndim <= dim < p.ndim or p.shape[dim] % count:
        raise ValueError(
            f"{what} has shape {tuple(p.shape)}; "
            f"stacked={tuple(stacked)!r} needs a dimension {dim} that {count} divides"
        )
