"""LeNet on MNIST and on the embedded digits, with any optimizer, at any batch up to the whole set."""

from dataclasses import replace

from largebatch.recipes.images import ImageRun, OptimizerName, decaying_stage, image_optimizer, images_of
from largebatch.train.run import Run
from largebatch.vision.classification import ImageClassification
from largebatch.vision.images import DIGITS

_MNIST_IMAGES = 60_000
_RATES = {"lamb": 0.02, "lars": 0.02, "momentum": 0.1, "adam": 0.003, "adamw": 0.003, "adagrad": 0.03}


def mnist(
    data: str = "mnist",
    batch: int = 1024,
    epochs: float = 35.0,
    optimizer: OptimizerName = "lamb",
    lr: float | None = None,
    warmup_share: float = 0.1,
) -> ImageRun:
    """LeNet on MNIST: ``--batch 60000`` is the whole set as one batch, and its 35 epochs 35 steps, as in the paper.

    ``--data`` is a folder with the four idx files; Fashion-MNIST's do too. Linear decay. Source: arXiv 1904.00962,
    appendix, batch 60,000, best of each one's grid: momentum .9244, LARS .9727, LAMB .9887. Status: not yet run.
    """
    task = _task(data, means=(0.1307,), stds=(0.3081,), size=28)
    run = _run(task, batch, epochs, optimizer, lr, warmup_share)
    return replace(run, checkpoint_every_steps=max(run.steps // 10, 1))


def digits(
    data: str = DIGITS,
    batch: int = 1438,
    epochs: float = 35.0,
    optimizer: OptimizerName = "lamb",
    lr: float | None = None,
    warmup_share: float = 0.1,
) -> ImageRun:
    """LeNet on the embedded digits of 8 x 8 pixels: by default the whole set as one batch, 35 steps in two seconds.

    Status: run with all six optimizers, reports/digits/README.md.
    """
    return _run(_task(data, means=(0.3055,), stds=(0.3754,), size=8), batch, epochs, optimizer, lr, warmup_share)


def _task(data: str, means: tuple[float, ...], stds: tuple[float, ...], size: int) -> ImageClassification:
    return ImageClassification(
        data=data,
        network="lenet",
        image_size=size,
        crop="none",
        flip=False,
        channel_means=means,
        channel_stds=stds,
        norm_group=None,
    )


def _run(
    task: ImageClassification,
    batch: int,
    epochs: float,
    optimizer: OptimizerName,
    lr: float | None,
    warmup_share: float,
) -> ImageRun:
    peak_lr = _RATES[optimizer] if lr is None else lr
    stage = decaying_stage(images_of(task.data, _MNIST_IMAGES), batch, epochs, peak_lr, warmup_share)
    decay = 0.01 if optimizer in ("lamb", "adamw") else 1e-4
    return Run(
        task=task,
        stages=(stage,),
        optimizer=image_optimizer(optimizer, decay),
        evaluate_every_steps=0,
    )
