"""Handwritten digits of 8 x 8 pixels that scikit-learn carries: what there is to train on with nothing downloaded.

Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998: the 1,797 of its test set.
"""

from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.vision.sources import ImageSets, PixelImages

_HELD_OUT = 359
_BRIGHTEST = 16


def read_digits() -> ImageSets:
    """Return them, the last fifth held out, which others have written, brightness from 0 to 255.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise InputError("the digits come with scikit-learn: pip install 'largebatch[train]'") from None
    held: Any = load_digits()
    pixels = np.round(held["images"] * (255 / _BRIGHTEST)).astype(np.uint8)[..., None]
    labels = held["target"].astype(np.int64)
    return ImageSets(
        PixelImages("digits", pixels[:-_HELD_OUT], labels[:-_HELD_OUT]),
        PixelImages("digits", pixels[-_HELD_OUT:], labels[-_HELD_OUT:]),
        [str(digit) for digit in range(10)],
    )
