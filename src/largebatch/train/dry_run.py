"""What a run would do: steps, tokens, rates, memory and expected time, found without training."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from largebatch.train.loop import Training
from largebatch.train.run import Stage
from largebatch.train.step_data import moved, read

_TIMED_MICROBATCHES = 2


@dataclass(frozen=True)
class StageCost:
    """What one stage takes."""

    microbatch: int
    memory_bytes: int
    tokens: float
    seconds: float


def describe(training: Training) -> Iterator[str]:
    """Yield one line for the run, each stage and the sum. Times are from a few microbatches run here."""
    run, world = training.run, training.world
    parameters = sum(p.numel() for p in training.model.parameters())
    yield (
        f"{training.origin.recipe_name}: {parameters:,} parameters, {len(run.stages)} stages, {run.steps:,} steps, "
        f"{run.precision} on {world.ranks} x {world.device.type}"
    )
    seconds = tokens = samples = 0.0
    for number, stage in enumerate(run.stages):
        cost = _cost(training, number, stage)
        seconds, tokens = seconds + cost.seconds, tokens + cost.tokens
        samples += stage.steps * stage.global_batch_samples
        accumulation = -(-stage.global_batch_samples // (cost.microbatch * world.ranks))
        yield (
            f"stage {stage.name}: {stage.steps:,} steps of {stage.global_batch_samples:,} samples = microbatch "
            f"{cost.microbatch} x accumulation {accumulation} x ranks {world.ranks}; {_highest(stage)}, "
            f"first {stage.lr(0):.3g}, "
            f"last {stage.lr(stage.steps - 1):.3g}; "
            f"about {_tokens(cost.tokens, stage.steps * stage.global_batch_samples)}"
            f"{cost.memory_bytes / 2**20:,.0f} MiB, {_duration(cost.seconds)}"
        )
    yield (
        f"in all {samples:,.0f} samples, about {_tokens(tokens, samples)}{_duration(seconds)}, "
        "evaluations and checkpoints not counted"
    )


def _highest(stage: Stage) -> str:
    """Say the highest rate and when it comes; a later part of a growing batch may be past its schedule's peak."""
    left = stage.schedule.warmup_left
    highest = stage.lr(min(left, stage.steps - 1)) if stage.schedule.offset_steps else stage.peak_lr
    return f"{'highest' if stage.schedule.offset_steps else 'peak'} lr {highest:.6g} after {left:,} warm-up steps"


def _cost(training: Training, number: int, stage: Stage) -> StageCost:
    dataset, order = training.stage_data(number, stage)
    microbatch = training.microbatch(stage, dataset, order)
    batch = moved(training.task.collate(read(dataset, order.first_samples(0, microbatch))), training.world.device)
    times = []
    for _ in range(_TIMED_MICROBATCHES):
        began = time.perf_counter()
        with training.autocast:
            sums = training.task.loss(training.model, batch)
        torch.stack(list(sums.values())).sum().backward()
        if training.world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        training.optimizer.zero_grad(set_to_none=True)
    steps_of_microbatches = stage.steps * stage.global_batch_samples / (microbatch * training.world.ranks)
    return StageCost(
        microbatch=microbatch,
        memory_bytes=training.memory(dataset, order).total(microbatch),
        tokens=training.task.tokens(batch) / microbatch * stage.global_batch_samples * stage.steps,
        seconds=min(times) * steps_of_microbatches,
    )


def _tokens(tokens: float, samples: float) -> str:
    """Return the number of tokens and a comma; nothing where a sample is no more than one, as an image is."""
    return f"{tokens:.3g} tokens, " if tokens > samples else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
