"""From the bytes of an image to pixels of one size."""

import io
import logging
import warnings
from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.vision.sources import Pixels

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError:
    raise InputError("images are decoded by Pillow, which is not installed: pip install 'largebatch[train]'") from None

_log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""Left, upper, right, lower; in pixels."""


_TORN = (OSError, ValueError, SyntaxError, RuntimeError)
"""What Pillow raises for bytes that are no image or a torn one; RuntimeError for AVIF."""


class Unreadable(Exception):
    """The bytes are no image, or a torn one."""


def leave_out(shown: str, error: Exception, *, allowed: bool) -> None:
    """Warn that an image is left out, or raise InputError where none may be."""
    sentence = f"{shown} cannot be decoded: {error}"
    if not allowed:
        raise InputError(f"{sentence}; --corrupt skip leaves such images out") from None
    _log.warning("left out: %s", sentence)


def opened(content: bytes) -> Any:
    """Return an image of Pillow whose size is known and whose pixels are not decoded yet; raises Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except (*_TORN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise Unreadable(reason) from None


def resized(image: Any, box: Box, size: int) -> Pixels:
    """Return a part of an image in RGB, uint8 [size, size, 3], by an antialiased bilinear filter.

    Grey (of 8 or 16 bits), palette and CMYK images become RGB. A JPEG is decoded at a half, a quarter or an eighth of
    its size, as its format allows, where that leaves at least twice the pixels of each side that are wanted.

    Raises:
        Unreadable: the image is torn.
    """
    width, height = image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd palettes and metadata
            left, upper, right, lower = box
            factor = int(min(right - left, lower - upper) / (2 * size))
            if factor > 1:
                image.draft("RGB", (width // factor, height // factor))
            scales = image.width / width, image.height / height
            image.load()
            if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise Unreadable(f"its pixels are numbers of 32 bits (mode {image.mode})")
            rgb = image if image.mode == "RGB" else image.convert("RGB")
        scaled = (left * scales[0], upper * scales[1], right * scales[0], lower * scales[1])
        return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=scaled))
    except (*_TORN, MemoryError) as error:
        raise Unreadable(str(error)) from None
