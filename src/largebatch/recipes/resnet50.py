"""ResNet-50 on ImageNet: the paper's recipe for LAMB, LARS of 2017, and Goyal's recipe for the others."""

import os

from largebatch.batch import steps_for_epochs
from largebatch.errors import InputError
from largebatch.plans import published_lr
from largebatch.recipes.images import ImageOptimizer, ImageRun, OptimizerName, image_optimizer, images_of
from largebatch.recipes.optimizers import Lars, Momentum
from largebatch.scaling import IMAGENET_TRAIN_IMAGES, RESNET50_EPOCHS, RESNET50_ROWS, RESNET50_WARMUP_STEPS, scale_lr
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage
from largebatch.vision.classification import ImageClassification

# Goyal et al., arXiv 1706.02677: 0.1 at batch 256, linear in the batch; a tenth of it from epochs 30, 60 and 80 on. The
# rates of Adam, AdamW and AdaGrad at batch 256 are guesses.
_GOYAL_RATES_AT_256 = {"momentum": 0.1, "adam": 1e-3, "adamw": 1e-3, "adagrad": 0.01}
_GOYAL_WARMUP_EPOCHS, _GOYAL_MILESTONES = 5, (30, 60, 80)
_LARS_RATE_AT_32K = 29.0
"""Remembered of MLPerf's runs, for the rule of 2017 with its coefficient of 0.001."""


def resnet50(
    data: str = "imagenet",
    batch: int = 32_768,
    epochs: float = float(RESNET50_EPOCHS),
    optimizer: OptimizerName = "lamb",
    lr: float | None = None,
    warmup_steps: int | None = None,
    image_size: int = 224,
) -> ImageRun:
    """ResNet-50 v1.5 for 90 epochs at any batch, with the schedule that belongs to the optimizer.

    LAMB: arXiv 1904.00962, 0.04 at batch 32,768 and by the square root below, 782 warm-up steps at every batch, linear
    decay, weight decay 1.5, clipped at 1, smoothing 0.1; top-1 77.11 at 2K, 76.92 at 4K, 76.89 at 8K, 76.66 at 16K,
    76.42 at 32K. LARS: the rule of 2017, 782 warm-up steps, decay of power 2, rate 29 at 32,768 [R]. Momentum, Adam,
    AdamW and AdaGrad: Goyal et al., five epochs of warm-up, a tenth from epochs 30, 60 and 80 on; at 16K momentum
    .7520, AdamW .7307, Adam .7348, AdaGrad .7201 [R]. ``--data`` is a folder of class folders or tar files, or
    hf:ILSVRC/imagenet-1k. Status: not yet run at that size;
    20 steps on Imagenette for resume and order, docs/images.md.
    """
    task = ImageClassification(data=data, image_size=image_size, label_smoothing=0.1)
    images = images_of(data, IMAGENET_TRAIN_IMAGES)
    steps, epoch_steps = steps_for_epochs(epochs, images, batch), steps_for_epochs(1, images, batch)
    if optimizer in ("lamb", "lars"):
        warmup = RESNET50_WARMUP_STEPS if warmup_steps is None else warmup_steps
        schedule = Schedule(warmup_steps=warmup, power=1.0 if optimizer == "lamb" else 2.0)
        rate = (
            published_lr(RESNET50_ROWS, batch).value
            if optimizer == "lamb"
            else scale_lr(_LARS_RATE_AT_32K, 32_768, batch)
        )
    else:
        of_epoch = [steps_for_epochs(epochs * epoch / RESNET50_EPOCHS, images, batch) for epoch in _GOYAL_MILESTONES]
        by_epochs = steps_for_epochs(_GOYAL_WARMUP_EPOCHS, images, batch)
        warmup = by_epochs if warmup_steps is None else warmup_steps
        schedule = Schedule(warmup_steps=warmup, shape="step", milestone_steps=tuple(of_epoch))
        rate = _GOYAL_RATES_AT_256[optimizer] * batch / 256
    if warmup >= steps:
        raise InputError(
            f"{epochs:g} epochs at batch {batch:,} are {steps:,} steps, of which {warmup:,} are warm-up: give "
            "fewer --warmup-steps, more --epochs or a smaller batch"
        )
    stage = Stage(
        name=f"batch-{batch}",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=rate if lr is None else lr,
        schedule=schedule,
    )
    return Run(
        task=task,
        stages=(stage,),
        optimizer=_optimizer(optimizer),
        workers=os.cpu_count() or 1,
        evaluate_every_steps=epoch_steps,
        checkpoint_every_steps=max(epoch_steps // 4, 1),
    )


def _optimizer(name: OptimizerName) -> ImageOptimizer:
    if name == "lamb":
        return image_optimizer("lamb", 1.5, max_grad_norm=1.0)
    if name == "lars":
        return Lars(rule="2017", weight_decay=1e-4)
    if name == "momentum":
        return Momentum(weight_decay=1e-4, nesterov=True)
    return image_optimizer(name, 0.1 if name == "adamw" else 1e-4)
