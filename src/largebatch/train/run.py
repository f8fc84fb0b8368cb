"""A run, whole: frozen dataclasses that say what is trained, in which stages, with which optimizer and seed.

A recipe is a function that returns a ``Run``. The command line can override every scalar of it; the list of stages
changes in recipes only.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

import torch
import tyro
from torch import nn

from largebatch.errors import InputError, check_at_least
from largebatch.schedules import Schedule

TaskT = TypeVar("TaskT")
OptimizerT = TypeVar("OptimizerT")

Sharding = Literal["ddp", "fsdp", "hsdp"]
Compression = Literal["none", "bf16"]

CHANGEABLE_AT_RESUME = ("microbatch", "workers", "device", "sharding", "shard_ranks", "recompute")
CHANGEABLE_AT_RESUME += ("gradient_noise", "gradient_noise_every_steps", "task.corrupt")
"""Fields of a run that do not change what is computed, only where, in which portions, and what ends the run."""

_BEFORE_IT_WAS_RECORDED = {"continues_data": False}
"""Fields that came later -> what they are in a record without them."""

MOST_SAMPLES, MOST_STEPS = 2**27, 2**40
"""Of a step and of a stage."""


class OptimizerChoice(Protocol):
    """A frozen dataclass of an optimizer's options that can build it for a model."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the model's parameters, in groups that carry names.

        Beyond what ``torch.optim.Optimizer`` has, the loop asks it for ``init_state()``, ``grad_norm()`` and
        ``trust_ratios()``, as all optimizers of ours have them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one global batch, one schedule and one set of task options.

    Attributes:
        name: what the log calls it.
        global_batch_samples: samples in each optimizer step, over all ranks.
        steps: optimizer steps.
        peak_lr: the learning rate that the schedule's factor multiplies.
        schedule: step in the stage -> factor.
        betas: (beta1, beta2) in this stage; None leaves the optimizer's own.
        task_options: what the task needs to know of the stage, such as the sequence length.
        reset_moments: True forgets the optimizer's state when the stage begins; False carries it over.
        continues_data: True goes on in the order of data where the stage before ended; False begins one of its own.
    """

    name: str
    global_batch_samples: int
    steps: int
    peak_lr: float
    schedule: Schedule
    betas: tuple[float, float] | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    reset_moments: bool = False
    continues_data: bool = False

    def __post_init__(self) -> None:
        for name, most in (("global_batch_samples", MOST_SAMPLES), ("steps", MOST_STEPS)):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise InputError(f"stage {self.name!r}: {name} is {value}, allowed is 1 to {most}")
        if not 0 <= self.peak_lr < float("inf"):
            raise InputError(f"stage {self.name!r}: peak_lr is {self.peak_lr}, allowed is a finite number from 0 up")

    def lr(self, step: int) -> float:
        """Return the learning rate of a step of this stage, counted from 0."""
        return self.peak_lr * self.schedule.factor(step, self.steps)


@dataclass(frozen=True, kw_only=True)
class Run(Generic[TaskT, OptimizerT]):
    """Everything that decides what a training run computes."""

    task: TaskT
    stages: Annotated[tuple[Stage, ...], tyro.conf.Suppress]
    optimizer: OptimizerT
    seed: int = 0
    """Seed of the initial weights, the order of data, masks and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; bf16 is autocast, the weights and moments stay float32; auto takes
    bf16 where the device has instructions for it, and the run's record says which it was."""
    microbatch: int | Literal["auto"] = "auto"
    """Samples in one forward and backward pass; auto takes what the memory budget of the device holds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    workers: int = 0
    """Processes that prepare batches ahead of time; 0 prepares them in the training process."""
    sharding: Sharding = "ddp"
    """How ranks share the model: each has all of it, a part, or each group of shard_ranks ranks has all in parts."""
    shard_ranks: int = 0
    """Ranks that have one copy of the model together, with hsdp; 0 is those of a node."""
    gradient_compression: Compression = "none"
    """What gradients are rounded to for their exchange between ranks."""
    recompute: bool = False
    """Keep only the inputs of the model's blocks between forward and backward passes, and run the blocks again."""
    compile: bool = False
    """Run the model through torch.compile."""
    deterministic: bool = False
    """Use deterministic algorithms only; on a GPU, resuming to the bit needs it."""
    evaluate_every_steps: int = 0
    """Optimizer steps between evaluations; 0 evaluates at the end of each stage only."""
    checkpoint_every_steps: int = 500
    """Optimizer steps between checkpoints; one is also written at the end of each stage."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    layers_every_steps: int = 10
    """Optimizer steps between records of every layer's trust ratio and gradient noise."""
    gradient_noise: Literal["auto", "on", "off"] = "auto"
    """Measure the gradient's noise from the microbatches of a step; auto does where a step has several."""
    gradient_noise_every_steps: int = 10
    """Optimizer steps between measurements of the gradient's noise; those of layers_every_steps are measured too."""
    stop_after_skipped_steps: int = 5
    """Stop after this many steps in a row whose loss or gradient was not finite."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("a run needs at least one stage, none was given")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise InputError(f"the stages are named {names}, allowed are names that differ")
        for before, stage in zip((None, *self.stages), self.stages, strict=False):
            if stage.continues_data and (before is None or before.task_options != stage.task_options):
                raise InputError(
                    f"stage {stage.name!r} goes on in the data of the one before: one with its task_options is needed"
                )
        if self.microbatch != "auto" and self.microbatch < 1:
            raise InputError(f"microbatch is {self.microbatch}, allowed is auto, or 1 sample or more")
        if self.seed >= 1 << 63:
            raise InputError(f"seed is {self.seed}, allowed is a number below 2^63")
        check_at_least(
            self,
            seed=0,
            workers=0,
            shard_ranks=0,
            evaluate_every_steps=0,
            checkpoint_every_steps=1,
            keep_checkpoints=1,
            layers_every_steps=1,
            gradient_noise_every_steps=1,
            stop_after_skipped_steps=1,
        )

        every = min(self.gradient_noise_every_steps, self.layers_every_steps)
        if self.gradient_noise == "on" and self.steps < every:
            raise InputError(
                f"gradient_noise is on and measured in every step that {every} divides, but the run has {self.steps} "
                f"steps: give a gradient_noise_every_steps of {self.steps} or less"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps over all stages."""
        return sum(stage.steps for stage in self.stages)

    def data_begins(self, number: int) -> tuple[int, int]:
        """Return the stage with which the order of data of stage `number` began, and the samples in it before."""
        first = number
        while self.stages[first].continues_data:
            first -= 1
        return first, sum(stage.steps * stage.global_batch_samples for stage in self.stages[first:number])

    def as_dict(self) -> dict[str, Any]:
        """Return the run as plain data, the form that run.json holds."""
        assert dataclasses.is_dataclass(self)
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    """Return what a round trip through JSON would make of the value, so that a run compares equal to its record."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def changed_fields(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name the fields, dotted, in which two runs differ and which may not change at a resume."""
    found: list[str] = []

    def compare(path: str, old: Any, new: Any) -> None:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in sorted(set(old) | set(new)):
                was = old.get(name, _BEFORE_IT_WAS_RECORDED.get(name))
                compare(f"{path}.{name}" if path else name, was, new.get(name))
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for number, (left, right) in enumerate(zip(old, new, strict=True)):
                compare(f"{path}.{number}", left, right)
        elif old != new and path not in CHANGEABLE_AT_RESUME:
            found.append(f"{path} (recorded {old!r}, given {new!r})")

    compare("", recorded, wanted)
    return found
