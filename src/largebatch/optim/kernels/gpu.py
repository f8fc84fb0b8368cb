"""Fused kernels for GPUs, in Triton: one sweep over the memory of all layers for each phase.

A layer is cut into chunks; a program works on one, finds its layer in a table, and leaves its sums in float64. A small
second launch adds the sums of each layer's chunks in their order, so that a step gives the same bits each time. Nothing
is read back by the host: what changes from step to step (rates, counts, ratios, whether the step is taken) stays in
tensors on the device. The rules stand plainly in `lamb.py`, `lans.py` and `lars.py`.

Under TRITON_INTERPRET=1 the same kernels run on tensors in the host's memory, slowly; so they are tested where there
is no GPU.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.kernels.contract import LambRule, LarsRule, Layers, Rule
from largebatch.optim.kernels.geometry import NORMS, Arrays, arrays_of, geometries, mark_changed

CHUNK = 1 << 14
"""Elements of a program."""
_ARRAYS = 5


def unavailable() -> str | None:
    """Return why there are no fused kernels for GPUs; None if there are."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"fused kernels on a GPU need Triton, which cannot be imported ({error}); pip install triton"
    return None


def _sweeps() -> Any:
    from largebatch.optim.kernels import gpu_sweeps  # imports Triton

    return gpu_sweeps


# ---- tables on the device -------------------------------------------------------------------------------------------

_KEPT_TABLES = 64
_tables: "OrderedDict[Any, Tensor]" = OrderedDict()
_of_graphs: list[Tensor] = []
"""Tables that a captured CUDA graph reads: they have to stay."""


def _on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return a copy of an array on a device, made without waiting, or one made before."""
    key = (device, array.dtype.str, array.shape, array.tobytes())
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    found = _tables.get(key)
    if found is None:
        if capturing:
            raise RuntimeError(
                "a CUDA graph is being captured, but fused kernels have not yet stepped on these tensors; take a step "
                "with the same parameters and gradients before"
            )
        found = torch.from_numpy(array.copy())
        if device.type == "cuda":
            found = found.pin_memory().to(device, non_blocking=True)
        _tables[key] = found
        if len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    if capturing:
        _of_graphs.append(found)
    return found


class _Table:
    """The layers of a call: their addresses and chunks on the device, and their dtypes."""

    def __init__(self, arrays: Arrays, compute: torch.dtype) -> None:
        some = next(of for of in arrays if of)
        self.device = some[0].device
        self.layers = len(some)
        self.dtypes = [of[0].dtype if of else compute for of in arrays]
        self.has = [bool(of) for of in arrays]
        self.compute = compute
        elements = np.array([a.numel() for a in some], dtype=np.int64)
        chunks = (elements + CHUNK - 1) // CHUNK
        self.chunks = int(chunks.sum())
        found = geometries(arrays)
        self.ndim = max((0 if one is None else one[0]) for one in found)
        # In a call with strides a dense layer has its elements in the last dimension.
        shapes = np.ones((self.layers, 1 + _ARRAYS, max(self.ndim, 1)), dtype=np.int64)
        for row, one in enumerate(found):
            if one is None:
                shapes[row, 0, -1] = elements[row]
            else:
                shapes[row, :, -one[0] :] = np.array(one[1:]).reshape(-1, one[0])
        addresses = np.zeros((self.layers, _ARRAYS), dtype=np.int64)
        for i, of in enumerate(arrays):
            if of:
                addresses[:, i] = [a.data_ptr() for a in of]
        self.aligned = self.ndim == 0 and not (addresses % 16).any() and not (elements % 16).any()
        """Whether programs may read and write many elements at once."""
        first = np.concatenate([[0], np.cumsum(chunks)]).astype(np.int64)
        layer = np.repeat(np.arange(self.layers, dtype=np.int64), chunks)
        start = (np.arange(self.chunks, dtype=np.int64) - first[layer]) * CHUNK
        # One table and one copy: what the layers have, then what the chunks have.
        parts = [addresses, elements, shapes, first, layer, start]
        whole = _on_device(np.concatenate([part.reshape(-1) for part in parts]), self.device)
        self.addresses, self.elements, self.shapes, self.first, self.layer, self.start = whole.split(
            [part.size for part in parts]
        )


def prepare(layers: Layers) -> None:
    """Find the memory of layers, before anything changes.

    Raises:
        RuntimeError: the weights are lazily negated; several elements of what is to be changed lie in one place; or a
            CUDA graph is being captured, and these tensors have not been stepped on before.
    """
    layers.kept = _Table(arrays_of(layers), layers.dtype)


# ---- the phases -----------------------------------------------------------------------------------------------------


def _options(rule: Rule | None, device: torch.device) -> Tensor:
    """Return the numbers of a group that all layers share, float64."""
    beta1 = getattr(rule, "beta1", getattr(rule, "momentum", 0.0))
    numbers = [beta1, getattr(rule, "beta2", 0.0), getattr(rule, "eps", 0.0), getattr(rule, "weight_decay", 0.0)]
    return _on_device(np.array(numbers, dtype=np.float64), device)


def _columns(table: _Table, values: Sequence[Any]) -> Tensor:
    """Return numbers of each layer, float64 [layers, columns], from numbers and tensors."""
    made = torch.empty(table.layers, len(values), dtype=torch.float64, device=table.device)
    for column, value in enumerate(values):
        if isinstance(value, Tensor):
            made[:, column].copy_(value)
        else:
            made[:, column].fill_(value)
    return made


def _numbers(layers: Layers, rule: Rule) -> Tensor:
    """Return scale of the gradient, a1, b1, a2, b2 of each layer, float64 [layers, 5]."""
    scale: Any = 1.0 if layers.g_scale is None else layers.g_scale
    weights: tuple[Any, ...] = (1.0, 0.0, 1.0, 0.0)
    if isinstance(rule, LambRule):
        t = layers.t
        if not isinstance(t, Tensor):
            t = _on_device(np.array(t, dtype=np.float64), layers.kept.device)
        weights = (*rule.first_weights(t), *rule.second_weights(t))
    return _columns(layers.kept, [-scale if rule.maximize else scale, *weights])


def _launch(kernel: Any, table: _Table, name: str, rule: Rule | None, **fields: Any) -> None:
    sweeps = _sweeps()
    keep: Tensor | None = fields.pop("keep", None)
    kernel[(table.chunks,)](
        addresses=table.addresses,
        elements=table.elements,
        shapes=table.shapes,
        layers=table.layer,
        starts=table.start,
        options=_options(rule, table.device),
        keep=table.elements if keep is None else keep,
        RULE=name,
        HAS_KEEP=keep is not None,
        AHEAD=bool(getattr(rule, "nesterov", False)),
        BUFFER=table.has[2],
        NORM=NORMS[rule.norm if rule else 2],
        NDIM=table.ndim,
        ALIGNED=table.aligned,
        X=sweeps.TYPES[table.dtypes[0]],
        G=sweeps.TYPES[table.dtypes[1]],
        COMPUTE=sweeps.TYPES[table.compute],
        CHUNK=CHUNK,
        BLOCK=sweeps.BLOCK,
        **fields,
    )


def _first_phase(
    layers: Layers | None, table: _Table, name: str, columns: int, rule: Rule | None, numbers: Tensor
) -> Tensor:
    sweeps = _sweeps()
    partial = torch.empty(table.chunks, columns, dtype=torch.float64, device=table.device)
    keep = None if layers is None else layers.keep
    _launch(sweeps.first_phase, table, name, rule, keep=keep, numbers=numbers, partial=partial, COLUMNS=columns)
    sums = torch.empty(table.layers, columns, dtype=torch.float64, device=table.device)
    norm = NORMS[rule.norm if rule else 2]
    sweeps.add_chunks[(table.layers,)](partial, table.first, sums, COLUMNS=columns, NORM=norm, BLOCK=128)
    return sums


def _last_phase(layers: Layers, name: str, rule: Rule, numbers: Tensor, lengths: Tensor, rate: Any = 1.0) -> None:
    table: _Table = layers.kept
    made = _columns(table, [*lengths.to(torch.float64).unbind(dim=1), *[0.0] * (2 - lengths.shape[1]), rate])
    sweeps = _sweeps()
    rounded = sweeps.TYPES[table.dtypes[4]]
    fields: dict[str, Any] = {"HAS_ROUNDED": table.has[4], "ROUNDED": rounded}
    _launch(sweeps.last_phase, table, name, rule, keep=layers.keep, numbers=numbers, lengths=made, **fields)
    layers.kept = None


def squares(tensors: list[Tensor]) -> Tensor:
    """Phase 0, see `contract.py`: the sum of squares of each tensor, all of one dtype, float64 [layers]."""
    compute = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    table = _Table((None, tensors, None, None, None), compute)
    return _first_phase(None, table, "squares", 1, None, _columns(table, [1.0, 1.0, 0.0, 1.0, 0.0]))[:, 0]


def _norms_(layers: Layers, rule: Rule, name: str, columns: int) -> Tensor:
    mark_changed(layers)
    return _first_phase(layers, layers.kept, name, columns, rule, _numbers(layers, rule))


def lamb_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LAMB, see `contract.py`: update the moments, return float64 [layers, (x, u)]."""
    return _norms_(layers, rule, "lamb", 2)


def lamb_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LAMB, see `contract.py`: ``x <- x - lr * ratio * u``, with ratios float64 [layers, 1]."""
    _last_phase(layers, "lamb", rule, _numbers(layers, rule), layers.lengths(lr, ratios))


def lans_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LANS, see `contract.py`: update the moments, return float64 [layers, (x, r, c)]."""
    return _norms_(layers, rule, "lans", 3)


def lans_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LANS: ``x <- x - lr * (beta1 * ratio_r * r + (1 - beta1) * ratio_c * c)``, ratios [layers, 2]."""
    r, c = ratios.unbind(dim=1)
    shares = torch.stack([rule.beta1 * r, (1 - rule.beta1) * c], dim=1)
    _last_phase(layers, "lans", rule, _numbers(layers, rule), layers.lengths(lr, shares))


def _lars(rule: LarsRule) -> str:
    return "lars" if rule.version == "algorithm1" else "lars-2017"


def lars_norms_(layers: Layers, rule: LarsRule) -> Tensor:
    """Phase 1 of LARS, see `contract.py`: float64 [layers, (x, m)] for algorithm 1, else [layers, (x, g)]."""
    return _norms_(layers, rule, _lars(rule), 2)


def lars_apply_(layers: Layers, rule: LarsRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LARS, see `contract.py`, with ratios float64 [layers, 1]."""
    inside, rate = (1.0, lr) if rule.version == "2017-lr-outside" else (lr, 1.0)
    _last_phase(layers, _lars(rule), rule, _numbers(layers, rule), layers.lengths(inside, ratios), rate)
