"""Multi-tensor kernels from torch's `_foreach` operations: few calls, bounded temporaries, nothing to the host.

The rules stand plainly in `lamb.py`, `lans.py`, `lars.py` and `layerwise.py`; here they are rearranged for speed.
`pieces.py` says what a piece is. Phase 3 takes the pieces backwards, for what phase 1 touched last is still in
the cache.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from largebatch.optim.kernels.contract import Count, LambRule, LarsRule, Layers, LayerwiseRule
from largebatch.optim.kernels.pieces import ColumnSums, Pieces, Tensors, cast, cut, gradient, kept_elements

Scalars: TypeAlias = Any
"""One for each layer or piece: numbers, or 0-dim tensors; torch's operations have an overload for either."""


class _Weights(NamedTuple):
    """For each layer, what the moments are weighted by at its step: ``mhat = a1*m + b1*g``, ``vhat = a2*v + b2*g*g``.

    Without a look-ahead, with a1 = 1/(1-beta1^t), a2 = 1/(1-beta2^t) and a2 > 0:
        r = a1*m / (sqrt(a2*v) + eps) = a1/sqrt(a2) * m / (sqrt(v) + eps/sqrt(a2))
    which takes the corrections out of the elementwise work. It fails only where eps/sqrt(a2) underflows.
    """

    a1: Scalars
    b1: Scalars
    a2: Scalars
    b2: Scalars
    n_scale: Scalars
    """a1/sqrt(a2)"""
    g_scale: Scalars
    """1/sqrt(a2)"""
    eps: Scalars
    """eps/sqrt(a2)"""

    def of(self, rows: list[int]) -> "_Weights":
        """Return the weights of the layer that each piece is of."""
        return _Weights(*([column[row] for row in rows] for column in self))


def _weights(layers: Layers, rule: LambRule) -> _Weights:
    def columns(t: Count) -> tuple[Count, ...]:
        (a1, b1), (a2, b2) = rule.first_weights(t), rule.second_weights(t)
        # With a look-ahead these are not used, and a2 may be 0.
        root = a2**0.5 if rule.nesterov is None else 1.0
        return a1, b1, a2, b2, a1 / root, 1 / root, rule.eps / root

    if isinstance(layers.t, Tensor):  # all layers at once, for each operation is a launch
        found = columns(layers.t)
        return _Weights(*(w.unbind() if isinstance(w, Tensor) else [w] * len(layers.x) for w in found))
    return _Weights(*zip(*map(columns, layers.t), strict=True))


def half_as_many_elements(device: torch.device) -> float:
    """Return how many elements a rule gets that keeps two arrays for phase 3."""
    return kept_elements(device) / 2


# ---- LAMB -----------------------------------------------------------------------------------------------------


def lamb_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LAMB, see `contract.py`: update the moments, return float64 [layers, (x, u)]."""
    return _adam_norms_(layers, rule, _lamb_directions, arrays_kept=1)


def lamb_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LAMB, see `contract.py`: ``x <- x - lr * ratio * u``, with ratios float64 [layers, 1]."""
    _move_along_(layers, rule, layers.lengths(lr, ratios), _lamb_directions)


def _lamb_directions(x: Tensors, g: Tensors, pieces: Pieces, weights: _Weights, rule: LambRule) -> list[Tensors]:
    """Return [u] of each piece, in new memory."""
    fraction = _fraction(g, pieces, weights, rule)
    return [_decayed_quotient(x, rule.weight_decay, fraction.n, fraction.d, fraction.n_scales)]


# ---- LANS -----------------------------------------------------------------------------------------------------


def lans_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LANS, see `contract.py`: update the moments, return float64 [layers, (x, r, c)]."""
    return _adam_norms_(layers, rule, _lans_directions, arrays_kept=2)


def lans_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LANS: ``x <- x - lr * (beta1 * ratio_r * r + (1 - beta1) * ratio_c * c)``, ratios [layers, 2]."""
    r, c = ratios.unbind(dim=1)
    shares = torch.stack([rule.beta1 * r, (1 - rule.beta1) * c], dim=1)
    _move_along_(layers, rule, layers.lengths(lr, shares), _lans_directions)


def _lans_directions(x: Tensors, g: Tensors, pieces: Pieces, weights: _Weights, rule: LambRule) -> list[Tensors]:
    """Return [r, c] of each piece, in new memory; g is normalised already."""
    fraction = _fraction(g, pieces, weights, rule)
    return [
        _decayed_quotient(x, rule.weight_decay, fraction.n, fraction.d, fraction.n_scales),
        _decayed_quotient(x, rule.weight_decay, g, fraction.d, fraction.g_scales),
    ]


# ---- what LAMB and LANS share ---------------------------------------------------------------------------------

Directions: TypeAlias = Callable[[Tensors, Tensors, Pieces, _Weights, LambRule], list[Tensors]]


def _adam_norms_(layers: Layers, rule: LambRule, directions: Directions, *, arrays_kept: int) -> Tensor:
    x, m, v = layers.x, layers.state["exp_avg"], layers.state["exp_avg_sq"]
    keep = arrays_kept * sum(a.numel() for a in x) <= kept_elements(x[0].device)
    beta1, beta2 = (layers.unless_skipped(beta, 1.0) for beta in (rule.beta1, rule.beta2))
    weights = _weights(layers, rule)
    sums = ColumnSums(rule.norm)
    all_pieces: list[Pieces] = []
    for pieces in cut([x, layers.g, m, v, layers.rounded or x]):
        x_, g_, m_, v_, _ = pieces.lists
        x_, g_ = cast(x_, layers.dtype), gradient(g_, pieces.rows, layers, rule.maximize)
        if layers.keep is None:
            torch._foreach_lerp_(m_, g_, 1 - rule.beta1)
        else:  # in two passes: torch has no lerp of lists with one weight on the device
            torch._foreach_mul_(m_, beta1)
            torch._foreach_add_(m_, g_, alpha=1 - rule.beta1)
        torch._foreach_mul_(v_, beta2)
        torch._foreach_addcmul_(v_, g_, g_, 1 - rule.beta2)
        all_pieces.append(pieces)
        if keep or rule.adapt:
            found = directions(x_, g_, pieces, weights, rule)
            if rule.adapt:
                sums.add(pieces.rows, x_, *found)
            if keep:
                pieces.kept = found
    layers.kept = all_pieces
    return sums.columns() if rule.adapt else _unmeasured(layers, columns=1 + arrays_kept)


def _move_along_(layers: Layers, rule: LambRule, lengths: Tensor, directions: Directions) -> None:
    """Move each layer by -length along each of its directions; lengths [layers, directions]."""
    columns = [column.unbind() for column in lengths.unbind(dim=1)]
    weights = _weights(layers, rule)
    for pieces in _backwards(layers):
        x, g = pieces.lists[:2]
        moved = cast(x, layers.dtype)
        found = pieces.kept
        if not found:
            found = directions(moved, gradient(g, pieces.rows, layers, rule.maximize), pieces, weights, rule)
        for direction, column in zip(found, columns, strict=True):
            torch._foreach_addcmul_(moved, direction, [column[row] for row in pieces.rows], -1)
        _write_back_(moved, pieces, layers)


class _Fraction(NamedTuple):
    """``mhat / (sqrt(vhat) + eps) = n_scale * n / d``, and ``1 / (sqrt(vhat) + eps) = g_scale / d``, of each piece."""

    n: Tensors
    d: Tensors
    n_scales: Scalars
    g_scales: Scalars


def _fraction(g: Tensors, pieces: Pieces, weights: _Weights, rule: LambRule) -> _Fraction:
    m, v = pieces.lists[2:4]
    own = weights.of(pieces.rows)
    if rule.nesterov is None:
        d = torch._foreach_sqrt(v)
        torch._foreach_add_(d, own.eps)
        return _Fraction(m, d, own.n_scale, own.g_scale)
    # N-LAMB and NN-LAMB: the gradient enters the moments' estimates once more.
    n = torch._foreach_mul(m, own.a1)
    torch._foreach_add_(n, torch._foreach_mul(g, own.b1))
    d = torch._foreach_mul(v, own.a2)
    if rule.nesterov == "both":
        gg = torch._foreach_mul(g, g)
        torch._foreach_mul_(gg, own.b2)
        torch._foreach_add_(d, gg)
    torch._foreach_sqrt_(d)
    torch._foreach_add_(d, rule.eps)
    ones = [1.0] * len(pieces.rows)
    return _Fraction(n, d, ones, ones)


def _decayed_quotient(x: Tensors, weight_decay: float, n: Tensors, d: Tensors, scales: Scalars) -> Tensors:
    """Return ``scale * n / d + weight_decay * x`` in new memory."""
    on_host = not isinstance(scales[0], Tensor)
    if on_host and weight_decay != 0:
        u = torch._foreach_mul(x, weight_decay)
        torch._foreach_addcdiv_(u, n, d, scales)
        return u
    u = torch._foreach_div(n, d)
    torch._foreach_mul_(u, scales)
    if weight_decay != 0:
        torch._foreach_add_(u, x, alpha=weight_decay)
    return u


# ---- LARS -----------------------------------------------------------------------------------------------------


def lars_norms_(layers: Layers, rule: LarsRule) -> Tensor:
    """Phase 1 of LARS, see `contract.py`: float64 [layers, (x, m)] for algorithm 1, else [layers, (x, g)]."""
    sums = ColumnSums(rule.norm)
    all_pieces: list[Pieces] = []
    keep = sum(a.numel() for a in layers.x) <= kept_elements(layers.x[0].device)
    for pieces in _lars_pieces(layers):
        x, g = cast(pieces.lists[0], layers.dtype), gradient(pieces.lists[1], pieces.rows, layers, rule.maximize)
        all_pieces.append(pieces)
        measured = g
        if rule.version == "algorithm1":
            measured = _first_algorithm_(x, g, pieces, layers, rule)
            if keep and (rule.nesterov or not _buffers(pieces)):
                pieces.kept = [measured]
        if rule.adapt:
            sums.add(pieces.rows, x, measured)
    layers.kept = all_pieces
    return sums.columns() if rule.adapt else _unmeasured(layers, columns=2)


def lars_apply_(layers: Layers, rule: LarsRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LARS, see `contract.py`, with ratios float64 [layers, 1]."""
    lengths = layers.lengths(lr, ratios[:, 0]).unbind()
    rates: float | Tensor = 1.0
    if rule.version == "2017":
        rates = layers.unless_skipped(1.0, 0.0)
    elif rule.version == "2017-lr-outside":
        lengths, rates = layers.lengths(1.0, ratios[:, 0]).unbind(), lr
    for pieces in _backwards(layers):
        moved = cast(pieces.lists[0], layers.dtype)
        own = [lengths[row] for row in pieces.rows]
        if rule.version == "algorithm1":
            (u,) = pieces.kept or [_first_algorithm_again(moved, pieces, layers, rule)]
            torch._foreach_addcmul_(moved, u, own, -1)
        else:
            g = gradient(pieces.lists[1], pieces.rows, layers, rule.maximize)
            step = _second_algorithm_(moved, g, own, pieces, layers, rule)
            if isinstance(rates, Tensor):
                step = torch._foreach_mul(step, rates.to(layers.dtype))
                torch._foreach_sub_(moved, step)
            else:
                torch._foreach_add_(moved, step, alpha=-rates)
        _write_back_(moved, pieces, layers)


def _lars_pieces(layers: Layers) -> Iterator[Pieces]:
    """Yield pieces of (x, g, the buffer if there is momentum, rounded)."""
    return cut([layers.x, layers.g, *layers.state.values(), layers.rounded or layers.x])


def _buffers(pieces: Pieces) -> list[list[Tensor]]:
    return pieces.lists[2:-1]


def _decayed_gradient(x: Tensors, g: Tensors, layers: Layers, rule: LarsRule) -> Tensors:
    """Return ``g + weight_decay * x``; g itself without decay."""
    decay = layers.unless_skipped(rule.weight_decay, 0.0)
    if isinstance(decay, Tensor):
        return torch._foreach_add(torch._foreach_mul(x, decay), g)
    return torch._foreach_add(g, x, alpha=decay) if decay else g


def _first_algorithm_(x: Tensors, g: Tensors, pieces: Pieces, layers: Layers, rule: LarsRule) -> Tensors:
    """Move the momentum and return the direction: the buffer itself, or new memory."""
    d = _decayed_gradient(x, g, layers, rule)
    if not _buffers(pieces):
        return d
    (m,) = _buffers(pieces)
    if layers.keep is None:
        torch._foreach_lerp_(m, d, 1 - rule.momentum)
    else:
        torch._foreach_mul_(m, layers.unless_skipped(rule.momentum, 1.0))
        torch._foreach_add_(m, d, alpha=1 - rule.momentum)
    return torch._foreach_lerp(d, m, rule.momentum) if rule.nesterov else m


def _first_algorithm_again(x: Tensors, pieces: Pieces, layers: Layers, rule: LarsRule) -> Tensors:
    """Return the direction that phase 1 has measured and not kept."""
    buffers = _buffers(pieces)
    if buffers and not rule.nesterov:
        return buffers[0]
    d = _decayed_gradient(x, gradient(pieces.lists[1], pieces.rows, layers, rule.maximize), layers, rule)
    return torch._foreach_lerp(d, buffers[0], rule.momentum) if buffers else d


def _second_algorithm_(
    x: Tensors, g: Tensors, lengths: list[Tensor], pieces: Pieces, layers: Layers, rule: LarsRule
) -> Tensors:
    """Move the momentum by length * (g + weight_decay * x) and return the step: the buffer, or new memory."""
    d = torch._foreach_mul(_decayed_gradient(x, g, layers, rule), lengths)
    if not _buffers(pieces):
        return d
    (v,) = _buffers(pieces)
    torch._foreach_mul_(v, layers.unless_skipped(rule.momentum, 1.0))
    torch._foreach_add_(v, d)
    if rule.nesterov:
        torch._foreach_add_(d, v, alpha=rule.momentum)
        return d
    return v


# ---- the general strategy -------------------------------------------------------------------------------------


def layerwise_norms_(layers: Layers, rule: LayerwiseRule) -> Tensor:
    """Phase 1 of `Layerwise`: float64 [layers, (x, u)], with u the step that the base took, over its rate."""
    sums = ColumnSums(rule.norm)
    all_pieces: list[Pieces] = []
    for pieces in cut([layers.x, layers.state["start"], layers.state["stepped"], layers.rounded or layers.x]):
        all_pieces.append(pieces)
        if rule.adapt:
            start = cast(pieces.lists[1], layers.dtype)
            sums.add(pieces.rows, start, _base_direction(start, pieces, rule))
    layers.kept = all_pieces
    return sums.columns() if rule.adapt else _unmeasured(layers, columns=2)


def layerwise_apply_(layers: Layers, rule: LayerwiseRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of `Layerwise`: ``x <- start - lr * ratio * u``, with ratios float64 [layers, 1]."""
    lengths = layers.lengths(lr, ratios[:, 0]).unbind()
    for pieces in _backwards(layers):
        start = cast(pieces.lists[1], layers.dtype)
        u = _base_direction(start, pieces, rule)
        # Out of place: the stepped weights may be those that are to be written.
        moved = torch._foreach_addcmul(start, u, [lengths[row] for row in pieces.rows], -1)
        _write_back_(moved, pieces, layers)


def _base_direction(start: Tensors, pieces: Pieces, rule: LayerwiseRule) -> Tensors:
    u = torch._foreach_sub(start, pieces.lists[2])
    torch._foreach_mul_(u, 1 / rule.base_rate)
    return u


# ---- what all share -------------------------------------------------------------------------------------------


def _unmeasured(layers: Layers, *, columns: int) -> Tensor:
    return torch.zeros(len(layers.x), columns, dtype=torch.float64, device=layers.x[0].device)


def _backwards(layers: Layers) -> Iterator[Pieces]:
    """Yield the pieces that phase 1 has left, the last first, and let go of them."""
    all_pieces: list[Pieces] = layers.kept
    layers.kept = None
    while all_pieces:
        yield all_pieces.pop()


def _write_back_(moved: Tensors, pieces: Pieces, layers: Layers) -> None:
    """Store the moved weights, if they are not the stored ones, and their rounded copy where there are masters."""
    x, rounded = pieces.lists[0], pieces.lists[-1]
    if moved is not x:
        torch._foreach_copy_(x, moved)
    if layers.rounded is not None:
        torch._foreach_copy_(rounded, moved)
