"""One process or many: the ranks that share a run, and the few numbers that they exchange.

torchrun starts the processes; `parallel.py` says how they share a model.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.errors import InputError
from largebatch.train.meeting import meet

SIGN = ".seen-"
"""How the files begin by which ranks find out whether they see the same folder; a killed run may leave one."""


class SaidByFirstRank(InputError):
    """The first rank refused something and prints the reason; the others only leave, with the same exit code."""

    said = True


@dataclass(frozen=True)
class World:
    """This process's rank among all of them, and its device."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sums over all ranks, in float64; exact for counts below 2^53."""
        if self.ranks == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Return the element-wise sum of a tensor over all ranks, on its device; the tensor itself may be changed."""
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Give the first rank's buffers to all."""
        if self.ranks > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, told: str | None) -> list[str | None]:
        """Return what each rank told."""
        if self.ranks == 1:
            return [told]
        found: list[str | None] = [None] * self.ranks
        dist.all_gather_object(found, told)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            dist.barrier()

    def check_shared(self, folder: Path) -> None:
        """Raise InputError on all ranks if one of them, on another node perhaps, does not see the first one's folder.

        The folder is made, and for the time of the check there is a file in it.
        """
        if self.ranks == 1:
            return
        key = torch.randint(1 << 62, (1,), device=self.device)
        dist.broadcast(key, 0)
        sign = folder / f"{SIGN}{int(key)}"

        def show() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sign.touch()
            except OSError as error:
                raise InputError(f"{folder} cannot be written: {error.strerror}") from error

        self.first_rank_does(show)
        blind = self.sum([0.0 if sign.exists() else 1.0])[0]
        if self.first:
            sign.unlink()
            if blind and not any(folder.iterdir()):
                folder.rmdir()
        if blind and not self.first:
            raise SaidByFirstRank("the first rank says that this one does not see its folder, or another")
        if blind:
            raise InputError(
                f"{blind:.0f} of {self.ranks} ranks do not see {folder.absolute()} as the first rank does; the folder "
                "of a run has to be shared between nodes"
            )

    def first_rank_does(self, action: Callable[[], None]) -> None:
        """Run an action on the first rank; all ranks go on together, or all raise if it failed."""
        failure: Exception | None = None
        if self.first:
            try:
                action()
            except Exception as error:
                failure = error
        if self.sum([0.0 if failure is None else 1.0])[0] > 0:
            raise failure or SaidByFirstRank("the first rank stopped this run and says why")


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the ranks that torchrun started, or be alone, and leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda"; auto takes a GPU where there is one.

    Raises:
        InputError: if "cuda" was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no GPU here: allowed is auto or cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(where)
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield World(0, 1, where)
        return
    store, rank, ranks = meet()
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=ranks)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), where)
    finally:
        leave_world()


def leave_world() -> None:
    """Destroy the process group, threads and all.

    Caches of DTensor keep meshes for good, and these their groups: with threads of a group still running, one process
    in twenty ended by SIGABRT when the interpreter did (torch 2.13, gloo). So meshes let go of their groups here;
    models in shards must have been let go of before.
    """
    if "torch.distributed.device_mesh" in sys.modules:
        from torch.distributed.device_mesh import DeviceMesh

        gc.collect()
        for mesh in [found for found in gc.get_objects() if type(found) is DeviceMesh]:
            getattr(mesh, "_pg_registry", {}).clear()
    dist.destroy_process_group()
