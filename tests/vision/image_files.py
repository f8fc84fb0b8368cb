"""Small image files for tests, made here: no file of a data set lies in the repository."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (24, 20), mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """Return a smooth picture, width by height, in a file's format."""
    generator = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + seed % 7) + phase) + np.cos(y / 6 - phase) for phase in generator.uniform(0, 6, 3)]
    pixels = np.clip(128 + 50 * np.stack(waves, -1), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write_folders(root: Path, *, per_class: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write a folder for each class, in one for each split."""
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                (folder / f"{index}.JPEG").write_bytes(picture(10 * number + index))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar."""
    mode: Any = "w:gz" if path.name.endswith("gz") else "w"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def idx_bytes(numbers: np.ndarray) -> bytes:
    """Return an array in MNIST's format."""
    return bytes((0, 0, 8, numbers.ndim)) + b"".join(n.to_bytes(4, "big") for n in numbers.shape) + numbers.tobytes()


def write_idx(folder: Path, *, images: int = 12, zipped: bool = True, size: int = 10) -> Path:
    """Write the four files of MNIST's form, of random images."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", images), ("t10k", images // 2)):
        made = {
            f"{name}-images-idx3-ubyte": generator.integers(0, 256, (count, size, size)).astype(np.uint8),
            f"{name}-labels-idx1-ubyte": generator.integers(0, 10, count).astype(np.uint8),
        }
        for file, numbers in made.items():
            content = idx_bytes(numbers)
            (folder / (file + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def cifar_batches(images: int = 4) -> dict[str, bytes]:
    """Return the files of CIFAR-10 by name, of random images, as Python 2 pickled them."""
    generator = np.random.default_rng(0)
    found = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = generator.integers(0, 256, (images, 3072)).astype(np.uint8)
        found[name] = pickle.dumps({b"data": data, b"labels": generator.integers(0, 10, images).tolist()}, protocol=2)
    names = [f"class{number}".encode() for number in range(10)]
    return found | {"batches.meta": pickle.dumps({b"label_names": names}, protocol=2)}
