"""Sums over gradients that live in several processes: the global norm, and whether anything was not finite.

Of parameters that are whole on every process each process has the same sums, and nothing has to be exchanged. An
optimizer with a `norm_process_group` has some of the parameters, whole, and the processes of the group have the
others (ZeroRedundancyOptimizer): its sums are completed by one all-reduce of two numbers, for which all have to come.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SharedSums:
    """Completes sums over the processes that share the parameters of an optimizer.

    It stands outside the parameter groups, because these are saved, copied and sent, and a process group cannot be.

    Args:
        process_group: None if this process has all parameters.

    Raises:
        ValueError: no process group, or none that this process belongs to.
    """

    def __init__(self, process_group: Any = None) -> None:
        if process_group is not None and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
            raise ValueError(
                f"norm_process_group is {process_group!r}; it must be None or a torch.distributed process group of "
                "this process"
            )
        self.process_group: Any = process_group

    def complete(
        self, sums: Sequence[Tensor], found_inf: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sum of all sums, float64 0-dim, and `found_inf` as all processes see it.

        Args:
            sums: float64 tensors on any device; a process without any takes part all the same.
            found_inf: 0-dim, zero if all gradients of this process are finite; None if that is not asked.
            device: of the result.
        """
        total = torch.zeros((), dtype=torch.float64, device=device)
        if sums:
            total = torch.stack([on(device, a.sum()) for a in sums]).sum()
        if self.process_group is None:
            return total, found_inf
        found = torch.zeros_like(total) if found_inf is None else on(device, found_inf).to(total.dtype)
        both = torch.stack([total, found])
        dist.all_reduce(both, group=self.process_group)
        return both[0], None if found_inf is None else both[1].to(found_inf.dtype)

    def device(self) -> torch.device:
        """Return where the sums of a process without parameters are made: where the others' can meet them."""
        if self.process_group is None or dist.get_backend(self.process_group) == "gloo":
            return torch.device("cpu")
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

    def take_from(self, group: dict[str, Any]) -> None:
        """Let a parameter group name no process group, so that it can be saved; it may name the optimizer's.

        ZeroRedundancyOptimizer puts all options of its optimizer into its groups, and then takes ours over.
        """
        given = group.get("norm_process_group")
        if given is not None and given is not self.process_group:
            raise ValueError(
                f"a parameter group has the norm_process_group {given!r}; it must be given to the optimizer, for all "
                "of its groups"
            )
        if "norm_process_group" in group:
            group["norm_process_group"] = None

    def __deepcopy__(self, memo: Any) -> "SharedSums":
        return self  # a copy of an optimizer goes on among the same processes

    def __reduce__(self) -> tuple[Any, ...]:
        if self.process_group is not None:
            raise TypeError("an optimizer with a norm_process_group belongs to its process; save its state_dict()")
        return SharedSums, ()


def on(device: torch.device, a: Tensor) -> Tensor:
    """Return a tensor on a device, without waiting, except for what the CPU is to read."""
    return a.to(device, non_blocking=device.type != "cpu")
