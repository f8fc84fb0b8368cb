"""The state contract: which tensors a parameter has, in which dtype, and how they come out of a state dict.

`step` is a float32 0-dim tensor, on the CPU unless the group is capturable or fused; moments and masters have the
parameter's shape and device and the dtype of `STATE_DTYPE`. torch's own `load_state_dict` would cast them to the
dtype of the parameter and so truncate the float32 moments of bf16 parameters.
"""

import copy
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from largebatch.optim.shards import is_sharded, layout_of

STATE_DTYPE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
"""The dtype of a parameter's moments, by the dtype of the parameter."""
REAL_DTYPE = {dtype: state_dtype.to_real() for dtype, state_dtype in STATE_DTYPE.items()}
"""The dtype that kernels compute in, by the dtype of the parameter."""
HALF = (torch.float16, torch.bfloat16)


def new_moment(p: Tensor) -> Tensor:
    """Return a moment of a parameter before its first step: zeros in the parameter's own strides."""
    return torch.zeros_like(p, dtype=STATE_DTYPE[p.dtype], memory_format=torch.preserve_format)


def counts_on_device(options: Mapping[str, Any]) -> bool:
    """Return whether a group counts its steps on the device of its parameters."""
    return bool(options["capturable"] or options["fused"])


def new_count(p: Tensor, *, on_device: bool) -> Tensor:
    """Return the number of steps that a new parameter has taken; by `torch.tensor`, which fake modes can read."""
    return torch.tensor(0.0, dtype=torch.float32, device=p.device if on_device else "cpu")


def master_of(p: Tensor) -> Tensor:
    """Return a copy of a half-precision parameter in the dtype of its state."""
    return p.detach().to(STATE_DTYPE[p.dtype], copy=True)


def check_state(name: str, p: Tensor, state: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Refuse a loaded state that does not fit the parameter; an empty one fits any.

    Raises:
        ValueError: a key is missing, or a tensor has another shape or is in shards that the parameter is not in.
    """
    if not state:
        return
    if missing := [key for key in needed if key not in state]:
        raise ValueError(
            f"the loaded state of parameter {name} has {', '.join(map(str, state))} but not {', '.join(missing)}"
        )
    if "step" in needed and not _is_count(state["step"]):
        raise ValueError(f"the loaded step of parameter {name} is {state['step']!r}; it must be a number at least 0")
    for key in (*needed, "master"):
        value = state.get(key)
        if key != "step" and isinstance(value, Tensor) and tuple(value.shape) != tuple(p.shape):
            raise ValueError(
                f"the loaded {key} of parameter {name} has shape {tuple(value.shape)}, the parameter {tuple(p.shape)}"
            )
    in_shards = [key for key, value in state.items() if isinstance(value, Tensor) and is_sharded(value)]
    if in_shards and not is_sharded(p):
        raise ValueError(
            f"the loaded {in_shards[0]} of parameter {name} is a DTensor, the parameter is not; full_state_dict=True "
            "of torch.distributed.checkpoint.state_dict.get_optimizer_state_dict makes one of whole tensors"
        )


def _is_count(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or float(value) >= 0)
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0


def restore_count(p: Tensor, value: Any, *, on_device: bool) -> Tensor:
    """Return a copy of a loaded number of steps where the contract says."""
    device = p.device if on_device else "cpu"
    return torch.as_tensor(value).detach().to(device, torch.float32, copy=True)


def restore(p: Tensor, value: Any) -> Any:
    """Return a copy of a loaded value on the parameter's device, of the parameter's shape in the contract's dtype.

    Tensors of other shapes, and those in lists and dicts, keep the dtype that they were saved in.
    """
    if isinstance(value, dict):
        return {key: _moved(p, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(p, item) for item in value)
    if isinstance(value, Tensor) and value.shape == p.shape and (value.is_floating_point() or value.is_complex()):
        # Into the parameter's own strides, which the kernels are fastest with.
        own = torch.empty_like(p, dtype=STATE_DTYPE[p.dtype], memory_format=torch.preserve_format)
        layout = layout_of(p)
        if layout is not None and not is_sharded(value):
            value = layout.share_of(value.detach().to(p.device))
        return own.copy_(value.detach())
    return _moved(p, value)


def _moved(p: Tensor, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(p.device, copy=True)
    return restore(p, value) if isinstance(value, (dict, list, tuple)) else copy.deepcopy(value)
