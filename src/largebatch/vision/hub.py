"""Images of a Hugging Face data set, by name, or of parquet files in a folder: rows read where they lie."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.vision.sources import EncodedImages, ImageSets, Texts

_HELD_OUT = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class Rows:
    """Reads the image of a row. Picklable: rows stay in their files."""

    rows: Any
    column: str

    def __call__(self, index: int) -> bytes:
        """Return the bytes of an image."""
        image = self.rows[index][self.column]
        if image is None:
            raise OSError("there is none")
        if image["bytes"] is not None:
            return image["bytes"]
        with open(image["path"], "rb") as file:
            return file.read()


def read_hub(name: str) -> ImageSets:
    """Open a data set with a column of images and one of classes.

    Raises:
        InputError: `datasets` is not installed, or there is no such data set, split or column.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("a Hugging Face data set needs datasets: pip install 'largebatch[train]'") from None
    path = os.path.expanduser(name)
    try:
        held = datasets.load_dataset(path if os.path.exists(path) else name)
    except Exception as error:  # of many libraries and of no common kind
        raise InputError(f"the data set {name} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    out = next((split for split in _HELD_OUT if split in held), None)
    if "train" not in held or out is None:
        raise InputError(
            f"the data set {name} has the splits {', '.join(map(str, held))}: wanted are train and one of "
            f"{', '.join(_HELD_OUT)}"
        )
    features = held["train"].features
    image = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    label = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not label:  # parquet of others may have bare numbers
        label = [key for key in ("label", "labels", "cls") if key in features]
    if len(image) != 1 or len(label) != 1:
        raise InputError(
            f"the data set {name} has the columns {', '.join(features)}: one of images and one of classes is wanted"
        )
    kind = features[label[0]]
    training, held_out = (
        _images(f"{name}: {split}", held[split], image[0], label[0], datasets) for split in ("train", out)
    )
    names = getattr(kind, "names", None) or [str(number) for number in range(int(training.labels.max(initial=0)) + 1)]
    return ImageSets(training, held_out, names)


def _images(origin: str, rows: Any, image: str, label: str, datasets: Any) -> EncodedImages:
    labels = np.asarray(rows[label][:])
    if labels.dtype.kind not in "iu":
        raise InputError(f"{origin}: the column {label} holds {labels.dtype}, not numbers of classes")
    raw = rows.cast_column(image, datasets.Image(decode=False))
    return EncodedImages(
        origin, Texts([f"row {row}" for row in range(len(rows))]), labels.astype(np.int64), Rows(raw, image)
    )
