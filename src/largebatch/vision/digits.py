"""Handwritten digits of 8 x 8 pixels that scikit-learn carries: what there is to train on with nothing downloaded.

Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998: the 1,797 of its test set.
"""

import numpy as np

from largebatch.errors import InputError
from largebatch.vision.sources import ImageSets, PixelImages

_EVERY = 5
_BRIGHTEST = 16


def read_digits() -> ImageSets:
    """Return them, every fifth held out, brightness from 0 to 255.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise InputError("the digits come with scikit-learn: pip install 'largebatch[train]'") from None
    held = load_digits()
    pixels = np.round(held["images"] * (255 / _BRIGHTEST)).astype(np.uint8)[..., None]
    labels = held["target"].astype(np.int64)
    out = np.arange(len(labels)) % _EVERY == _EVERY - 1
    return ImageSets(
        PixelImages("digits", pixels[~out], labels[~out]),
        PixelImages("digits", pixels[out], labels[out]),
        [str(digit) for digit in range(10)],
    )
