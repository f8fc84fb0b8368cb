"""Sums over gradients that live in several processes: the global norm, and whether anything was not finite.

Of parameters that are whole on every process each process has the same sums, and nothing has to be exchanged. Of
those in a group with a `norm_process_group` each process has some, and the sums are completed over it: one
all-reduce of two numbers for each process group and step, for which all of its processes have to come.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SumsByProcessGroup = Mapping[Any, list[Tensor]]
"""Float64 tensors of sums of squares, on any device, by the process group that completes them, None for none."""


def complete(sums: SumsByProcessGroup, found_inf: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the sum of all squares, float64 0-dim, and `found_inf` as all processes see it.

    Args:
        sums: the sums that this process has; a process group with an empty list takes part all the same.
        found_inf: 0-dim, zero if all gradients of this process are finite; None if that is not asked.
        device: of the result.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for process_group, some in sums.items():
        own = torch.stack([on(device, a.sum()) for a in some]).sum() if some else torch.zeros_like(total)
        if process_group is not None:
            found = torch.zeros_like(total) if found_inf is None else on(device, found_inf).to(total.dtype)
            both = torch.stack([own, found])
            dist.all_reduce(both, group=process_group)
            own = both[0]
            found_inf = None if found_inf is None else both[1]
        total = total + own
    return total, found_inf


def on(device: torch.device, a: Tensor) -> Tensor:
    """Return a tensor on a device, without waiting, except for what the CPU is to read."""
    return a.to(device, non_blocking=device.type != "cpu")
