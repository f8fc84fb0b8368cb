"""Steps that only move memory: what an optimizer's step would take if its arithmetic took nothing.

They move the words of a float32 step by the threads, chunks and portions of the fused CPU kernels (`traffic.cpp`). So
they hold what no count of words knows: how much of the last-level cache is there for this process, and what a word
costs that is found in it.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from largebatch.optim.kernels import cpu

_KERNELS = Path(cpu.__file__).parent


class _OpenMP(ctypes.Structure):
    _fields_ = (("parallel", ctypes.c_void_p), ("number", ctypes.c_void_p))


def traffic(shapes: Iterable[tuple[int, ...]]) -> dict[str, Callable[[], None]]:
    """Return, by name, calls that move what a step on tensors of these shapes moves.

    Raises:
        ImportError: there are no compiled kernels, whose threads they use, or no g++.
    """
    library = cpu.library()
    if isinstance(library, str):
        raise ImportError(library)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "traffic.so"
        source = Path(__file__).with_name("traffic.cpp")
        options = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", f"-I{_KERNELS}"]
        try:
            subprocess.run(["g++", *options, "-o", str(built), str(source)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ImportError(f"g++ could not compile {source.name}: {error}") from error
        function = ctypes.CDLL(str(built)).traffic
    arrays = [[torch.full(shape, value) for value in (1.0, 0.0, 1.0, 1.0)] for shape in shapes]
    elements = np.array([of[0].numel() for of in arrays], dtype=np.int64)
    openmp = _OpenMP(*library.openmp)

    def of(phase_3_reads: int | None, moments: int) -> Callable[[], None]:
        addresses = np.array(
            [[a.data_ptr() if i < 2 + moments else 0 for i, a in enumerate(of)] for of in arrays], dtype=np.int64
        )
        at_once = 0 if phase_3_reads is None else cpu.elements_at_once(phase_3_reads)

        def step() -> None:
            assert arrays, "the arrays live as long as the call"
            count, threads = ctypes.c_int64(len(arrays)), ctypes.c_int64(torch.get_num_threads())
            tables = (ctypes.c_void_p(a.ctypes.data) for a in (addresses, elements))
            function(count, *tables, ctypes.c_int64(at_once), threads, openmp)

        return step

    return {
        "traffic of AdamW": of(None, 2),
        "traffic of LAMB": of(3, 2),
        "traffic of SGD": of(None, 1),
        "traffic of LARS": of(2, 1),
    }
