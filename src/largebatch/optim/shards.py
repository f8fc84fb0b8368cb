"""Parameters in shards: what of a DTensor lies here, and sums completed over the processes that have the rest.

FSDP2's ``fully_shard``, HSDP and tensor parallelism make DTensors, cut along the dimensions of a mesh of processes.
Kernels get what lies here, a plain tensor, so that all of them work on shards. What they measure is a part: all parts
of a mesh are completed by one all-reduce, in which of equal replicas one takes part.

Everything stays on the device. Layers come in the same order on all processes, whatever of them lies where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


def is_sharded(p: Tensor) -> bool:
    """Return whether a tensor is a DTensor; asked by name, for the import takes a second."""
    return type(p) not in (Tensor, Parameter) and any(base.__name__ == "DTensor" for base in type(p).__mro__)


def local(a: Tensor) -> Tensor:
    """Return what of a tensor lies here, its own memory; all of one that is no DTensor."""
    sharded: Any = a
    return sharded.to_local() if is_sharded(a) else a


def whole(a: Tensor) -> Tensor:
    """Return all of a tensor, for which all processes have to ask; itself if it is no DTensor."""
    sharded: Any = a
    return sharded.full_tensor() if is_sharded(a) else a


class Spread(NamedTuple):
    """Over which processes layers are spread."""

    mesh: Any
    """The DeviceMesh."""
    whole_on: tuple[bool, ...]
    """For each of its dimensions, whether the processes along it have the same."""


class Part(NamedTuple):
    """Numbers of which each process has a part, float64."""

    spread: Spread
    values: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How a parameter lies on a mesh."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def spread(self) -> Spread:
        """Over which processes it is spread."""
        return Spread(self.mesh, tuple([placement.is_replicate() for placement in self.placements]))

    def of(self, a: Tensor) -> Tensor:
        """Return a DTensor that lies like the parameter, of what of it lies here."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(a, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride)

    def share_of(self, whole: Tensor) -> Tensor:
        """Return a DTensor that lies like the parameter, of a tensor that is whole on each process."""
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, self.mesh, self.placements, src_data_rank=None)

    def here(self, gradient: Tensor) -> Tensor:
        """Return what of a gradient belongs to what of the parameter lies here; communicates if it lies otherwise."""
        lying: Any = gradient
        if not is_sharded(gradient):
            raise RuntimeError("a parameter is a DTensor, but its gradient is not; it has to lie on the same mesh")
        if lying.placements != self.placements:  # after tensor parallelism, a sum that is still to be made
            lying = lying.redistribute(self.mesh, self.placements)
        return lying.to_local()

    def ranges(self, dim: int, count: int) -> list[tuple[int, int]]:
        """Return where each of `count` equal blocks along a dimension lies here: (start, size), a size may be 0.

        Raises:
            NotImplementedError: the dimension is cut twice, the second cut first (FSDP over tensor parallelism).
        """
        dim %= len(self.shape)
        begin, size = 0, self.shape[dim]
        for n, placement in enumerate(self.placements):
            if placement.is_replicate() or placement.dim != dim:
                continue
            if not placement.is_shard():
                raise NotImplementedError(
                    f"stacked blocks along dimension {dim}, which FSDP cuts after tensor parallelism has"
                )
            chunk = -(-size // self.mesh.size(n))
            start = min(chunk * self.mesh.get_local_rank(n), size)
            begin, size = begin + start, min(chunk, size - start)
        block = self.shape[dim] // count
        ends = [(max(i * block, begin), min((i + 1) * block, begin + size)) for i in range(count)]
        return [(start - begin, end - start) if end > start else (0, 0) for start, end in ends]


def layout_of(p: Tensor) -> Layout | None:
    """Return how a DTensor lies; None for any other tensor."""
    if not is_sharded(p):
        return None
    sharded: Any = p
    return Layout(sharded.device_mesh, tuple(sharded.placements), sharded.shape, sharded.stride())


def check_layout(name: str, layout: Layout) -> None:
    """Refuse a parameter whose numbers lie nowhere.

    Raises:
        ValueError: it is Partial.
    """
    if any(placement.is_partial() for placement in layout.placements):
        raise ValueError(
            f"parameter {name} is a DTensor with the placements {layout.placements}; Partial, a sum that is still to "
            "be made, is allowed for gradients alone: redistribute it"
        )


# ---- sums over meshes -------------------------------------------------------------------------------------------


def complete(parts: Sequence[Part], *, largest: bool = False) -> list[Tensor]:
    """Return the sums of parts over their processes, or the largest values, on their devices.

    There is one all-reduce for each mesh (one for each dimension that is cut, where several are and the mesh is not all
    processes), and none where all that lies on it is whole on each process.

    Args:
        parts: float64 tensors; all processes of a mesh bring the same, in the same order.
        largest: for values that are at least 0, take the maximum.
    """
    done = [part.values for part in parts]
    of_mesh: dict[Any, list[int]] = {}
    for n, part in enumerate(parts):
        of_mesh.setdefault(part.spread.mesh, []).append(n)
    for mesh, numbers in of_mesh.items():
        mine = [parts[n] for n in numbers]
        cut = [d for d in range(mesh.ndim) if not all(part.spread.whole_on[d] for part in mine)]
        if not cut:
            continue
        whole_mesh = len(cut) > 1 and mesh.size() == dist.get_world_size()
        groups = [dist.group.WORLD] if whole_mesh else [mesh.get_group(d) for d in cut]
        met = range(mesh.ndim) if whole_mesh else cut
        device = torch.device(mesh.device_type)
        own = [part.values if _takes_part(part.spread, met) else torch.zeros_like(part.values) for part in mine]
        row = torch.cat([a.reshape(-1).to(device, non_blocking=True) for a in own])
        for group in groups:
            dist.all_reduce(row, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
        for n, sums in zip(numbers, row.split([a.numel() for a in own]), strict=True):
            values = parts[n].values
            done[n] = sums.view(values.shape).to(values.device, non_blocking=values.device.type != "cpu")
    return done


def _takes_part(spread: Spread, dims: Sequence[int]) -> bool:
    """Return whether this process is the first, along some dimensions, of those with the same."""
    return all(spread.mesh.get_local_rank(d) == 0 for d in dims if spread.whole_on[d])
