"""CIFAR-10 as its authors give it: pickles of Python 2, in a folder or in their tar.gz.

Each holds ``data``, uint8 [N, 3072], colour by colour and row by row, and ``labels``. A pickle can run any code when it
is read; here it may make arrays and nothing else.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.vision.sources import ImageSets, PixelImages

_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST, _NAMES = "test_batch", "batches.meta"
_ALLOWED = {("_reconstruct"), ("ndarray"), ("dtype"), ("_frombuffer"), ("encode")}
_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
    "_codecs",
}


def cifar_at(path: Path) -> Path | None:
    """Return the folder or archive of CIFAR-10 that a path is or holds; None if there is none."""
    if path.name == _ARCHIVE and path.is_file():
        return path
    for candidate in (path, path / _FOLDER):
        if (candidate / _TRAINING[0]).is_file():
            return candidate
    return path / _ARCHIVE if (path / _ARCHIVE).is_file() else None


def read_cifar(path: Path) -> ImageSets:
    """Read the batches of a folder or an archive that `cifar_at` found.

    Raises:
        InputError: a batch is missing, torn, of another form, or holds anything but arrays.
    """
    if path.is_dir():
        return _read(path, lambda name: (path / name).read_bytes())
    try:
        with closing(tarfile.open(path)) as archive:
            return _read(path, lambda name: _member(archive, name))
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(f"{_FOLDER}/{name}")
    except KeyError:
        file = None
    if file is None:
        raise FileNotFoundError(f"there is no {_FOLDER}/{name} in it")
    return file.read()


def _read(path: Path, content: Callable[[str], bytes]) -> ImageSets:
    parts = [_batch(path, name, content) for name in (*_TRAINING, _TEST)]
    names = _unpickled(path, _NAMES, content).get(b"label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, (bytes, str)) for name in names):
        raise InputError(f"{path}: {_NAMES} has no label_names")
    training = PixelImages(
        str(path), np.concatenate([part.pixels for part in parts[:-1]]), np.concatenate([p.labels for p in parts[:-1]])
    )
    return ImageSets(
        training, parts[-1], [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    )


def _batch(path: Path, name: str, content: Callable[[str], bytes]) -> PixelImages:
    held = _unpickled(path, name, content)
    try:
        data, labels = np.asarray(held[b"data"]), np.asarray(held[b"labels"])
    except KeyError as error:
        raise InputError(f"{path}: {name} has no {error.args[0].decode()}") from None
    except ValueError as error:  # rows of several lengths
        raise InputError(f"{path}: {name} holds no arrays: {error}") from None
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InputError(f"{path}: the data of {name} are {data.dtype} {list(data.shape)}, not uint8 [N, 3072]")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path}: the labels of {name} are {labels.dtype}, not whole numbers")
    if labels.shape != (len(data),):
        raise InputError(f"{path}: {name} has {len(data):,} images, but labels of shape {list(labels.shape)}")
    pixels = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return PixelImages(f"{path}: {name}", np.ascontiguousarray(pixels), labels.astype(np.int64))


def _unpickled(path: Path, name: str, content: Callable[[str], bytes]) -> dict[bytes, Any]:
    try:
        held = _Arrays(io.BytesIO(content(name)), encoding="bytes").load()
    except InputError:
        raise
    except Exception as error:  # a torn pickle raises anything
        raise InputError(f"{path}: {name} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(held, dict):
        raise InputError(f"{path}: {name} holds {type(held).__name__}, not a dictionary")
    return held


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what arrays are made with; refuse all else."""
        if module not in _MODULES or name not in _ALLOWED:
            raise InputError(f"a batch of CIFAR-10 asks for {module}.{name}, which only a foreign pickle would")
        return super().find_class(module, name)
