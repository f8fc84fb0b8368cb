"""Small images of one size that lie in files, such as CIFAR-10's as JPEG: decoded once, and kept."""

import logging

import numpy as np

from largebatch.errors import InputError
from largebatch.vision import decoding
from largebatch.vision.decoding import Unreadable, opened, resized
from largebatch.vision.sources import EncodedImages, PixelImages

_log = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**30


def decoded(images: EncodedImages, size: int, *, leave_out: bool) -> PixelImages:
    """Return the images in memory, in RGB.

    Args:
        images: all of ``size`` by ``size`` pixels.
        size: in pixels.
        leave_out: whether those that cannot be decoded are left out, with a warning each and one of their number.

    Raises:
        InputError: one has another size, one cannot be decoded and is not to be left out, or they need more than 4 GiB.
    """
    if (needed := len(images) * size * size * 3) > MOST_BYTES:
        raise InputError(
            f"{images.origin} would take {needed / 2**30:.1f} GiB decoded, allowed are 4: give crop resized"
        )
    pixels, kept = np.empty((len(images), size, size, 3), np.uint8), np.ones(len(images), bool)
    for index in range(len(images)):
        shown = f"{images.origin}: {images.names[index]}"
        try:
            image = opened(images.read(index))
            if image.size != (size, size):
                raise InputError(
                    f"{shown} has {image.width} x {image.height} pixels, image_size is {size}: without crop resized "
                    "all must have that"
                )
            pixels[index] = resized(image, (0, 0, size, size), size)
        except (Unreadable, OSError) as error:
            decoding.leave_out(shown, error, allowed=leave_out)
            kept[index] = False
    if not kept.all():
        _log.warning("%s: %d of %d images left out", images.origin, (~kept).sum(), len(images))
        pixels = pixels[kept]
    return PixelImages(images.origin, pixels, images.labels[kept], int((~kept).sum()))
