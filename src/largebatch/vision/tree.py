"""Image folders, and the same in tar files: the split and the class of an image are read off its path.

    train/n01440764/x.JPEG              a folder for each class, in one for each split
    train/n01440764/images/x.JPEG       the same, deeper (Tiny ImageNet)
    train/n01440764.tar: x.JPEG         a tar for each class (ImageNet as it comes)
    images.tar: train/n01440764/x.JPEG  all in one tar
    cifar-train.tar: train/cat/x.jpg    one for each split
    train-0003.tar: 000017.jpg, .cls    shards (WebDataset), the number of the class in a file beside the image

In a path, a tar's name without its ending is one folder more. The first folder with "train", "val", "valid",
"validation" or "test" among its words is the split, the next one the class. What is held out is the first of val,
valid, validation and test that is there. Tar files are read where they lie, at the place of each image.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from largebatch.errors import InputError
from largebatch.vision.sources import EncodedImages, ImageSets, Texts

IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_TRAINING = "train"
_HELD_OUT = ("val", "valid", "validation", "test")
_ANNOTATIONS = "val_annotations.txt"
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_WHOLE = -1


class Entry(NamedTuple):
    """An image and where it lies."""

    split: str
    label: str
    name: str
    file: str
    offset: int = 0
    size: int = _WHOLE
    """In bytes; -1 is the whole file."""


@dataclass(frozen=True)
class Reader:
    """Reads images at their places. Picklable."""

    files: Texts
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __call__(self, index: int) -> bytes:
        """Return the bytes of an image."""
        size = int(self.sizes[index])
        with open(self.files[index], "rb") as file:
            file.seek(int(self.offsets[index]))
            content = file.read(size)
        if 0 <= size != len(content):
            raise OSError(f"{self.files[index]} ends within it")
        return content


def read_tree(path: Path) -> ImageSets:
    """Find the images below a folder or in a tar.

    Raises:
        InputError: there are none, a split or the class of an image is missing, a class has no images, or what is held
            out has a class that is not trained on.
    """
    found: dict[str, list[Entry]] = {}
    for entry in _entries(path):
        found.setdefault(entry.split, []).append(entry)
    if not found:
        raise InputError(
            f"{path} holds no images: wanted are folders train/CLASS and val/CLASS with images, or tar files of these"
        )
    out = next((split for split in _HELD_OUT if split in found), None)
    if _TRAINING not in found or out is None:
        raise InputError(
            f"{path} has images of {', '.join(sorted(found))} alone: wanted are train and one of {', '.join(_HELD_OUT)}"
        )
    classes = sorted({entry.label for entry in found[_TRAINING]}, key=_order)
    if len(classes) < 2:
        raise InputError(f"{path} has the class {classes[0]!r} alone, wanted are two or more")
    numbers = {label: number for number, label in enumerate(classes)}
    foreign = sorted({entry.label for entry in found[out]} - set(numbers))
    if foreign:
        raise InputError(f"{path}: {out} has the class {foreign[0]!r}, which train has not")
    training, held_out = (_images(f"{path}: {split}", found[split], numbers) for split in (_TRAINING, out))
    return ImageSets(training, held_out, classes)


def _order(label: str) -> tuple[int, str]:
    """Numbers, as shards have them, stand in their order."""
    return (int(label), label) if label.isdecimal() else (-1, label)


def _images(origin: str, entries: list[Entry], numbers: dict[str, int]) -> EncodedImages:
    entries = sorted(entries, key=lambda entry: entry.name)
    return EncodedImages(
        origin,
        Texts([entry.name for entry in entries]),
        np.array([numbers[entry.label] for entry in entries], np.int64),
        Reader(
            Texts([entry.file for entry in entries]),
            np.array([entry.offset for entry in entries], np.int64),
            np.array([entry.size for entry in entries], np.int64),
        ),
    )


def _entries(path: Path) -> Iterator[Entry]:
    if path.is_file():
        yield from _of_tar(path, ())
        return
    annotated = _annotations(path)
    empty, full = dict[tuple[str, str], str](), set[tuple[str, str]]()
    for folder, folders, files in os.walk(path, followlinks=True):
        folders.sort()
        for name in folders:
            _refuse_loop(folder, name)
        parts = Path(folder).relative_to(path).parts
        images = [name for name in files if _is_image(name)]
        for name in images:
            where = os.path.join(folder, name)
            split, label = _read_off((*parts, name))
            if annotated and split == "val":
                label = annotated.get(name)
                if label is None:
                    raise InputError(f"{where} is not named in {_ANNOTATIONS}")
            if split is not None and label is not None:
                full.add((split, label))
                yield Entry(split, label, "/".join((*parts, name)), where)
            elif split in (None, "test"):
                continue
            else:
                raise InputError(f"{where} lies in no folder of a class")
        tars = sorted(name for name in files if name.endswith((".tar", *_PACKED)))
        for name in tars:
            for entry in _of_tar(Path(folder, name), parts):
                full.add((entry.split, entry.label))
                yield entry
        split, label = _read_off((*parts, ""))
        if split and label and not (folders or images or tars or label.startswith(".")):
            empty[split, label] = folder
    for of_class, folder in empty.items():
        if of_class not in full and not (annotated and of_class[0] == "val"):
            raise InputError(f"the class {folder} has no images, {', '.join(IMAGE_ENDS)}")


def _refuse_loop(folder: str, name: str) -> None:
    place = os.path.join(folder, name)
    if os.path.islink(place) and Path(folder).resolve().is_relative_to(Path(place).resolve()):
        raise InputError(f"{place} is a link to a folder that it lies in")


def _of_tar(path: Path, parts: tuple[str, ...]) -> Iterator[Entry]:
    if path.name.endswith(_PACKED):
        raise InputError(
            f"{path} is compressed, so that no image in it can be read alone: unpack it to a .tar or a folder"
        )
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile()]
            inside = (*parts, path.name.removesuffix(".tar"))
            numbers = _numbers(path, archive, members)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a tar: {error}") from None
    for member in members:
        if not _is_image(os.path.basename(member.name)):
            continue
        shown = f"{path}: {member.name}"
        split, label = _read_off((*inside, *member.name.removeprefix("./").split("/")))
        label = numbers.get(os.path.splitext(member.name)[0], label)
        if split is None:
            raise InputError(
                f"{shown} is of no split: neither it nor the tar's name says train, {' or '.join(_HELD_OUT)}"
            )
        if label is None:
            raise InputError(f"{shown} has no class: neither a folder nor a .cls beside it tells")
        yield Entry(split, label, "/".join((*inside, member.name)), str(path), member.offset_data, member.size)


def _is_image(name: str) -> bool:
    """Tell by a file's name; one that begins with a point is another system's note on a file."""
    return name.lower().endswith(IMAGE_ENDS) and not name.startswith(".")


def _numbers(path: Path, archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, str]:
    """Return the number of the class of each image that has one beside it."""
    found = {}
    for member in members:
        if member.name.endswith(".cls"):
            file = archive.extractfile(member)
            assert file is not None
            text = file.read(32).strip().decode("ascii", "replace")
            if not text.isdecimal():
                raise InputError(f"{path}: {member.name} holds {text!r}, not the number of a class")
            found[member.name.removesuffix(".cls")] = str(int(text))
    return found


def _read_off(parts: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Return split and class of a path of folders and a name; None where it does not tell."""
    for place, part in enumerate(parts[:-1]):
        split = _split_of(part)
        if split is not None:
            folders = parts[place + 1 : -1]
            if len(folders) > 1 and folders[0] == split:  # test.tar that holds test/CLASS/x.jpg
                folders = folders[1:]
            return split, folders[0] if folders else None
    return None, None


def _split_of(part: str) -> str | None:
    words = re.split(r"[^a-z]+", part.lower())
    if _TRAINING in words or "training" in words:
        return _TRAINING
    return next((split for split in _HELD_OUT if split in words), None)


def _annotations(path: Path) -> dict[str, str]:
    """Return the class of each image that Tiny ImageNet holds out; nothing where that is no such folder."""
    file = path / "val" / _ANNOTATIONS
    if not file.is_file():
        return {}
    rows = (
        line.split("\t") for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if line
    )
    return {row[0]: row[1] for row in rows if len(row) > 1}
