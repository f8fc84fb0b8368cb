"""MNIST's format: four files, images and labels, for training and for tests; plain or gzipped.

    bytes 0-3    magic: 0, 0, type (8: uint8), number of dimensions
    then         each dimension, 32 bits, big-endian
    then         the numbers

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits". Fashion-MNIST, KMNIST and EMNIST have it
too.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from largebatch.errors import InputError
from largebatch.vision.sources import ImageSets, PixelImages

_PARTS = ("train", "t10k")
_UINT8 = 8
_DIGITS = 10
_MOST_BYTES = 8 * 2**30


def is_idx(folder: Path) -> bool:
    """Return whether a folder holds any such file."""
    return any(_find(folder, part, *kind) is not None for part in _PARTS for kind in (("images", 3), ("labels", 1)))


def read_idx_folder(folder: Path) -> ImageSets:
    """Read the four files of a folder.

    Raises:
        InputError: one is missing, torn, or of another form; images and labels differ in number; there are more
            than ten classes, and one of them has no image.
    """
    training, held_out = (_part(folder, name) for name in _PARTS)
    return ImageSets(training, held_out, [str(label) for label in range(_classes(training))])


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of a file.

    Raises:
        InputError: its header is not that of such a file, or its length does not fit the header.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, _UINT8, dimensions)):
                raise InputError(
                    f"{path} is not an idx file of bytes in {dimensions} dimensions: it begins with "
                    f"{header[:4].hex(' ') or 'nothing'}, not {bytes((0, 0, _UINT8, dimensions)).hex(' ')}"
                )
            shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
            wanted = math.prod(shape)
            content = file.read(min(wanted, _MOST_BYTES) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if len(content) != wanted:
        more = "more" if len(content) > wanted else f"{len(content):,}"
        raise InputError(f"{path} says that it holds {' x '.join(map(str, shape))} bytes, it has {more}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _part(folder: Path, name: str) -> PixelImages:
    images, labels = (_wanted(folder, name, kind, dims) for kind, dims in (("images", 3), ("labels", 1)))
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise InputError(f"{images} has {len(pixels):,} images, but {labels.name} {len(numbers):,} labels")
    return PixelImages(str(images), pixels[..., None], numbers.astype(np.int64))


def _classes(training: PixelImages) -> int:
    """Return ten, or more where the labels say so; EMNIST's letters begin at 1, but a gap above is a wrong label."""
    present = np.bincount(training.labels, minlength=_DIGITS) > 0
    if len(present) > _DIGITS and not present[1:].all():
        raise InputError(
            f"{training.origin} has images of the label {len(present) - 1}, but none of {1 + present[1:].argmin()}: "
            "allowed are 0 to 9, or more without a gap"
        )
    return len(present)


def _wanted(folder: Path, name: str, kind: str, dimensions: int) -> Path:
    found = _find(folder, name, kind, dimensions)
    if found is None:
        raise InputError(f"{folder} has no {name}-{kind}-idx{dimensions}-ubyte, plain or with .gz")
    return found


def _find(folder: Path, name: str, kind: str, dimensions: int) -> Path | None:
    for joint in ("-", "."):
        for end in ("", ".gz"):
            path = folder / f"{name}-{kind}{joint}idx{dimensions}-ubyte{end}"
            if path.is_file():
                return path
    return None
