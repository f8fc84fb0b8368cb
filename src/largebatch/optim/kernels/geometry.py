"""What kernels that get addresses need beside them: where the elements lie, and that autograd learns of changes."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Layers, Norm

Strides = tuple[int, ...]
Arrays = Sequence[Sequence[Tensor] | None]
"""What layers have: weights, gradients, first and second moments, rounded weights; None or empty if not."""
NORMS: dict[Norm, int] = {"inf": 0, 1: 1, 2: 2}
"""Norms as the kernels call them."""


@functools.lru_cache(maxsize=4096)
def geometry(shape: tuple[int, ...], strides: tuple[Strides | None, ...]) -> tuple[int, ...] | None:
    """Return how the elements of equally shaped arrays are found, in one order; None where all are dense in it.

    Args:
        shape: of all arrays, without zeros.
        strides: of each array, in elements; None for an array that is not there.

    Returns:
        The number of dimensions, their sizes, the strides of each array: fewer dimensions than in the shape where
        two are one for all arrays, and ordered as the first array lies in memory.
    """
    there = [of for of in strides if of is not None]
    order = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: there[0][d], reverse=True)
    sizes: list[int] = []
    columns: list[list[int]] = []
    for d in order:
        column = [of[d] for of in there]
        if sizes and all(outer == inner * shape[d] for outer, inner in zip(columns[-1], column, strict=True)):
            sizes[-1] *= shape[d]
            columns[-1] = column
        else:
            sizes.append(shape[d])
            columns.append(column)
    if not sizes or (len(sizes) == 1 and all(stride == 1 for stride in columns[0])):
        return None
    rows = iter(zip(*columns, strict=True))
    flat = [stride for of in strides for stride in ([0] * len(sizes) if of is None else next(rows))]
    return (len(sizes), *sizes, *flat)


@functools.lru_cache(maxsize=4096)
def _overlaps(shape: tuple[int, ...], strides: Strides) -> bool:
    """Return whether several elements of a tensor are one place in memory."""
    steps = sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1)
    reach = 0  # of the dimensions with smaller strides
    clear = True
    for stride, size in steps:
        clear = clear and stride > reach
        reach += stride * (size - 1)
    if clear or steps[0][0] == 0:
        return not clear
    places = torch.zeros(reach + 1, dtype=torch.uint8, device="cpu")
    return int(places.as_strided(shape, strides).fill_(1).numel()) > int(places.count_nonzero())


def refuse_overlap(a: Tensor) -> None:
    """Refuse a tensor that is to be changed and of which several elements are one place in memory.

    Raises:
        RuntimeError: it is one.
    """
    if _overlaps(tuple(a.shape), a.stride()):
        raise RuntimeError(
            f"a tensor of shape {tuple(a.shape)} and strides {a.stride()} is to be changed, but several of its "
            "elements are one place in memory; clone it"
        )


def _in_memory(g: Tensor) -> Tensor:
    """Return a gradient whose numbers are in memory as they are: not lazily negated, not zeros without a place."""
    if torch._is_zerotensor(g):
        return torch.zeros(g.shape, dtype=g.dtype, device=g.device)
    return g.resolve_neg() if g.is_neg() else g


def arrays_of(layers: Layers) -> Arrays:
    """Return the arrays of layers as they are in memory; a gradient that is not in memory is taken into it.

    Raises:
        RuntimeError: the weights are lazily negated, or of inference mode; a gradient, moment or master has another
            shape or device than its parameter.
    """
    layers.g = [_in_memory(g) for g in layers.g]
    if any(map(Tensor.is_neg, layers.x)):
        raise RuntimeError("a parameter is a lazily negated view, which fused kernels cannot change; use resolve_neg()")
    if not torch.is_inference_mode_enabled() and any(map(Tensor.is_inference, layers.x)):
        raise RuntimeError("a parameter was made in inference mode and cannot be changed outside of it; clone it")
    shapes, device = [x.shape for x in layers.x], layers.x[0].device
    for what, arrays in (("gradient", layers.g), *layers.state.items(), ("rounded weight", layers.rounded or [])):
        if arrays and [a.shape for a in arrays] != shapes:
            shape, other = next((x, a.shape) for x, a in zip(shapes, arrays, strict=True) if x != a.shape)
            raise RuntimeError(
                f"the {what} of a parameter of shape {tuple(shape)} has the shape {tuple(other)}; they must be the same"
            )
        if {a.device for a in arrays} - {device}:
            raise RuntimeError(f"the {what} of a parameter on {device} is on another device; they must be the same")
    first, second = [*layers.state.values(), [], []][:2]
    return layers.x, layers.g, first, second, layers.rounded


def geometries(arrays: Arrays) -> list[tuple[int, ...] | None]:
    """Return the `geometry` of each layer.

    Raises:
        RuntimeError: several elements of what is to be changed, which is all but the gradients, lie in one place.
    """
    there = [of for of in arrays if of]
    found: list[tuple[int, ...] | None] = []
    for row, one in enumerate(there[0]):
        if all([of[row].is_contiguous() for of in there]):  # noqa: C419 a generator takes twice the time
            found.append(None)
            continue
        for of in (arrays[0], *arrays[2:]):
            if of:
                refuse_overlap(of[row])
        found.append(geometry(tuple(one.shape), tuple([of[row].stride() if of else None for of in arrays])))
    return found


def mark_changed(layers: Layers) -> None:
    """Let autograd know that a step has changed tensors behind its back.

    A backward pass through a forward pass from before the step would use the new weights, and has to be refused.
    """
    moments = [a for moment in layers.state.values() for a in moment]
    torch.autograd.graph.increment_version([*layers.x, *moments, *(layers.rounded or ())])
