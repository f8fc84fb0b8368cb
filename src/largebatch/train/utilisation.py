"""How much of a device a model uses: its operations a second, as a share of those of a plain product of matrices."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from largebatch.train.distributed import World
from largebatch.train.task import Batch, Task

_SIZE = {"cpu": 1536, "cuda": 8192}
_TURNS = 4


def matrix_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a product of square matrices, the best of a few turns.

    2 n^3 operations, n = 1,536 on a CPU and 8,192 on a GPU. It takes a few tenths of a second.

    Args:
        device: where.
        dtype: of the matrices.
    """
    size = _SIZE.get(device.type, 1536)
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(_TURNS):
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Utilisation:
    """The operations of a task's steps, where it tells them, and the rate that they are compared with."""

    def __init__(self, task: Task) -> None:
        """Ask the task whether it tells them."""
        self._of_batch: Callable[[Batch], float] | None = getattr(task, "flops", None)
        self._ceiling = 0.0

    def measure(self, world: World, dtype: torch.dtype) -> dict[str, Any]:
        """Measure the rate of all ranks together; return what a session's record says of it."""
        if self._of_batch is None:
            return {}
        self._ceiling = world.sum([matrix_flops_per_second(world.device, dtype)])[0]
        return {"matrix_flops_per_second": self._ceiling}

    def flops(self, batches: Iterable[Batch]) -> float:
        """Return the operations of one rank's microbatches; 0 where the task does not tell."""
        return 0.0 if self._of_batch is None else float(sum(map(self._of_batch, batches)))

    def fields(self, flops: float, seconds: float) -> dict[str, float]:
        """Return what a step's line says: operations a second, and their share of the rate that was measured."""
        if not flops or not self._ceiling:
            return {}
        return {"flops_per_second": flops / seconds, "utilisation": flops / seconds / self._ceiling}
