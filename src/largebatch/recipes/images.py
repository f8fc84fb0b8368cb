"""What the recipes for images have in common: an optimizer by its name, and the images of an epoch."""

from typing import Literal

from largebatch.errors import InputError
from largebatch.recipes.optimizers import Adagrad, Adam, Adamw, Lamb, Lars, Momentum
from largebatch.train.run import Run
from largebatch.vision.classification import ImageClassification
from largebatch.vision.images import open_images

OptimizerName = Literal["lamb", "lars", "momentum", "adam", "adamw", "adagrad"]
ImageOptimizer = Lamb | Lars | Momentum | Adam | Adamw | Adagrad
ImageRun = Run[ImageClassification, ImageOptimizer]

_KINDS = {"lamb": Lamb, "lars": Lars, "momentum": Momentum, "adam": Adam, "adamw": Adamw, "adagrad": Adagrad}


def image_optimizer(name: OptimizerName, weight_decay: float, max_grad_norm: float | None = None) -> ImageOptimizer:
    """Return the choice of an optimizer, all else at its default."""
    return _KINDS[name](weight_decay=weight_decay, max_grad_norm=max_grad_norm)


def images_of(data: str, otherwise: int) -> int:
    """Return the images of an epoch; where they cannot be read, which the run's check will tell, another number."""
    try:
        return len(open_images(data).training)
    except InputError:
        return otherwise
