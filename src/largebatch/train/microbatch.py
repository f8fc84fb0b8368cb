"""How many samples fit into one forward and backward pass: measured in bytes, not in seconds, so that it repeats.

Between forward and backward, autograd keeps tensors; their bytes grow in proportion to the microbatch. Two forward
passes, over one and over two samples, give the bytes of a sample. The largest power of two that fits the device's
budget is taken; a time measurement would choose differently from run to run, and with it the order of sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.errors import InputError
from largebatch.optim.shards import local
from largebatch.train.step_statistics import buffers_kept
from largebatch.train.task import Batch, Task

# On a CPU more samples than fill its caches gain nothing, and few leave the matrix products short. Sequences per second
# in bf16 on two cores (AMD EPYC, 32 MiB of last-level cache), microbatch: rate, with the bytes of a sample in brackets:
#     2 x 128, length 64  (1.0 MiB)   32: 652   64: 739   128: 702
#     2 x 128, length 128 (2.1 MiB)   32: 364   64: 403   128: 325
#     BERT-base, length 128 (64 MiB)   1: 2.7    2: 3.5     4: 3.7    8: 4.0   16: 3.7
CPU_ACTIVATION_BYTES = 160 * 2**20
CPU_LEAST_SAMPLES = 8
CPU_MOST_BYTES = 2 * 2**30
# A GPU wants to be full, less what gradients, temporaries and the allocator take; not measured.
GPU_FRACTION = 0.4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training needs besides the data."""

    parameters: int
    parameter_bytes: int
    sample_bytes: int
    """Kept between forward and backward for each sample of a microbatch."""

    def total(self, microbatch: int, state_words: int = 2) -> int:
        """Return bytes of parameters, gradients, float32 optimizer state and one microbatch's activations."""
        return self.parameter_bytes * (2 + state_words) + self.sample_bytes * microbatch


def measure(task: Task, model: nn.Module, one: Batch, two: Batch, autocast: torch.autocast) -> Memory:
    """Measure with one forward pass over a batch of one sample and one over a batch of two."""
    parameters = [local(p) for p in model.parameters()]
    with buffers_kept(model):
        difference = _saved_bytes(task, model, two, autocast) - _saved_bytes(task, model, one, autocast)
    return Memory(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        sample_bytes=max(difference, 1),
    )


def largest_microbatch(memory: Memory, budget_bytes: int, limit: int, multiple: int = 1) -> int:
    """Return the largest power of two of samples within the budget, at least 1 and at most ``limit``.

    With a ``multiple`` it is the largest of its multiples up to that power, at least one of it, and the limit is the
    next multiple from ``limit`` up.
    """
    fits = max(1, budget_bytes // memory.sample_bytes)
    power = 2 ** (int(fits).bit_length() - 1)
    return min(max(power // multiple, 1) * multiple, -(-limit // multiple) * multiple)


def check_multiple(microbatch: int, multiple: int, global_batch_samples: int) -> None:
    """Raise InputError if a microbatch that is not all of the batch would tear what a model looks at together."""
    if microbatch % multiple and microbatch < global_batch_samples:
        raise InputError(
            f"microbatch is {microbatch}, but the model looks at {multiple} samples at a time: give a multiple of that"
        )


def activation_budget(memory: Memory, device: torch.device) -> int:
    """Return the bytes that activations may take on a device; the same on every machine of a kind."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * GPU_FRACTION)
    return min(max(CPU_ACTIVATION_BYTES, CPU_LEAST_SAMPLES * memory.sample_bytes), CPU_MOST_BYTES)


def _saved_bytes(task: Task, model: nn.Module, batch: Batch, autocast: torch.autocast) -> int:
    own = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), autocast:
        sums = task.loss(model, batch)
        del sums
    return sum(saved.values())
