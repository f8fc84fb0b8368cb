"""Images as samples: cropped, mirrored, of one size, the same for (seed, epoch, sample) wherever they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from largebatch.vision import augmentation
from largebatch.vision.augmentation import Augmentation
from largebatch.vision.decoding import Unreadable, leave_out, opened, resized
from largebatch.vision.sources import EncodedImages, Images, PixelImages, Pixels

CHANNELS = 3  # of what is decoded
Corrupt = Literal["fail", "skip"]


class Sample(NamedTuple):
    """One image."""

    pixels: Pixels
    """[size, size, channels]."""
    label: int
    readable: bool
    """False for an image that could not be decoded, whose pixels are zeros."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How images are shown."""

    size: int
    """Side in pixels."""
    middle: float = 0.875
    """Without augmentation, the share of the shorter side that is shown of images that are decoded."""
    augmentation: Augmentation | None = None
    """None shows the middle of each image."""
    corrupt: Corrupt = "fail"
    """Whether an image that cannot be decoded ends the run, or is left out, with a warning."""


class ImageSamples:
    """A map from (epoch, index) to a sample."""

    def __init__(self, images: Images, view: View, seed: int) -> None:
        self._images, self._view, self._seed = images, view, seed
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, sample: tuple[int, int]) -> Sample:
        """Return an image as (epoch, index) shows it."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> list[Sample]:
        """Return many.

        Raises:
            InputError: one cannot be decoded, and those are to fail.
        """
        epochs, indices = np.array(samples, np.int64).reshape(-1, 2).T
        keys = augmentation.keys(self._seed, epochs, indices)
        if isinstance(self._images, PixelImages):
            pixels, readable = _gathered(self._images, self._view, indices, keys), np.ones(len(indices), bool)
        else:
            pixels, readable = self._decoded(self._images, indices, keys)
        cutout = self._view.augmentation.cutout if self._view.augmentation else 0
        if cutout:
            for row, (y, x) in enumerate(augmentation.holes(keys, self._view.size, cutout)):
                pixels[row, y : y + cutout, x : x + cutout] = pixels[row].mean(axis=(0, 1)).astype(np.uint8)
        labels = self._images.labels[indices].tolist()
        return [Sample(*sample) for sample in zip(pixels, labels, readable.tolist(), strict=True)]

    def _decoded(
        self, images: EncodedImages, indices: augmentation.Integers, keys: augmentation.Keys
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        view, size = self._view, self._view.size
        pixels, readable = np.zeros((len(indices), size, size, CHANNELS), np.uint8), np.zeros(len(indices), bool)
        cropped = view.augmentation if view.augmentation and view.augmentation.crop == "resized" else None
        draws = augmentation.crop_draws(keys) if cropped else []
        mirrored = augmentation.flipped(keys)
        for row, index in enumerate(indices.tolist()):
            try:
                image = opened(images.read(index))
                width, height = image.size
                if cropped:
                    box = augmentation.resized_crop(draws[row], width, height, cropped.least_area)
                else:
                    box = augmentation.middle_square(width, height, view.middle)
                pixels[row] = resized(image, box, size)
                readable[row] = True
            except (Unreadable, OSError) as error:
                self._refuse(images, index, error)
            if view.augmentation is not None and view.augmentation.flip and mirrored[row]:
                pixels[row] = pixels[row, :, ::-1]
        return pixels, readable

    def _refuse(self, images: EncodedImages, index: int, error: Exception) -> None:
        if index not in self._named:
            leave_out(f"{images.origin}: {images.names[index]}", error, allowed=self._view.corrupt == "skip")
            self._named.add(index)


def _gathered(images: PixelImages, view: View, indices: augmentation.Integers, keys: augmentation.Keys) -> Pixels:
    """Return images of memory, shifted and mirrored, in one operation."""
    kind = view.augmentation
    height, width = images.pixels.shape[1:3]
    if kind is None or (kind.crop == "none" and not kind.flip):
        return images.pixels[indices]
    moved = augmentation.shifts(keys, kind.padding) if kind.crop == "padded" else np.zeros((len(indices), 2), np.int64)
    rows = augmentation.mirrored_places(moved[:, 0], height, height)
    columns = augmentation.mirrored_places(moved[:, 1], width, width)
    if kind.flip:
        columns = np.where(augmentation.flipped(keys)[:, None], columns[:, ::-1], columns)
    return images.pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
