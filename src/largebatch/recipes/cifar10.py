"""The residual network of 9 layers on CIFAR-10, with any optimizer, at any batch."""

from largebatch.recipes.images import ImageRun, OptimizerName, decaying_stage, image_optimizer, images_of
from largebatch.scaling import scale_lr
from largebatch.train.run import Run
from largebatch.vision.classification import ImageClassification

_IMAGES = 50_000
_WARMUP_SHARE = 5 / 24
# At batch 512, from where they follow the square-root rule; guesses but for momentum's, which is the source's.
_RATES_AT_512 = {"lamb": 0.01, "lars": 0.02, "momentum": 0.4, "adam": 0.002, "adamw": 0.002, "adagrad": 0.02}


def cifar10(
    data: str = "cifar10",
    batch: int = 512,
    epochs: float = 24.0,
    optimizer: OptimizerName = "lamb",
    lr: float | None = None,
    warmup_share: float = _WARMUP_SHARE,
) -> ImageRun:
    """ResNet-9 on CIFAR-10 for 24 epochs: shifted, mirrored, a hole of 8 pixels, linear warm-up and decay.

    ``--data`` is the folder or archive of the authors' batches, or class folders of images of 32 pixels. Rates follow
    the square-root rule from batch 512, all else stays. Source: David Page's entry to DAWNBench, 2018 (momentum); arXiv
    1904.00962, appendix, at batch 512: AdaGrad .9074, Adam .9225, AdamW .9271, momentum .9372, LAMB .9408 [R]. Status:
    run with four optimizers at an eighth of the width for 4 epochs, reports/cifar10/README.md; not yet run in full.
    """
    task = ImageClassification(
        data=data,
        network="resnet9",
        image_size=32,
        crop="padded",
        cutout=8,
        channel_means=(0.4914, 0.4822, 0.4465),
        channel_stds=(0.2470, 0.2435, 0.2616),
        norm_group=64,
    )
    peak_lr = scale_lr(_RATES_AT_512[optimizer], 512, batch) if lr is None else lr
    stage = decaying_stage(images_of(data, _IMAGES), batch, epochs, peak_lr, warmup_share)
    decay = 0.01 if optimizer in ("lamb", "adamw") else 5e-4
    return Run(
        task=task,
        stages=(stage,),
        optimizer=image_optimizer(optimizer, decay),
        evaluate_every_steps=max(stage.steps // 8, 1),
        checkpoint_every_steps=max(stage.steps // 24, 1),
    )
