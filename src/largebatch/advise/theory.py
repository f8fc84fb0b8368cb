"""What the bounds say of a run at one place: its constants, measured, and which rule they favour."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from largebatch.advise.bounds import (
    lamb_sign_bound,
    lars_bound,
    lars_over_sgd,
    layerwise_lr,
    sgd_bound,
    sgd_lr,
)
from largebatch.advise.smoothness import Layers, Loss, measure
from largebatch.report.wording import significant
from largebatch.train.checkpoint import load_tensors
from largebatch.train.data_order import DataOrder
from largebatch.train.run import Run, Stage
from largebatch.train.step_data import read
from largebatch.train.task import Batch, Task

PARTS = 8
"""A batch is cut into so many parts, between which the noise is told."""


def measure_at(run: Run[Any, Any], stage: Stage, checkpoint: Path, samples: int, most_products: int = 30) -> Layers:
    """Measure curvature and noise on some training samples at a checkpoint, in float32 on the CPU, without dropout.

    Args:
        run: whose checkpoint it is.
        stage: whose data is read.
        checkpoint: its folder.
        samples: so many, a multiple of PARTS.
        most_products: with the Hessian, for each layer.

    Raises:
        InputError: the checkpoint is damaged or of another model.
        ValueError: fewer samples than parts.
    """
    if samples < PARTS or samples % PARTS:
        raise ValueError(f"samples is {samples}, allowed is a multiple of {PARTS}")
    task: Task = run.task
    model = task.build_model(run.seed)
    optimizer: Any = run.optimizer.build(model)
    optimizer.init_state()
    load_tensors(checkpoint, model, optimizer)
    losses = losses_of(task, model, first_parts(run, stage, samples))
    return measure(model.eval(), losses, [samples // PARTS] * PARTS, most_products=most_products)


def first_parts(run: Run[Any, Any], stage: Stage, samples: int) -> list[Batch]:
    """Return the first training samples of a stage, collated in PARTS parts of one size."""
    dataset, size = run.task.dataset(stage, run.seed), samples // PARTS
    order = DataOrder(seed=run.seed, stage=0, dataset_samples=len(dataset), global_batch_samples=samples)
    places = order.first_samples(0, samples)
    return [run.task.collate(read(dataset, places[first : first + size])) for first in range(0, samples, size)]


def losses_of(task: Task, model: nn.Module, batches: Sequence[Batch]) -> list[Loss]:
    """Return, for each part of a batch, what runs a model over it and gives its share of the batch's mean loss."""
    counts = [task.counts(batch) for batch in batches]
    totals = {term: sum(count[term] for count in counts) for term in task.weights}

    def loss(batch: Batch) -> torch.Tensor:
        sums = task.loss(model, batch)
        return torch.stack(
            [weight * sums[term] / totals[term] for term, weight in task.weights.items() if totals[term]]
        ).sum()

    return [lambda batch=batch: loss(batch) for batch in batches]


def theory_lines(layers: Layers, steps: int, batch: int) -> list[str]:
    """Return what the bounds say of so many steps at a batch from there on, a sentence a line.

    Raises:
        ValueError: there are no bounds, for nothing curves upwards there.
    """
    of, lie, number = layers.constants(), layers.densities(), len(layers.names)
    ratio = lars_over_sgd(of, layers.gradient_norms, steps, batch)
    alone = lars_over_sgd(layers.constants(optimistic=True), layers.gradient_norms, steps, batch)
    rate, of_sgd = layerwise_lr(of, steps), sgd_lr(of)
    which = "LARS should beat SGD" if ratio < 1 else "SGD should beat LARS"
    agrees = (
        "" if (ratio < 1) == (alone < 1) else "; by curvatures of single layers, which are optimistic, the other way"
    )
    top = layers.names[max(range(number), key=lambda i: layers.block_curvatures[i])]
    bounds = [_told(f) for f in (sgd_bound(of, steps, batch, of_sgd), lars_bound(of, steps, batch, rate))]
    span = f"{_told(min(of.curvatures))} to {_told(max(of.curvatures))} ({top})"
    return [
        f"Here the loss is {_told(layers.loss)}; L is {span}, {_told(of.total_curvature)} in all; together layers are "
        f"{_told(layers.coupling)} times as curved as alone.",
        f"Over {number} layers the gradient is spread by {lie.gradient:.0%}, curvature by {lie.curvature:.0%}, noise "
        f"by {lie.deviation:.0%}; all alike would be 100%, one alone {1 / number:.1%}.",
        f"In {steps:,} steps of {batch:,} from here SGD at rate {_told(of_sgd)} has a mean square of the gradient of "
        f"at most {bounds[0]}; LARS a mean sum of the layers' norms of {bounds[1]}, and LAMB (β₂ = 0) one of ‖·‖₁ / √d "
        f"of {_told(lamb_sign_bound(of, steps, batch, rate))}, both at {_told(rate)} times φ.",
        f"By these bounds {which}: as a squared gradient LARS' is {_told(ratio)} times SGD's{agrees}. LAMB's bound "
        "is of another norm and stands in no such comparison. All are of this place, and of rates that stay.",
    ]


def _told(value: float) -> str:
    return significant(value, 3)
