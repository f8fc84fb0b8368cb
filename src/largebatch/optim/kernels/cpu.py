"""Fused kernels for CPUs: each phase is one sweep over memory, in `cpu.cpp`, which installing the package compiles.

Where no norm has to be completed by other processes, a whole step is one call. It takes about as many layers at once
through both phases as the last-level cache holds, so that phase 3 finds there what phase 1 has left: of the ten words
that LAMB moves for a parameter, three are then not moved again. The threads are those of PyTorch.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch.optim.kernels.contract import LambRule, LarsRule, Layers, RatioRule, Rule
from largebatch.optim.kernels.geometry import NORMS, Arrays, arrays_of, geometries, mark_changed

_VERSION = 1
_ARRAYS = 5
_NUMBERS = 7
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# The sweeps, as cpu.cpp counts them.
_SQUARES, _LAMB, _LANS, _LARS, _LARS_2017 = 0, 1, 3, 5, 7
_FIRST_PHASE, _LAST_PHASE = 0, 1

_int32, _int64, _double, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Work(ctypes.Structure):
    """What is to be done, one sweep or a whole step; `cpu.cpp` says what the fields are."""

    _fields_ = (
        *((name, _int32) for name in ("sweep", "whole_step", "adapt", "norm", "look_ahead", "momentum")),
        *((name, _int32) for name in ("compute", "threads", "vectors")),
        ("types", _int32 * _ARRAYS),
        ("parallel", _pointer),
        ("number", _pointer),
        ("layers", _int64),
        *((name, _pointer) for name in ("addresses", "elements", "geometries", "strides", "numbers", "sums")),
        *((name, _double) for name in ("beta1", "beta2", "eps", "weight_decay", "rate")),
        ("elements_at_once", _int64),
        *((name, _double) for name in ("lr", "coefficient", "of_weights", "ratio_eps")),
        *((name, _double) for name in ("phi_low", "phi_high", "ratio_low", "ratio_high")),
    )


# ---- the library ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Library:
    """The compiled kernels."""

    run: Callable[[Any], int]
    vectors: int
    """2 for AVX-512, 1 for AVX2, 0 for what all processors of this kind have."""
    openmp: tuple[int | None, int | None]
    """The addresses of the functions by which to use PyTorch's OpenMP threads; None for threads of our own."""


@functools.cache
def library() -> Library | str:
    """Return the compiled kernels, or why there are none."""
    path = Path(__file__).with_name("_cpu.so")
    how = "install largebatch where a C++ compiler (g++ or clang++) is at hand to have them"
    if not path.exists():
        return f"the CPU kernels were not compiled when largebatch was installed; {how}"
    try:
        found = ctypes.CDLL(str(path))
        version = found.largebatch_version()
    except (OSError, AttributeError) as error:
        return f"the CPU kernels cannot be loaded ({error}); {how}"
    if version != _VERSION:
        return f"the CPU kernels in {path} are of another version of largebatch; {how}"
    found.largebatch_run.argtypes = [ctypes.POINTER(_Work)]
    return Library(found.largebatch_run, found.largebatch_vectors(), _openmp())


def _openmp() -> tuple[int | None, int | None]:
    """Return where GOMP_parallel and omp_get_thread_num are, if PyTorch's threads are those of an OpenMP with them."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None, None
    try:
        found = ctypes.CDLL(None)
        parallel, number = (ctypes.cast(f, _pointer).value for f in (found.GOMP_parallel, found.omp_get_thread_num))
    except (OSError, AttributeError, TypeError):
        return None, None
    return parallel, number


def unavailable() -> str | None:
    """Return why there are no fused kernels for CPUs; None if there are."""
    found = library()
    return found if isinstance(found, str) else None


@functools.cache
def cache_bytes() -> int:
    """Return the size of the last-level cache that a processor sees; 8 MiB where the system does not say."""
    sizes = [1 << 23]
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            size = (index / "size").read_text(encoding="ascii").strip()
            sizes.append(int(size[:-1]) << {"K": 10, "M": 20}[size[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes)


def elements_at_once(arrays: int) -> int:
    """Return of how many elements the cache holds as many float32 arrays as phase 3 reads."""
    return cache_bytes() // (4 * arrays)


# ---- the layers of a call ------------------------------------------------------------------------------------------


class _Table:
    """The addresses of layers, and the numbers that go with each."""

    def __init__(self, arrays: Arrays, compute: torch.dtype) -> None:
        some = next(of for of in arrays if of)
        count = len(some)
        self.addresses = np.zeros((count, _ARRAYS), dtype=np.int64)
        self.elements = np.fromiter((a.numel() for a in some), np.int64, count)
        self.geometries = np.full(count, -1, dtype=np.int64)
        self.numbers = np.zeros((count, _NUMBERS))
        self.numbers[:, 0] = 1
        self.types = [0 if not of else _DTYPES[of[0].dtype] for of in arrays]
        self.compute = _DTYPES[compute]
        strides: list[int] = []
        for i, of in enumerate(arrays):
            if of:
                self.addresses[:, i] = [a.data_ptr() for a in of]
        for row, found in enumerate(geometries(arrays)):
            if found is not None:
                self.geometries[row] = len(strides)
                strides += found
        self.strides = np.array(strides, dtype=np.int64)

    def run(self, sweep: int, columns: int, rule: Rule | None = None, **fields: float) -> NDArray[np.float64]:
        """Make a sweep, or a step; return the sums, float64 [layers, columns]."""
        kernels = library()
        assert isinstance(kernels, Library)
        sums = np.zeros((len(self.elements), columns))
        given = _Work(
            sweep=sweep,
            adapt=rule is not None and rule.adapt,
            norm=NORMS[rule.norm if rule else 2],
            look_ahead=rule is not None and bool(getattr(rule, "nesterov", False)),
            momentum=bool(self.addresses[0, 2]),
            compute=self.compute,
            threads=torch.get_num_threads(),
            vectors=kernels.vectors,
            types=(_int32 * _ARRAYS)(*self.types),
            parallel=kernels.openmp[0],
            number=kernels.openmp[1],
            layers=len(self.elements),
            addresses=self.addresses.ctypes.data,
            elements=self.elements.ctypes.data,
            geometries=self.geometries.ctypes.data,
            strides=self.strides.ctypes.data,
            numbers=self.numbers.ctypes.data,
            sums=sums.ctypes.data,
            **fields,
        )
        if kernels.run(given):
            raise MemoryError(
                "there is no memory for the sums of a step; nothing has changed in the layers of this call"
            )
        return sums


def prepare(layers: Layers) -> None:
    """Find the memory of layers, before anything changes.

    Raises:
        RuntimeError: the weights are lazily negated; several elements of what is to be changed lie in one place.
    """
    layers.kept = _Table(arrays_of(layers), layers.dtype)


def squares(tensors: list[Tensor]) -> Tensor:
    """Phase 0, see `contract.py`: the sum of squares of each tensor, all of one dtype, float64 [layers]."""
    dtype = tensors[0].dtype
    table = _Table((None, tensors, None, None, None), torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.from_numpy(table.run(_SQUARES, 1)[:, 0])


# ---- the phases -----------------------------------------------------------------------------------------------------


def _skipped(layers: Layers) -> bool:
    return layers.keep is not None and not bool(layers.keep)


def _gradient_scales(layers: Layers, rule: Rule) -> None:
    """Enter what the gradients are multiplied by."""
    scale: Any = 1.0 if layers.g_scale is None else layers.g_scale.detach().numpy()
    layers.kept.numbers[:, 0] = -scale if rule.maximize else scale


def _moment_weights(layers: Layers, rule: LambRule) -> None:
    """Enter a1, b1, a2, b2 of each layer's step."""
    steps = layers.t.tolist() if isinstance(layers.t, Tensor) else layers.t
    of_step = {t: (*rule.first_weights(t), *rule.second_weights(t)) for t in set(steps)}
    layers.kept.numbers[:, 1:5] = [of_step[t] for t in steps]


def _enter_lengths(layers: Layers, lengths: Tensor) -> None:
    layers.kept.numbers[:, 5 : 5 + lengths.shape[1]] = lengths.detach().to(torch.float64).numpy()


def _adam_numbers(rule: LambRule) -> dict[str, float]:
    return {"beta1": rule.beta1, "beta2": rule.beta2, "eps": rule.eps, "weight_decay": rule.weight_decay}


def _adam_norms_(layers: Layers, rule: LambRule, sweep: int, columns: int, **fields: float) -> Tensor:
    if _skipped(layers):
        return torch.zeros(len(layers.x), columns, dtype=torch.float64, device="cpu")
    _gradient_scales(layers, rule)
    _moment_weights(layers, rule)
    mark_changed(layers)
    return torch.from_numpy(layers.kept.run(sweep + _FIRST_PHASE, columns, rule, **_adam_numbers(rule), **fields))


def _adam_apply_(layers: Layers, rule: LambRule, lengths: Tensor, sweep: int) -> None:
    if not _skipped(layers):
        _enter_lengths(layers, lengths)
        layers.kept.run(sweep + _LAST_PHASE, 0, rule, **_adam_numbers(rule))
    layers.kept = None


def _whole_step(lr: float | Tensor, ratio: RatioRule, arrays: int) -> dict[str, float]:
    """Return the fields by which a step goes through both phases at once; `arrays` are those that phase 3 reads."""
    phi_low, phi_high = ratio.phi_bounds or (0.0, math.inf)
    ratio_low, ratio_high = ratio.ratio_bounds or (0.0, math.inf)
    return {
        "whole_step": True,
        "elements_at_once": elements_at_once(arrays),
        "lr": float(lr),
        "coefficient": ratio.coefficient,
        "of_weights": ratio.of_weights,
        "ratio_eps": ratio.eps,
        "phi_low": float(phi_low),
        "phi_high": float(phi_high),
        "ratio_low": float(ratio_low),
        "ratio_high": float(ratio_high),
    }


def lamb_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LAMB, see `contract.py`: update the moments, return float64 [layers, (x, u)]."""
    return _adam_norms_(layers, rule, _LAMB, 2)


def lamb_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LAMB, see `contract.py`: ``x <- x - lr * ratio * u``, with ratios float64 [layers, 1]."""
    _adam_apply_(layers, rule, layers.lengths(lr, ratios), _LAMB)


def lamb_step_(layers: Layers, rule: LambRule, lr: float | Tensor, ratio: RatioRule) -> Tensor:
    """Make a whole step of LAMB, and return what phase 1 does."""
    return _adam_norms_(layers, rule, _LAMB, 2, **_whole_step(lr, ratio, 3))


def lans_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Phase 1 of LANS, see `contract.py`: update the moments, return float64 [layers, (x, r, c)]."""
    return _adam_norms_(layers, rule, _LANS, 3)


def lans_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LANS: ``x <- x - lr * (beta1 * ratio_r * r + (1 - beta1) * ratio_c * c)``, ratios [layers, 2]."""
    shares = ratios * torch.tensor([rule.beta1, 1 - rule.beta1], dtype=ratios.dtype, device="cpu")
    _adam_apply_(layers, rule, layers.lengths(lr, shares), _LANS)


def lans_step_(layers: Layers, rule: LambRule, lr: float | Tensor, ratio: RatioRule) -> Tensor:
    """Make a whole step of LANS, and return what phase 1 does."""
    return _adam_norms_(layers, rule, _LANS, 3, **_whole_step(lr, ratio, 4))


def _lars(rule: LarsRule) -> int:
    return _LARS if rule.version == "algorithm1" else _LARS_2017


def _lars_numbers(rule: LarsRule) -> dict[str, float]:
    return {"beta1": rule.momentum, "weight_decay": rule.weight_decay}


def lars_norms_(layers: Layers, rule: LarsRule, **fields: float) -> Tensor:
    """Phase 1 of LARS, see `contract.py`: float64 [layers, (x, m)] for algorithm 1, else [layers, (x, g)]."""
    if _skipped(layers):
        return torch.zeros(len(layers.x), 2, dtype=torch.float64, device="cpu")
    _gradient_scales(layers, rule)
    mark_changed(layers)
    return torch.from_numpy(layers.kept.run(_lars(rule) + _FIRST_PHASE, 2, rule, **_lars_numbers(rule), **fields))


def _in_and_outside(rule: LarsRule, lr: float | Tensor) -> tuple[float | Tensor, float]:
    """Return what the ratio is multiplied by, and what the momentum is."""
    return (1.0, float(lr)) if rule.version == "2017-lr-outside" else (lr, 1.0)


def lars_apply_(layers: Layers, rule: LarsRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Phase 3 of LARS, see `contract.py`, with ratios float64 [layers, 1]."""
    if not _skipped(layers):
        inside, rate = _in_and_outside(rule, lr)
        _enter_lengths(layers, layers.lengths(inside, ratios))
        layers.kept.run(_lars(rule) + _LAST_PHASE, 0, rule, rate=rate, **_lars_numbers(rule))
    layers.kept = None


def lars_step_(layers: Layers, rule: LarsRule, lr: float | Tensor, ratio: RatioRule) -> Tensor:
    """Make a whole step of LARS, and return what phase 1 does."""
    inside, rate = _in_and_outside(rule, lr)
    return lars_norms_(layers, rule, rate=rate, **_whole_step(inside, ratio, 2 if rule.version == "algorithm1" else 3))
