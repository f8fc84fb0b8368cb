"""Layers in pieces, for multi-tensor kernels with bounded temporaries; and exact norms of them.

A layer is cut into pieces and small layers are taken together, so that a temporary holds `PIECE_ELEMENTS` at
most. On a CPU the pieces are small enough that all operations of a phase find them in the cache; on a GPU they
are large enough to fill it. What phase 1 has computed is kept for phase 3 up to `KEPT_ELEMENTS`, and computed
again for larger layers: the root in it is the dearest operation of a step on a CPU, a pass over memory on a GPU.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from largebatch.optim.kernels.contract import Layers, Norm

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

CPU_PIECE_ELEMENTS = 1 << 18
"""Six arrays of 1 MiB are at work in phase 1: shorter pieces spend their time in calls, longer ones in memory.
Tried from 2^15 to 2^20 on BERT-base's 206 tensors, on two cores with 32 MiB of last-level cache."""
CPU_KEPT_ELEMENTS = 1 << 22
"""16 MiB of float32."""
_ROW = 512
_CAST_AT_ONCE = 1 << 22
PIECE_ELEMENTS = KEPT_ELEMENTS = 1 << 25
"""On other devices: 128 MiB of float32, at which the launch of an operation takes far less than its work."""


def kept_elements(device: torch.device) -> float:
    """Return up to how many elements phase 1 keeps for phase 3."""
    if torch.compiler.is_compiling():
        return math.inf  # the compiler decides what is kept
    return CPU_KEPT_ELEMENTS if device.type == "cpu" else KEPT_ELEMENTS


def _piece_elements(device: torch.device) -> float:
    if torch.compiler.is_compiling():
        return math.inf  # and where loops are cut
    return CPU_PIECE_ELEMENTS if device.type == "cpu" else PIECE_ELEMENTS


@dataclass(slots=True)
class Pieces:
    """Pieces of layers that one `_foreach` operation takes together."""

    rows: list[int]
    """The layer that each piece is of."""
    lists: list[list[Tensor]]
    """The pieces, one list for each list of tensors that was cut."""
    kept: list[Tensors] = field(default_factory=list)
    """What phase 1 leaves for phase 3."""


def _flat(tensors: Tensors) -> Tensors:
    """Return one-dimensional views with a common order of elements, where the strides allow it."""
    if all(a.is_contiguous() for a in tensors):
        return [a.view(-1) for a in tensors]
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    turned = [a.permute(order) for a in tensors]
    return [a.view(-1) for a in turned] if all(a.is_contiguous() for a in turned) else turned


def cut(lists: Sequence[Tensors]) -> Iterator[Pieces]:
    """Yield the tensors of parallel lists, equal in shape, in pieces of about `PIECE_ELEMENTS` together.

    A tensor that is not dense in memory is cut along its outermost dimension only, hence "about".
    """
    limit = _piece_elements(lists[0][0].device)
    rows: list[int] = []
    parts_of: list[list[Tensor]] = [[] for _ in lists]
    total = 0
    for row, tensors in enumerate(zip(*lists, strict=True)):
        parts: Iterable[Tensors] = [tensors]
        if (size := tensors[0].numel()) > limit:
            flat = _flat(tensors)
            outermost = flat[0].shape[0]
            parts = zip(*(a.split(max(1, int(limit) * outermost // size)) for a in flat), strict=True)
        for part in parts:
            elements = part[0].numel()
            if rows and total + elements > limit:
                yield Pieces(rows, parts_of)
                rows, parts_of, total = [], [[] for _ in lists], 0
            rows.append(row)
            for pieces, piece in zip(parts_of, part, strict=True):
                pieces.append(piece)
            total += elements
    if rows:
        yield Pieces(rows, parts_of)


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return the tensors in another dtype; the same ones where they have it."""
    if tensors[0].dtype == dtype:
        return tensors
    made = [torch.empty_like(a, dtype=dtype) for a in tensors]
    torch._foreach_copy_(made, tensors)
    return made


def gradient(pieces: Tensors, rows: list[int], layers: Layers, maximize: bool) -> Tensors:
    """Return the gradients of what is minimised, scaled, in the dtype to compute in; `pieces` is never written."""
    g = cast(pieces, layers.dtype)
    if layers.keep is not None:
        # Not a multiplication: what is not finite times 0 is not 0.
        g = [torch.where(layers.keep, a, 0.0) for a in g]
    scale = layers.g_scale
    if scale is None:
        return torch._foreach_neg(g) if maximize else g
    scale = (-scale if maximize else scale).to(layers.dtype)
    if scale.ndim == 0:
        return torch._foreach_mul(g, scale)
    scales = scale.unbind()
    return torch._foreach_mul(g, [scales[row] for row in rows])


def squares(tensors: list[Tensor]) -> Tensor:
    """Phase 0, see `contract.py`: the sum of squares of each tensor, all of one device and dtype."""
    sums = ColumnSums(2)
    for pieces in cut([tensors]):
        (a,) = pieces.lists
        sums.add(pieces.rows, a)
    return sums.columns()[:, 0]


class ColumnSums:
    """The result of phase 1, gathered piece by piece: a column for each kind of tensor, a row for each layer."""

    def __init__(self, norm: Norm) -> None:
        self._norm: Norm = norm
        self._rows: list[int] = []
        self._norms: list[list[Tensor]] = []

    def add(self, rows: list[int], *columns: Tensors) -> None:
        """Measure further pieces; `rows` says which layers they are of."""
        self._rows += rows
        self._norms = self._norms or [[] for _ in columns]
        for norms, pieces in zip(self._norms, columns, strict=True):
            norms += _norms(pieces, self._norm)

    def columns(self) -> Tensor:
        """Return the sums of ``|.|^norm`` (or maxima) over whole layers, float64 [layers, columns]."""
        return torch.stack([_sums(norms, self._norm, self._rows) for norms in self._norms], dim=1)


def _norms(pieces: Tensors, norm: Norm) -> list[Tensor]:
    """Return the norm of each piece, float64 but for the maxima.

    It is summed up in float64. In float32 the sum itself would be off (by 1e-3 at 2e7 elements on a CPU), and the
    squares of gradients below 1e-19 or above 1e19 would be lost: a layer whose gradient has been zero for long
    would leap.
    """
    if norm == "inf":
        return list(torch._foreach_max(torch._foreach_abs(pieces)))
    on_host = pieces[0].device.type == "cpu" and type(pieces[0]) in (Tensor, Parameter)
    if norm == 2 and on_host and pieces[0].dtype != torch.float64 and not torch.compiler.is_compiling():
        return [_norm_by_rows(a) for a in pieces]
    return list(torch._foreach_norm(pieces, norm, torch.float64))


def _norm_by_rows(a: Tensor) -> Tensor:
    """Return the 2-norm of a tensor on a CPU, float64: that of the float32 norms of rows of `_ROW` elements.

    As exact as float32 is (1e-6 at worst, 1e-9 as a rule) at a quarter of the time that float64 takes throughout,
    for its vectors are the widest. Where squares could be lost, which here costs nothing to see, float64 it is.
    """
    whole = a.numel() // _ROW * _ROW
    if whole >= 8 * _ROW and a.is_contiguous():
        flat = a.view(-1)
        rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=torch.float32)
        if whole < flat.numel():
            rows = torch.cat((rows, torch.linalg.vector_norm(flat[whole:], dtype=torch.float32).view(1)))
        found = torch.linalg.vector_norm(rows, dtype=torch.float64)
        if 1e-12 < float(found) < 1e18:
            return found
    return _norm_in_float64(a)


def _norm_in_float64(a: Tensor) -> Tensor:
    """Return the 2-norm of a tensor, float64, part by part: PyTorch casts what it is given as a whole on a CPU."""
    if a.numel() <= _CAST_AT_ONCE:
        return torch.linalg.vector_norm(a, dtype=torch.float64)
    longest = max(range(a.ndim), key=a.size)
    parts = a.chunk(-(-a.numel() // _CAST_AT_ONCE), dim=longest)
    return torch.linalg.vector_norm(torch.stack([_norm_in_float64(part) for part in parts]))


def _sums(norms: list[Tensor], norm: Norm, rows: list[int]) -> Tensor:
    """Return the sums of ``|.|^norm`` (or maxima) of each row, float64, from norms of its pieces in order."""
    values = torch.stack(norms).to(torch.float64)
    if norm == 2:
        values = values.square()
    counts = [sum(1 for _ in same) for _, same in groupby(rows)]
    if len(counts) == len(rows):
        return values
    whole = values.split(counts)
    return torch.stack([part.amax() if norm == "inf" else part.sum() for part in whole])
