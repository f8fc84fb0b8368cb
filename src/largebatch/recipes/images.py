"""What the recipes for images have in common: an optimizer by its name, and the images of an epoch."""

from typing import Literal

from largebatch.batch import steps_for_epochs
from largebatch.errors import InputError
from largebatch.recipes.optimizers import Adagrad, Adam, Adamw, Lamb, Lars, Momentum
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage
from largebatch.vision.classification import ImageClassification
from largebatch.vision.images import open_images

OptimizerName = Literal["lamb", "lars", "momentum", "adam", "adamw", "adagrad"]
ImageOptimizer = Lamb | Lars | Momentum | Adam | Adamw | Adagrad
ImageRun = Run[ImageClassification, ImageOptimizer]

_KINDS = {"lamb": Lamb, "lars": Lars, "momentum": Momentum, "adam": Adam, "adamw": Adamw, "adagrad": Adagrad}


def image_optimizer(name: OptimizerName, weight_decay: float, max_grad_norm: float | None = None) -> ImageOptimizer:
    """Return the choice of an optimizer, all else at its default."""
    return _KINDS[name](weight_decay=weight_decay, max_grad_norm=max_grad_norm)


def decaying_stage(images: int, batch: int, epochs: float, lr: float, warmup_share: float) -> Stage:
    """Return so many epochs at one batch: a share of the steps as warm-up, then linear decay to zero.

    Raises:
        InputError: the share is not below 1.
    """
    if not 0 <= warmup_share < 1:
        raise InputError(f"warmup_share is {warmup_share}, allowed is 0 or more and less than 1")
    steps = steps_for_epochs(epochs, images, batch)
    return Stage(
        name=f"batch-{batch}",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=lr,
        schedule=Schedule(warmup_steps=round(warmup_share * steps)),
    )


def images_of(data: str, otherwise: int) -> int:
    """Return the images of an epoch; where they cannot be read, which the run's check will tell, another number."""
    try:
        return len(open_images(data).training)
    except InputError:
        return otherwise
