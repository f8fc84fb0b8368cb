"""Classification of images as a task for the training loop."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.errors import InputError, check_at_least
from largebatch.networks import save_network
from largebatch.stage_view import StageView
from largebatch.vision.augmentation import Augmentation
from largebatch.vision.decoded import decoded
from largebatch.vision.images import open_images
from largebatch.vision.samples import CHANNELS, Corrupt, ImageSamples, Sample, View
from largebatch.vision.sources import EncodedImages, Images, ImageSets, PixelImages

NetworkName = Literal["lenet", "resnet9", "resnet50"]

_LEAST_STD = 1e-3
_RESNET9_LEAST = 8  # pixels, which three poolings halve
_MOST_FILTERS = 4096


@dataclass(frozen=True, kw_only=True)
class ImageClassification:
    """A network trained from scratch on labelled images.

    Satisfies ``largebatch.train.task.Task``. Its loss has one term, "class", counted in images; an image that cannot be
    decoded counts in none. The channel means and deviations are ImageNet's where a recipe has no others.
    """

    data: str
    """Images: digits, a folder or tar file of MNIST, CIFAR-10 or class folders, or hf:NAME."""
    network: NetworkName = "resnet50"
    """What is trained."""
    width: int = 64
    """Filters of the first convolution of resnet9; the others have their own numbers."""
    image_size: int = 224
    """Side of the images in pixels; those that are stored decoded have their own."""
    crop: Literal["none", "padded", "resized"] = "resized"
    """What differs from epoch to epoch: nothing, a shift of up to padding pixels, or a part of the image, resized.
    The first two are for small images of one size, which are decoded once and kept in memory."""
    padding: int = 4
    """Pixels by which a padded crop is shifted at most."""
    least_area: float = 0.08
    """The least share of an image that a resized crop shows."""
    flip: bool = True
    """Mirror every other image of training, left to right."""
    cutout: int = 0
    """Side in pixels of a square of each image of training that is covered; 0 is none."""
    middle: float = 0.875
    """The share of the shorter side of a held-out image that is shown."""
    channel_means: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, brightness from 0 to 1."""
    channel_stds: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes; not in the held-out loss."""
    norm_group: int | None = 32
    """Samples that batch norm looks at together; None takes those of a microbatch."""
    synchronised_norm: bool = False
    """Let batch norm look at the microbatches of all ranks together; norm_group None alone."""
    channels_last: bool = True
    """Keep activations pixel by pixel."""
    corrupt: Corrupt = "fail"
    """Whether an image that cannot be decoded ends the run, or is left out with a warning and counted."""

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {"class": 1.0}

    @property
    def microbatch_multiple(self) -> int:
        """What the samples of a microbatch must be a multiple of."""
        return self.norm_group if self.norm_group is not None and self.network != "lenet" else 1

    def check(self, stages: Sequence[StageView]) -> None:
        """Raise InputError for anything in the fields, the images or the stages that cannot work."""
        check_at_least(self, width=1, image_size=1, padding=0, cutout=0, norm_group=1)
        if self.width > _MOST_FILTERS:
            raise InputError(f"width is {self.width}, allowed is {_MOST_FILTERS} or less")
        for name in ("least_area", "middle"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, allowed is more than 0 and at most 1")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}, allowed is 0 or more and less than 1")
        if self.synchronised_norm and self.norm_group is not None:
            raise InputError(f"norm_group is {self.norm_group}, with synchronised_norm it must be None")
        for stage in stages:
            if stage.task_options:
                raise InputError(f"stage {stage.name!r}: task_options are {dict(stage.task_options)}, allowed is none")
        self._check_pixels()
        if self.network == "resnet9" and self._size < _RESNET9_LEAST:
            raise InputError(f"the images have {self._size} pixels, resnet9 allows {_RESNET9_LEAST} or more")
        if self.cutout > self._size:
            raise InputError(f"cutout is {self.cutout}, the images have {self._size} pixels")
        channels = len(self.channel_means)
        if channels != self._channels or len(self.channel_stds) != channels:
            raise InputError(
                f"channel_means and channel_stds have {channels} and {len(self.channel_stds)} numbers, the images of "
                f"{self.data} have {self._channels} channels"
            )
        if not all(0 <= mean <= 1 for mean in self.channel_means):
            raise InputError(f"channel_means are {self.channel_means}, allowed is 0 to 1")
        if not all(_LEAST_STD <= std <= 1 for std in self.channel_stds):
            raise InputError(f"channel_stds are {self.channel_stds}, allowed is {_LEAST_STD} to 1")

    def _check_pixels(self) -> None:
        training = self.images.training
        if isinstance(training, EncodedImages):
            return
        height, width = training.pixels.shape[1:3]
        if self.crop == "resized":
            raise InputError(
                f"crop is resized, but the images of {self.data} are small and decoded: give padded or none"
            )
        if height != width:
            raise InputError(f"the images of {self.data} have {width} x {height} pixels, allowed are square ones")
        if self.padding >= height:
            raise InputError(f"padding is {self.padding}, the images have {height} pixels")

    def fingerprint(self) -> str:
        """Return what identifies the images: of decoded ones their SHA-256, of files that of their names and labels."""
        return f"{self.images.training.fingerprint()} {self.images.held_out.fingerprint()}"

    def build_model(self, seed: int) -> nn.Module:
        """Return a ``Classifier`` with random weights, in float32 on the CPU."""
        from largebatch.vision import models
        from largebatch.vision.batch_norm import grouped_batch_norm_
        from largebatch.vision.classifier import Classifier

        classes = list(self.images.classes)
        if self.network == "lenet":
            network = models.lenet(classes, self._size, self._channels, seed)
        elif self.network == "resnet9":
            network = models.resnet9(classes, self._channels, self.width, seed)
        else:
            network = models.resnet50(classes, self._channels, seed)
        grouped_batch_norm_(network, self.norm_group, synchronised=self.synchronised_norm)
        return Classifier(network, self.channel_means, self.channel_stds, channels_last=self.channels_last).train()

    def dataset(self, stage: StageView, seed: int) -> ImageSamples:
        """Return the images of training, augmented."""
        del stage
        kind = Augmentation(
            crop=self.crop, padding=self.padding, least_area=self.least_area, flip=self.flip, cutout=self.cutout
        )
        augmented = kind.crop != "none" or kind.flip or kind.cutout
        return self._samples(self.images.training, kind if augmented else None, seed)

    def evaluation_dataset(self, stage: StageView, seed: int) -> ImageSamples:
        """Return all held-out images, the middle of each."""
        del stage
        return self._samples(self.images.held_out, None, seed)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Join the images of one microbatch: ``pixels`` uint8 [N, size, size, channels], ``labels``, ``readable``."""
        return {
            "pixels": torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            "labels": torch.tensor([sample.label for sample in samples]),
            "readable": torch.tensor([sample.readable for sample in samples]),
        }

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many images count."""
        return {"class": int(batch["readable"].sum())}

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many images count."""
        return int(batch["readable"].sum())

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Return the operations of a forward and backward pass: three times those of a forward pass."""
        return 3.0 * self._forward_flops * len(batch["labels"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies over images, in nats."""
        return model(**batch, smoothing=self.label_smoothing)

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 sums and counts of one held-out microbatch; ``summarise`` divides them."""
        sums = model(**batch, smoothing=0.0, measure=True)
        readable = batch["readable"]
        sums |= {
            "images": readable.sum(),
            "unreadable": (~readable).sum(),
            "commonest": (readable & (batch["labels"] == self._commonest_class)).sum(),
        }
        return {name: value.to(torch.float64) for name, value in sums.items()}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the held-out loss in nats an image, without smoothing, and the metrics.

        ``top1_accuracy`` is the share of images whose class had the highest logit, ``top5_accuracy`` one of the five
        highest, ``commonest_class_accuracy`` those of the class that is the commonest in training. ``unreadable``,
        where such are left out, is how many were.
        """
        images = sums["images"]
        if not images:
            raise InputError(f"{self.images.held_out.origin}: none of the held-out images can be decoded")
        metrics = {
            "top1_accuracy": sums["top1"] / images,
            "top5_accuracy": sums["top5"] / images,
            "commonest_class_accuracy": sums["commonest"] / images,
        }
        if self.corrupt == "skip":
            metrics["unreadable"] = sums["unreadable"] + getattr(self.images.held_out, "left_out", 0)
        return sums["class"] / images, metrics

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the network so that ``from_pretrained`` loads it, and how images are made ready for it.

        ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load a ResNet-50; the others are classes of ours.
        """
        from largebatch.vision.classifier import Classifier

        save_network(model, Classifier, folder)
        processor = {
            "image_processor_type": "BitImageProcessor",
            "do_resize": self.crop == "resized",
            "size": {"shortest_edge": round(self._size / self.middle)},
            "do_center_crop": self.crop == "resized",
            "crop_size": {"height": self._size, "width": self._size},
            "do_convert_rgb": self._channels == CHANNELS,
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.channel_means,
            "image_std": self.channel_stds,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")

    @cached_property
    def images(self) -> ImageSets:
        """The images, small ones decoded."""
        sets = open_images(self.data)
        if self.crop == "resized":
            return sets
        return ImageSets(self._decoded(sets.training), self._decoded(sets.held_out), sets.classes)

    def _decoded(self, images: Images) -> Images:
        if isinstance(images, PixelImages):
            return images
        return decoded(images, self.image_size, leave_out=self.corrupt == "skip")

    @cached_property
    def _commonest_class(self) -> int:
        return int(np.bincount(self.images.training.labels).argmax())

    @property
    def _size(self) -> int:
        training = self.images.training
        return training.pixels.shape[1] if isinstance(training, PixelImages) else self.image_size

    @property
    def _channels(self) -> int:
        training = self.images.training
        return training.pixels.shape[3] if isinstance(training, PixelImages) else CHANNELS

    @cached_property
    def _forward_flops(self) -> float:
        """Operations of a forward pass over one image, as PyTorch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        model = self.build_model(0).eval()
        sample = self.collate([Sample(np.zeros((self._size, self._size, self._channels), np.uint8), 0, True)])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**sample, smoothing=0.0)
        return float(counter.get_total_flops())

    def _samples(self, images: Any, augmentation: Augmentation | None, seed: int) -> ImageSamples:
        view = View(size=self._size, middle=self.middle, augmentation=augmentation, corrupt=self.corrupt)
        return ImageSamples(images, view, seed)
