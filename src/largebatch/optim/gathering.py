"""From parameter groups to lists of layers that one kernel call can take."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Layers
from largebatch.optim.shards import Layout, Spread, layout_of, local
from largebatch.optim.state import HALF, REAL_DTYPE, STATE_DTYPE


class Member(NamedTuple):
    """A parameter that takes the step; all but itself is what of it lies here."""

    number: int
    """Its number in the state dict."""
    p: Tensor
    here: Tensor
    """Its memory here: itself, if it is no DTensor."""
    grad: Tensor
    step: Tensor | None
    """Its count of steps; None for rules that do not count."""
    master: Tensor | None
    moments: tuple[Tensor, ...]
    layout: Layout | None = None
    """How it lies on a mesh; None if all of it is here."""


def parameter_names(groups: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of all parameters; their numbers in the state dict where names are missing or repeat."""
    groups = list(groups)
    names = [name for group in groups for name in group.get("param_names", ())]
    count = sum(len(group["params"]) for group in groups)
    return names if len(set(names)) == count else [str(n) for n in range(count)]


def refuse_sparse(grad: Tensor) -> None:
    """Raise RuntimeError if a gradient is not dense."""
    if grad.layout != torch.strided:
        raise RuntimeError("a gradient is sparse; layerwise norms need dense gradients (sparse=False)")


def is_native(p: Tensor) -> bool:
    """Return whether a tensor is of no subclass that may lack operations or memory of its own."""
    return type(p) in (Tensor, torch.nn.Parameter)


def what_lies_here(member: Member) -> Member:
    """Return a member with what of its tensors lies here; itself if it is no DTensor."""
    layout = layout_of(member.p)
    if layout is None:
        return member
    return member._replace(
        here=local(member.p),
        grad=layout.here(member.grad),
        master=None if member.master is None else local(member.master),
        moments=tuple([local(moment) for moment in member.moments]),
        layout=layout,
    )


class Alike(NamedTuple):
    """Members of one device, the same dtypes and the same spread over processes."""

    device: torch.device
    native: bool
    """Whether all are plain tensors whose numbers every kernel knows, of no subclass."""
    spread: Spread | None
    members: list[Member]


def alike(members: Iterable[Member]) -> Iterator[Alike]:
    """Yield members that kernels can take together."""
    sorted_out: dict[Any, list[Member]] = {}
    for member in members:
        p, grad = member.here, member.grad
        # A model may have been given another dtype when some of its parameters had moments.
        dtypes = (p.dtype, grad.dtype, *[moment.dtype for moment in member.moments])
        spread = member.layout and member.layout.spread
        sorted_out.setdefault((p.device, type(p), type(grad), dtypes, spread), []).append(member)
    for (device, _, _, dtypes, spread), some in sorted_out.items():
        p, grad = some[0].here, some[0].grad
        native = is_native(p) and is_native(grad)
        if dtypes[0] != dtypes[1]:
            native = native and dtypes[1] in STATE_DTYPE and grad.is_complex() == p.is_complex()
        yield Alike(device, native, spread, some)


def portions(members: Iterable[Member], limit: float) -> Iterator[list[Member]]:
    """Yield runs of members with up to `limit` elements together; a larger one is a run of its own."""
    portion: list[Member] = []
    total = 0
    for member in members:
        elements = member.here.numel() * (2 if member.here.is_complex() else 1)
        if portion and total + elements > limit:
            yield portion
            portion, total = [], 0
        portion.append(member)
        total += elements
    if portion:
        yield portion


Blocks = Sequence[tuple[int, int, int]] | None
"""Where the layers of a stacked parameter lie in its memory: (dimension, start, size); None for one layer."""


def blocks_of(member: Member, stacked: tuple[int, int] | None) -> Blocks:
    """Return where the layers of a parameter lie here; of one in shards some may have no element here."""
    if not stacked:
        return None
    dim, count = stacked
    if member.layout is not None:
        return [(dim, start, size) for start, size in member.layout.ranges(dim, count)]
    size = member.p.shape[dim] // count
    return [(dim, i * size, size) for i in range(count)]


def real_blocks(a: Tensor, blocks: Blocks = None, *, detach: bool = True) -> list[Tensor]:
    """Return the blocks of a tensor that have elements, as views, complex ones as real views; all of it without any."""
    a = a.detach() if detach else a
    views = [a] if blocks is None else [a.narrow(*block) for block in blocks]
    return [torch.view_as_real(view) if view.is_complex() else view for view in views if view.numel()]


def block_count(member: Member, stacked: tuple[int, int] | None) -> int:
    """Return how many layers a parameter holds, wherever they lie: none if it is empty."""
    if member.p.numel() == 0:
        return 0
    return stacked[1] if stacked else 1


def layers_here(member: Member, stacked: tuple[int, int] | None) -> list[bool]:
    """Return for each layer of a parameter whether some of it lies here."""
    if member.layout is None or not stacked:
        return [member.here.numel() > 0] * block_count(member, stacked)
    blocks = blocks_of(member, stacked) or ()
    return [member.here.numel() > 0 and size > 0 for _, _, size in blocks] if member.p.numel() else []


def layers_of(
    members: Sequence[Member], *, keys: Sequence[str], stacked: tuple[int, int] | None, detach: bool
) -> Layers:
    """Return the layers of alike members that have elements here, in their order.

    Args:
        members: of one device and dtype; they have a master either all or not at all.
        keys: the names of their moments.
        stacked: (dim, count) of the group.
        detach: whether autograd is kept out.
    """
    p = members[0].here
    layers = Layers(dtype=REAL_DTYPE[p.dtype], state={key: [] for key in keys})
    members = [member for member in members if member.here.numel()]
    cut = [blocks_of(member, stacked) for member in members]

    def blocks(tensors: list[Tensor]) -> list[Tensor]:
        if stacked or p.is_complex():
            return [block for a, of in zip(tensors, cut, strict=True) for block in real_blocks(a, of, detach=detach)]
        return [a.detach() if detach and a.requires_grad else a for a in tensors]

    params = blocks([member.here for member in members])
    layers.x = params
    if members and members[0].master is not None:
        layers.x, layers.rounded = blocks([m.master for m in members if m.master is not None]), params
    grads = [member.grad for member in members]
    layers.g = blocks([g.resolve_conj() for g in grads] if p.is_complex() else grads)
    for key, moments in zip(keys, zip(*(member.moments for member in members), strict=True), strict=False):
        layers.state[key] = blocks(list(moments))
    return layers


def has_master(p: Tensor, options: Any) -> bool:
    """Return whether a parameter of a group with these options is stepped through a float32 master."""
    return bool(options["master_weights"]) and p.dtype in HALF
