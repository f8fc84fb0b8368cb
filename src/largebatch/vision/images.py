"""Labelled images from wherever they lie, as one thing: a part to train on, a part held out, and names of classes."""

import functools
from pathlib import Path

from largebatch.errors import InputError
from largebatch.vision.cifar import cifar_at, read_cifar
from largebatch.vision.digits import read_digits
from largebatch.vision.hub import read_hub
from largebatch.vision.idx import is_idx, read_idx_folder
from largebatch.vision.sources import ImageSets
from largebatch.vision.tree import read_tree

DIGITS = "digits"
_HUB = "hf:"


@functools.lru_cache(maxsize=2)
def open_images(source: str) -> ImageSets:
    """Open a data set of images.

    Args:
        source: ``digits``, which is embedded; a folder with MNIST's idx files, with CIFAR-10's batches or their
            archive, with a folder of images for each class (ImageNet, Imagenette, Tiny ImageNet), or with tar files of
            such; such a tar file; or ``hf:NAME``, a Hugging Face data set or a folder of parquet files.

    Raises:
        InputError: there is none, or it is not of that form.
    """
    if source == DIGITS:
        return read_digits()
    if source.startswith(_HUB):
        return read_hub(source.removeprefix(_HUB))
    path = Path(source).expanduser()
    if not source or not path.exists():
        raise InputError(f"there are no images at {source!r}: give digits, a folder, a tar file or hf:NAME")
    cifar = cifar_at(path)
    if cifar is not None:
        return read_cifar(cifar)
    return read_idx_folder(path) if path.is_dir() and is_idx(path) else read_tree(path)
