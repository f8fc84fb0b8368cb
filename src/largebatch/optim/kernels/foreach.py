"""Multi-tensor kernels from torch's `_foreach` operations: few calls, bounded temporaries, nothing to the host.

A layer is cut into pieces and small layers are taken together, so that a temporary holds `PIECE_ELEMENTS` at
most. On a CPU the pieces are small enough that all operations of a phase find them in the cache; on a GPU they
are large enough to fill it. The direction u of phase 1 is kept for phase 3 up to `KEPT_ELEMENTS`, and computed
again for larger layers: the root in it is the dearest operation of a step on a CPU, a pass over memory on a GPU.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import LambRule, Layers, Norm

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

CPU_PIECE_ELEMENTS = 1 << 18
"""Six arrays of 1 MiB are at work in phase 1: shorter pieces spend their time in calls, longer ones in memory.
Tried from 2^15 to 2^20 on BERT-base's 206 tensors, on two cores with 32 MiB of last-level cache."""
CPU_KEPT_ELEMENTS = 1 << 22
"""16 MiB of float32."""
CPU_EXACT_ELEMENTS = 1 << 14
CPU_ROW_ELEMENTS = 1 << 12
"""Up to how many elements a float32 norm is taken at once, and in how long rows otherwise."""
PIECE_ELEMENTS = KEPT_ELEMENTS = 1 << 25
"""On other devices: 128 MiB of float32, at which the launch of an operation takes far less than its work."""


def elements_at_once(device: torch.device) -> float:
    """Return up to how many elements phase 1 keeps u."""
    return CPU_KEPT_ELEMENTS if device.type == "cpu" else KEPT_ELEMENTS


def _piece_elements(device: torch.device) -> int:
    return CPU_PIECE_ELEMENTS if device.type == "cpu" else PIECE_ELEMENTS


@dataclass(slots=True)
class _Pieces:
    """Pieces of layers that one `_foreach` operation takes together."""

    rows: list[int]
    """The layer that each piece is of."""
    lists: list[list[Tensor]]
    """The pieces, one list for each list of tensors that was cut."""
    u: Tensors | None = None


def _flat(tensors: Tensors) -> Tensors:
    """Return one-dimensional views with a common order of elements, where the strides allow it."""
    if all(a.is_contiguous() for a in tensors):
        return [a.view(-1) for a in tensors]
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    turned = [a.permute(order) for a in tensors]
    return [a.view(-1) for a in turned] if all(a.is_contiguous() for a in turned) else turned


def _cut(lists: Sequence[Tensors], limit: int) -> Iterator[_Pieces]:
    """Yield the tensors of parallel lists, equal in shape, in pieces of about `limit` elements together.

    A tensor that is not dense in memory is cut along its outermost dimension only, hence "about".
    """
    rows: list[int] = []
    cut: list[list[Tensor]] = [[] for _ in lists]
    total = 0
    for row, tensors in enumerate(zip(*lists, strict=True)):
        parts: Iterable[Tensors] = [tensors]
        if (size := tensors[0].numel()) > limit:
            flat = _flat(tensors)
            outermost = flat[0].shape[0]
            parts = zip(*(a.split(max(1, limit * outermost // size)) for a in flat), strict=True)
        for part in parts:
            elements = part[0].numel()
            if rows and total + elements > limit:
                yield _Pieces(rows, cut)
                rows, cut, total = [], [[] for _ in lists], 0
            rows.append(row)
            for pieces, piece in zip(cut, part, strict=True):
                pieces.append(piece)
            total += elements
    if rows:
        yield _Pieces(rows, cut)


def _cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    if tensors[0].dtype == dtype:
        return tensors
    cast = [torch.empty_like(a, dtype=dtype) for a in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast


def _norms(pieces: Tensors, norm: Norm) -> list[Tensor]:
    """Return the norm of each piece in its own dtype, to about 1e-7 in float32."""
    if norm == "inf":
        return list(torch._foreach_max(torch._foreach_abs(pieces)))
    if pieces[0].device.type == "cpu" and max(a.numel() for a in pieces) > CPU_EXACT_ELEMENTS:
        return [_long_norm(a, norm) for a in pieces]
    return list(torch._foreach_norm(pieces, norm))


def _long_norm(a: Tensor, norm: Norm) -> Tensor:
    # A float32 norm on the CPU adds term after term in a few lanes: off by 2e-6 on 2^18 elements, by 1e-3 on
    # 2e7. The norm of the norms of short rows is not.
    if a.numel() <= CPU_EXACT_ELEMENTS:
        return torch.linalg.vector_norm(a, norm)
    if not a.is_contiguous():
        return torch.linalg.vector_norm(torch.linalg.vector_norm(a, norm, dim=-1), norm)
    a = a.view(-1)
    rest = a.numel() % CPU_ROW_ELEMENTS
    norms = torch.linalg.vector_norm(a[: a.numel() - rest].view(-1, CPU_ROW_ELEMENTS), norm, dim=1)
    if rest:
        norms = torch.cat([norms, torch.linalg.vector_norm(a[-rest:], norm).view(1)])
    return torch.linalg.vector_norm(norms, norm)


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


def squares(tensors: list[Tensor]) -> Tensor:
    """Return the sum of squares over tensors of one device and dtype, 0-dim, float64."""
    norms: list[Tensor] = []
    for pieces in _cut([tensors], _piece_elements(tensors[0].device)):
        (a,) = pieces.lists
        norms += _norms(_cast(a, torch.float32) if a[0].dtype.itemsize < 4 else a, 2)
    return torch.stack(norms).to(torch.float64).square().sum()


def lamb_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LAMB, see `contract.py`: update the moments, return float64 [layers, (x, u)]."""
    x, m, v = layers.x, layers.state["exp_avg"], layers.state["exp_avg_sq"]
    keep = sum(a.numel() for a in x) <= elements_at_once(x[0].device)
    rows: list[int] = []
    x_norms: list[Tensor] = []
    u_norms: list[Tensor] = []
    kept: list[_Pieces] = []
    for pieces in _cut([x, layers.g, m, v, layers.rounded or x], _piece_elements(x[0].device)):
        x_, g_, m_, v_, _ = pieces.lists
        x_, g_ = _cast(x_, m_[0].dtype), _gradient(g_, m_[0].dtype, layers.g_scale, rule.maximize)
        torch._foreach_lerp_(m_, g_, 1 - rule.beta1)
        torch._foreach_mul_(v_, rule.beta2)
        torch._foreach_addcmul_(v_, g_, g_, 1 - rule.beta2)
        kept.append(pieces)
        if not (keep or rule.adapt):
            continue
        u = _lamb_direction(x_, g_, m_, v_, [layers.t[row] for row in pieces.rows], rule)
        if rule.adapt:
            x_norms += _norms(x_, rule.norm)
            u_norms += _norms(u, rule.norm)
            rows += pieces.rows
        if keep:
            pieces.u = u
    layers.kept = kept
    if not rule.adapt:
        return torch.zeros(len(x), 2, dtype=torch.float64, device=x[0].device)
    return torch.stack([_sums(x_norms, rule.norm, rows), _sums(u_norms, rule.norm, rows)], dim=1)


def lamb_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LAMB, see `contract.py`: ``x <- x - lr * ratio * u``, with ratios float64 [layers, 1]."""
    kept: list[_Pieces] = layers.kept
    layers.kept = None
    dtype = layers.state["exp_avg"][0].dtype
    lengths = (lr * ratios[:, 0]).to(dtype).unbind()
    while kept:  # backwards: what phase 1 touched last is still in the cache
        pieces = kept.pop()
        x_, g_, m_, v_, rounded = pieces.lists
        moved = _cast(x_, dtype)
        u = pieces.u
        if u is None:
            g_ = _gradient(g_, dtype, layers.g_scale, rule.maximize)
            u = _lamb_direction(moved, g_, m_, v_, [layers.t[row] for row in pieces.rows], rule)
        torch._foreach_addcmul_(moved, u, [lengths[row] for row in pieces.rows], -1)
        if moved is not x_:
            torch._foreach_copy_(x_, moved)
        if layers.rounded is not None:
            torch._foreach_copy_(rounded, moved)


def _gradient(g: list[Tensor], dtype: torch.dtype, scale: Tensor | None, maximize: bool) -> Tensors:
    """Return the gradients of what is minimised, clipped, in `dtype`; `g` itself is never written."""
    g_ = _cast(g, dtype)
    if scale is not None:
        return torch._foreach_mul(g_, (-scale if maximize else scale).to(dtype))
    return torch._foreach_neg(g_) if maximize else g_


def _lamb_direction(x: Tensors, g: Tensors, m: Tensors, v: Tensors, t: list[float], rule: LambRule) -> Tensors:
    """Return u of each piece, in new memory."""
    if rule.nesterov is not None:
        return _look_ahead_direction(x, g, m, v, t, rule)
    # With a = 1/(1-beta1^t), b = 1/(1-beta2^t) and b > 0:
    #     r = a*m / (sqrt(b*v) + eps) = a/sqrt(b) * m / (sqrt(v) + eps/sqrt(b))
    # which takes the corrections out of the elementwise work. It fails only where eps/sqrt(b) underflows.
    roots = [math.sqrt(rule.second_weights(s)[0]) for s in t]
    scales = [rule.first_weights(s)[0] / root for s, root in zip(t, roots, strict=True)]
    d = torch._foreach_sqrt(v)
    torch._foreach_add_(d, [rule.eps / root for root in roots])
    if rule.weight_decay == 0:
        u = torch._foreach_div(m, d)
        torch._foreach_mul_(u, scales)
        return u
    u = torch._foreach_mul(x, rule.weight_decay)
    torch._foreach_addcdiv_(u, m, d, scales)
    return u


def _look_ahead_direction(x: Tensors, g: Tensors, m: Tensors, v: Tensors, t: list[float], rule: LambRule) -> Tensors:
    """Return u of each piece for N-LAMB and NN-LAMB: the gradient enters the moments' estimates once more."""
    a, b = zip(*(rule.first_weights(s) for s in t), strict=True)
    n = torch._foreach_mul(m, a)
    torch._foreach_add_(n, torch._foreach_mul(g, b))
    a, b = zip(*(rule.second_weights(s) for s in t), strict=True)
    d = torch._foreach_mul(v, a)
    if rule.nesterov == "both":
        gg = torch._foreach_mul(g, g)
        torch._foreach_mul_(gg, b)
        torch._foreach_add_(d, gg)
    torch._foreach_sqrt_(d)
    torch._foreach_add_(d, rule.eps)
    u = torch._foreach_mul(x, rule.weight_decay)
    torch._foreach_addcdiv_(u, n, d, 1.0)
    return u
