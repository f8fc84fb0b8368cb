"""Labelled images, as they lie: pixels in memory, or files that are still to be decoded."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch.errors import InputError

Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class Texts(Sequence[str]):
    """Many short texts in one array of bytes: a million names as objects would be copied to each worker, one by one."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """Return one of them, by its number."""
        begin = int(self._ends[index - 1]) if index else 0
        return self._bytes[begin : int(self._ends[index])].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class PixelImages:
    """Images of one size, decoded, in memory."""

    origin: str
    """Of what file or set they are."""
    pixels: Pixels
    """[N, height, width, channels]."""
    labels: Labels
    """[N], from 0."""
    left_out: int = 0
    """How many more there were, which cannot be decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Return the SHA-256 of pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class EncodedImages:
    """Images in files of any size, to be read and decoded one at a time."""

    origin: str
    """The folder, file or data set that they are of."""
    names: Sequence[str]
    """What each is called in messages."""
    labels: Labels
    """[N], from 0."""
    read: Callable[[int], bytes]
    """The bytes of an image; raises OSError where they cannot be had. Picklable, for worker processes."""

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Return the SHA-256 of names and labels; that of the bytes would take as long as an epoch."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).data)
        for name in self.names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


Images: TypeAlias = PixelImages | EncodedImages


@dataclass(frozen=True)
class ImageSets:
    """A data set: what is trained on, what is held out, and what the labels mean."""

    training: Images
    held_out: Images
    classes: Sequence[str]
    """The name of each label."""

    def __post_init__(self) -> None:
        shapes = [i.pixels.shape[1:] for i in (self.training, self.held_out) if isinstance(i, PixelImages)]
        if len(set(shapes)) > 1:
            raise InputError(
                f"{self.held_out.origin} has images of the form {shapes[1]}, the training ones {shapes[0]}"
            )
        for images in (self.training, self.held_out):
            if not len(images):
                raise InputError(f"{images.origin} has no images")
            wrong = np.flatnonzero((images.labels < 0) | (images.labels >= len(self.classes)))
            if len(wrong):
                raise InputError(
                    f"{images.origin}: image {wrong[0]} has the label {images.labels[wrong[0]]}, allowed is 0 to "
                    f"{len(self.classes) - 1}"
                )
