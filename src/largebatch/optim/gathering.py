"""From parameter groups to lists of layers that one kernel call can take."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Layers


class Member(NamedTuple):
    """A parameter that takes the step."""

    number: int
    """Its number in the state dict."""
    p: Tensor
    grad: Tensor


class Place(NamedTuple):
    """Where consecutive layers come from."""

    number: int
    """The number of the parameter."""
    blocks: int
    """How many layers it holds."""


def dense(grad: Tensor) -> Tensor:
    """Return the gradient, if it is dense, with a pending conjugation carried out.

    Raises:
        RuntimeError: it is sparse.
    """
    if grad.layout != torch.strided:
        raise RuntimeError("a gradient is sparse; layerwise norms need dense gradients (sparse=False)")
    return grad.resolve_conj()


def taking_part(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Member]]]:
    """Yield each group with those of its parameters that have a gradient."""
    number = 0
    for group in groups:
        members: list[Member] = []
        for p in group["params"]:
            if p.grad is not None:
                members.append(Member(number, p, dense(p.grad)))
            number += 1
        yield group, members


def alike(members: Iterable[Member]) -> Iterator[tuple[torch.device, bool, list[Member]]]:
    """Yield (device, whether all are plain tensors, members) for members of the same device and dtypes."""
    sorted_out: dict[Any, list[Member]] = {}
    for member in members:
        native = type(member.p) in (Tensor, torch.nn.Parameter)
        key = (member.p.device, native, member.p.dtype, member.grad.dtype)
        sorted_out.setdefault(key, []).append(member)
    for (device, native, _, _), some in sorted_out.items():
        yield device, native, some


def portions(members: Iterable[Member], limit: float) -> Iterator[list[Member]]:
    """Yield runs of members with up to `limit` elements together; a larger one is a run of its own."""
    portion: list[Member] = []
    total = 0
    for member in members:
        elements = member.p.numel()
        if portion and total + elements > limit:
            yield portion
            portion, total = [], 0
        portion.append(member)
        total += elements
    if portion:
        yield portion


def real_blocks(a: Tensor, stacked: tuple[int, int] | None = None, *, detach: bool = True) -> list[Tensor]:
    """Return the blocks of a tensor as views, complex ones as real views; one block unless stacked (dim, count)."""
    a = a.detach() if detach else a
    blocks = [a]
    if stacked:
        dim, count = stacked
        size = a.shape[dim] // count
        blocks = [a.narrow(dim, i * size, size) for i in range(count)]
    return [torch.view_as_real(b) if b.is_complex() else b for b in blocks]


def layers_of(
    members: Iterable[Member],
    states: Mapping[Tensor, dict[str, Any]],
    *,
    moments: Iterable[str],
    stacked: tuple[int, int] | None,
    detach: bool,
) -> tuple[Layers, list[Place]]:
    """Return the layers of alike members and where they come from; empty parameters have none.

    Members have a "master" in their state either all or not at all.
    """
    layers = Layers(x=[], g=[], state={key: [] for key in moments}, t=[])
    places: list[Place] = []
    for number, p, grad in members:
        if p.numel() == 0:
            continue
        state = states[p]
        blocks = real_blocks(p, stacked, detach=detach)
        if "master" in state:
            layers.x += real_blocks(state["master"], stacked)
            layers.rounded = layers.rounded or []
            layers.rounded += blocks
        else:
            layers.x += blocks
        layers.g += real_blocks(grad, stacked, detach=detach)
        for key, values in layers.state.items():
            values += real_blocks(state[key], stacked, detach=detach)
        layers.t += [float(state["step"])] * len(blocks)
        places.append(Place(number, len(blocks)))
    return layers, places
