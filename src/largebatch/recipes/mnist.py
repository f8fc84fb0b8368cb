"""LeNet on MNIST and on the embedded digits, with any optimizer, at any batch up to the whole set."""

from dataclasses import replace

from largebatch.errors import InputError
from largebatch.recipes.images import ImageRun, OptimizerName, decaying_stage, image_optimizer, images_of
from largebatch.recipes.optimizers import Adam, Adamw, Lamb
from largebatch.scaling import scale_adam
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
    appendix, batch 60,000, best of each one's grid: momentum .9244, LARS .9727, LAMB .9887. Status: that batch
    run with all six optimizers at eight trials each, all of them below those figures, reports/mnist/README.md.
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
    scale_betas_from: int | None = None,
) -> ImageRun:
    """LeNet on the embedded digits of 8 x 8 pixels: by default the whole set as one batch, 35 steps in two seconds.

    ``--scale-betas-from B0`` carries LAMB's, Adam's or AdamW's betas from that batch: 1 - beta grows as the batch does
    (arXiv 2205.10287). Status: run with all six optimizers, reports/digits/README.md.
    """
    run = _run(_task(data, means=(0.3055,), stds=(0.3754,), size=8), batch, epochs, optimizer, lr, warmup_share)
    return run if scale_betas_from is None else _with_scaled_betas(run, scale_betas_from, batch)


def _with_scaled_betas(run: ImageRun, from_batch: int, batch: int) -> ImageRun:
    chosen = run.optimizer
    if not isinstance(chosen, Lamb | Adam | Adamw):
        raise InputError(f"scale_betas_from is {from_batch}, but {type(chosen).__name__.lower()} has no betas")
    try:
        scaled = scale_adam(1.0, chosen.betas, chosen.eps, from_batch, batch)
    except ValueError as error:
        raise InputError(f"the betas cannot be carried from batch {from_batch} to {batch}: {error}") from error
    return replace(run, optimizer=replace(chosen, betas=scaled.betas, eps=scaled.eps))


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
