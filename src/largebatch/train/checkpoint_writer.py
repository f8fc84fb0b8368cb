"""Writes checkpoints in a thread of its own, from copies on the host, while training goes on."""

import shutil
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.errors import InputError
from largebatch.optim.shards import is_sharded
from largebatch.train import checkpoint
from largebatch.train.checkpoint import Progress
from largebatch.train.distributed import World

_PATIENCE_SECONDS = 60.0


class CheckpointWriter:
    """At most one checkpoint is being written; `begin` waits for the one before, and training for the copies alone.

    Each rank writes its own of what is in shards; of what every rank has, the first one writes all. The methods are
    called by all ranks together, `leave` aside.
    """

    def __init__(self, run_folder: Path, keep: int, world: World) -> None:
        """Keep the newest ``keep`` in the folder of a run."""
        self._run_folder, self._keep, self._world = run_folder, keep, world
        self._group: Any = None
        self._thread: threading.Thread | None = None
        self._folder = run_folder
        self._error: BaseException | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, ledger_bytes: int) -> None:
        """Copy all that the next step depends on, and write it from a thread; the model may change at once.

        The copies are as large as the weights and the optimizer's state of this rank, and go when they are written.

        Raises:
            InputError: the one before could not be written, or this one's folder cannot be made.
        """
        self.finish()
        tensors = checkpoint.training_tensors(model, optimizer)
        together = any(is_sharded(tensor) for tensor in tensors.values())
        self._folder = checkpoint.checkpoint_folder(self._run_folder, progress.step)
        self._world.first_rank_does(self._make_folder)
        if not together and not self._world.first:
            return
        if together and self._group is None:
            self._group = dist.new_group(backend="gloo")  # the thread's own: exchanges of training may not mix with it
        copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self._thread = threading.Thread(
            target=self._write, args=(copies, progress, ledger_bytes, together), name="checkpoint", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is written.

        Raises:
            InputError: if it could not be, a full disk for instance; the checkpoints before it are untouched.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None

        def tell() -> None:
            if error is not None:
                shutil.rmtree(checkpoint.aside(self._folder), ignore_errors=True)
                raise self._said(error)

        self._world.first_rank_does(tell)

    def leave(self) -> None:
        """Wait a while for what is being written, after an error perhaps of which other ranks know nothing."""
        if self._thread is not None:
            self._thread.join(_PATIENCE_SECONDS)
            if self._error is not None and self._world.first:
                shutil.rmtree(checkpoint.aside(self._folder), ignore_errors=True)
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._thread = self._group = None

    def _make_folder(self) -> None:
        try:
            shutil.rmtree(checkpoint.aside(self._folder), ignore_errors=True)
            checkpoint.aside(self._folder).mkdir(parents=True)
        except OSError as error:
            raise self._said(error) from error

    def _said(self, error: BaseException) -> InputError:
        return InputError(f"the checkpoint {self._folder} could not be written: {checkpoint.reason(error)}")

    def _write(self, copies: dict[str, Any], progress: Progress, ledger_bytes: int, together: bool) -> None:
        try:
            checkpoint.write(copies, checkpoint.aside(self._folder), self._group, no_dist=not together)
            if self._world.first:  # after the last rank: the save above ends on the first with the others' answers
                checkpoint.seal(self._folder, progress, ledger_bytes)
                checkpoint.prune(self._run_folder, self._keep)
        except BaseException as error:  # of DCP, which derives its own from it
            self._error = error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
