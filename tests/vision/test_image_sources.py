"""Where images come from: every form gives the same images, and what is wrong with one is said in a sentence."""

import gzip
import io
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from image_files import cifar_batches, idx_bytes, picture, write_folders, write_idx, write_tar
from PIL import Image

from largebatch.errors import InputError
from largebatch.vision.hub import Rows
from largebatch.vision.images import open_images as cached
from largebatch.vision.sources import EncodedImages, ImageSets, PixelImages, Texts

open_images: Callable[[str], ImageSets] = cached.__wrapped__


def _contents(images: EncodedImages | PixelImages) -> list[tuple[int, bytes]]:
    """Return label and bytes of each image."""
    assert isinstance(images, EncodedImages)
    return sorted((int(label), images.read(index)) for index, label in enumerate(images.labels))


def _members(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.JPEG"))}


def _refused(source: Path | str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        open_images(str(source))
    assert "\n" not in str(raised.value)


# Folders and tar files.


def test_class_folders(tmp_path: Path) -> None:
    write_folders(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "train" / "cat" / "._0.JPEG").write_bytes(b"a note of another system")
    (tmp_path / "root").mkdir()
    for split in ("train", "val"):
        (tmp_path / "root" / split).symlink_to(tmp_path / "elsewhere" / split)
    sets = open_images(str(tmp_path / "root"))
    assert list(sets.classes) == ["cat", "dog"]
    assert isinstance(sets.training, EncodedImages)
    assert list(sets.training.names)[:2] == ["train/cat/0.JPEG", "train/cat/1.JPEG"]
    assert sets.training.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (sets.training.labels[4], sets.training.read(4)) == (1, picture(11))
    assert len(sets.held_out) == 6


@pytest.mark.parametrize("form", ["one tar", "a tar for each split", "a tar for each class", "shards", "deeper"])
def test_other_forms_hold_the_same(tmp_path: Path, form: str) -> None:
    plain = open_images(str(write_folders(tmp_path / "plain")))
    members, other = _members(tmp_path / "plain"), tmp_path / "other"
    source = other
    if form == "one tar":
        source = write_tar(tmp_path / "pictures.tar", members)
    elif form == "a tar for each split":
        for split in ("train", "val"):
            inside = {key: value for key, value in members.items() if key.startswith(split)}
            write_tar(other / f"pictures-{split}.tar", inside)
    elif form == "a tar for each class":
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                begin = f"{split}/{name}/"
                inside = {key.removeprefix(begin): value for key, value in members.items() if key.startswith(begin)}
                write_tar(other / split / f"{name}.tar", inside)
    elif form == "shards":
        for split in ("train", "val"):
            shard = {}
            for key, content in members.items():
                if key.startswith(split):
                    stem = key.replace("/", "-").removesuffix(".JPEG")
                    shard |= {f"{stem}.jpg": content, f"{stem}.cls": str(int("dog" in key)).encode()}
            write_tar(other / f"pictures-{split}-000.tar", shard)
    else:
        for key, content in members.items():
            split, name, file = key.split("/")
            path = other / ("test" if split == "val" else split) / name / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    sets = open_images(str(source))
    assert list(sets.classes) == (["0", "1"] if form == "shards" else ["cat", "dog"])
    assert _contents(sets.training) == _contents(plain.training)
    assert _contents(sets.held_out) == _contents(plain.held_out)


def test_tiny_imagenet_names_what_it_holds_out_in_a_file(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for name in ("cat", "dog"):
        for path in (tmp_path / "val" / name).iterdir():
            path.rename(tmp_path / "val" / f"{name}_{path.name}")
        (tmp_path / "val" / name).rmdir()
    images = tmp_path / "val" / "images"
    images.mkdir()
    rows = []
    for path in sorted((tmp_path / "val").glob("*.JPEG")):
        rows.append(f"{path.name}\t{path.name.split('_')[0]}\t0\t0\t63\t63")
        path.rename(images / path.name)
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / "test" / "images" / "unlabelled.JPEG").write_bytes(picture())
    assert open_images(str(tmp_path)).held_out.labels.tolist() == [0, 0, 0, 1, 1, 1]
    (images / "stranger.JPEG").write_bytes(picture())
    _refused(tmp_path, "stranger.JPEG is not named in val_annotations.txt")


def test_numbers_of_classes_stand_in_their_order(tmp_path: Path) -> None:
    shard = {f"{n}.{end}": c for n in (10, 2) for end, c in (("jpg", picture(n)), ("cls", str(n).encode()))}
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", shard)
    assert list(open_images(str(tmp_path)).classes) == ["2", "10"]


def test_names_that_are_the_same_number_have_one_order(tmp_path: Path) -> None:
    for split, name in product(("train", "val"), ("1", "01", "001", "2")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "x.jpg").write_bytes(picture())
    assert list(open_images(str(tmp_path)).classes) == ["001", "01", "1", "2"]


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "there are no images at")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "holds no images")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("x")
    _refused(tmp_path / "text", "holds no images")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(picture())
    _refused(tmp_path / "flat", "holds no images: wanted are folders train/CLASS and val/CLASS")
    one = write_folders(tmp_path / "one")
    (one / "train" / "bird").mkdir()
    (one / "train" / "bird" / "readme.txt").write_text("none yet")
    _refused(one, "the class .*bird has no images")
    two = write_folders(tmp_path / "two")
    (two / "val" / "dog").rename(two / "val" / "wolf")
    _refused(two, "val has the class 'wolf', which train has not")
    deep = write_folders(tmp_path / "deep" / "set")
    (deep / "train" / "bird" / "images").mkdir(parents=True)
    _refused(tmp_path / "deep", "the class .*bird.* has no images")
    loop = write_folders(tmp_path / "loop")
    (loop / "train" / "dog" / "again").symlink_to("..")
    _refused(loop, "again is a link to a folder that it lies in")
    alone = write_folders(tmp_path / "alone")
    for split in ("train", "val"):
        shutil.rmtree(alone / split / "dog")
    _refused(alone, "has the class 'cat' alone, wanted are two or more")
    three = write_folders(tmp_path / "three")
    (three / "train" / "loose.png").write_bytes(picture(kind="PNG"))
    _refused(three, "loose.png lies in no folder of a class")
    four = write_folders(tmp_path / "four")
    (four / "val").rename(four / "rest")
    _refused(four, "has images of train alone: wanted are train and one of val")


def test_bad_tars_are_refused(tmp_path: Path) -> None:
    members = _members(write_folders(tmp_path / "plain"))
    _refused(write_tar(tmp_path / "pictures.tar.gz", members), "is compressed")
    (tmp_path / "torn.tar").write_bytes(b"no tar at all")
    _refused(tmp_path / "torn.tar", "torn.tar cannot be read as a tar")
    _refused(write_tar(tmp_path / "a.tar", {"x/y.jpg": b""}), "is of no split")
    _refused(write_tar(tmp_path / "train.tar", {"y.jpg": b""}), "has no class")
    _refused(write_tar(tmp_path / "train-b.tar", {"y.jpg": b"", "y.cls": b"cat"}), "holds 'cat', not the number")


def test_a_tar_that_was_cut_since_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "pictures.tar", _members(write_folders(tmp_path / "plain")))
    sets = open_images(str(path))
    os.truncate(path, 2000)
    with pytest.raises(OSError, match="ends within"):
        _contents(sets.training)


# MNIST.


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    sets = open_images(str(write_idx(tmp_path, zipped=zipped)))
    assert isinstance(sets.training, PixelImages)
    assert sets.training.pixels.shape == (12, 10, 10, 1)
    assert len(sets.held_out) == 6
    assert len(sets.classes) == 10


def _change(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train-images-idx3-ubyte.gz", b"\x00\x00\x0d\x03" + bytes(12), "begins with 00 00 0d 03, not 00 00 08 03"),
        ("train-images-idx3-ubyte.gz", b"", "begins with nothing"),
        ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((12, 10, 10), np.uint8))[:-1], "it has 1,199"),
        ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((12, 10, 10), np.uint8)) + b"x", "it has more"),
        ("train-labels-idx1-ubyte.gz", idx_bytes(np.zeros(11, np.uint8)), "12 images, but .* 11 labels"),
        ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((12, 8, 8), np.uint8)), "images of the form"),
        ("train-images-idx3-ubyte.gz", b"\x00\x00\x08\x03" + b"\xff" * 12, "it has"),
        ("train-labels-idx1-ubyte.gz", idx_bytes(np.full(12, 12, np.uint8)), "the label 12, but none of 1: allowed"),
        ("t10k-labels-idx1-ubyte.gz", idx_bytes(np.full(6, 77, np.uint8)), "has the label 77, allowed is 0 to 9"),
    ],
)
def test_wrong_idx_files_are_refused(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    write_idx(tmp_path)
    _change(tmp_path / file, content)
    _refused(tmp_path, said)


def test_more_than_ten_classes_may_begin_at_one(tmp_path: Path) -> None:
    write_idx(tmp_path)
    _change(tmp_path / "train-labels-idx1-ubyte.gz", idx_bytes(np.arange(1, 13, dtype=np.uint8)))
    assert len(open_images(str(tmp_path)).classes) == 13


def test_torn_or_missing_idx_files_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    _refused(tmp_path, "cannot be read")
    path.write_bytes(b"not gzip")
    _refused(tmp_path, "cannot be read")
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    _refused(tmp_path, "has no t10k-labels-idx1-ubyte")
    for path in tmp_path.glob("train-*"):
        path.unlink()
    _refused(tmp_path, "has no train-images-idx3-ubyte")


# CIFAR-10.


def test_cifar_in_a_folder_and_in_its_archive(tmp_path: Path) -> None:
    batches = cifar_batches()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    archive = write_tar(
        tmp_path / "archive" / "cifar-10-python.tar.gz", {f"{folder.name}/{n}": c for n, c in batches.items()}
    )
    found = [open_images(str(path)) for path in (tmp_path, folder, archive, archive.parent)]
    for sets in found:
        assert isinstance(sets.training, PixelImages)
        assert sets.training.pixels.shape == (20, 32, 32, 3)
        assert sets.classes[3] == "class3"
        assert sets.training.fingerprint() == found[0].training.fingerprint()
    raw = pickle.loads(batches["data_batch_2"], encoding="bytes")[b"data"][1]
    assert isinstance(found[0].training, PixelImages)
    np.testing.assert_array_equal(found[0].training.pixels[5][:, :, 2].ravel(), raw[2048:])


class _Foreign:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data_batch_3", pickle.dumps(_Foreign(), protocol=2), r"asks for posix.system"),
        ("data_batch_3", b"torn", "data_batch_3 cannot be read"),
        ("data_batch_3", pickle.dumps([1]), "holds list, not a dictionary"),
        ("data_batch_3", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, protocol=2), "has no labels"),
        (
            "data_batch_3",
            pickle.dumps({b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 1]}, protocol=2),
            r"are uint8 \[2, 100\], not uint8 \[N, 3072\]",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, protocol=2),
            "image 1 has the label 10, allowed is 0 to 9",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0.0, 1.0]}, protocol=2),
            "the labels of test_batch are float64, not whole numbers",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": [[1, 2], [3]], b"labels": [0, 1]}, protocol=2),
            "test_batch holds no arr",
        ),
        ("batches.meta", pickle.dumps({}, protocol=2), "has no label_names"),
        ("batches.meta", pickle.dumps({b"label_names": []}, protocol=2), "has no label_names"),
    ],
)
def test_wrong_batches_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    for file, right in (cifar_batches() | {name: content}).items():
        (tmp_path / file).write_bytes(right)
    _refused(tmp_path, said)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    batches = cifar_batches()
    del batches["data_batch_4"]
    for file, content in batches.items():
        (tmp_path / file).write_bytes(content)
    _refused(tmp_path, "data_batch_4 cannot be read")
    archive = {f"cifar-10-batches-py/{name}": content for name, content in batches.items()}
    _refused(write_tar(tmp_path / "x" / "cifar-10-python.tar.gz", archive), "data_batch_4 cannot be read")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "cifar-10-python.tar.gz").write_bytes(b"torn")
    _refused(tmp_path / "y", "cannot be read")


# The hub's form, and what is embedded.


def _write_parquet(folder: Path, *, named: bool = True, columns: tuple[str, ...] = ("image", "label")) -> None:
    import datasets

    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]) if named else datasets.Value("int64"),
    }
    for split, first in (("train", 0), ("test", 100)):
        rows = {"image": [{"bytes": picture(first + n), "path": None} for n in range(4)], "label": [0, 1, 1, 0]}
        held = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        folder.mkdir(exist_ok=True)
        held.select_columns(list(columns)).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


@pytest.mark.parametrize("named", [True, False])
def test_parquet_of_the_hub(tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    _write_parquet(tmp_path / "rows", named=named)
    sets = open_images(f"hf:{tmp_path / 'rows'}")
    assert list(sets.classes) == (["cat", "dog"] if named else ["0", "1"])
    assert _contents(sets.training) == sorted(zip([0, 1, 1, 0], map(picture, range(4)), strict=True))
    assert isinstance(sets.held_out, EncodedImages)
    assert pickle.loads(pickle.dumps(sets.held_out)).read(1) == picture(101)
    with pytest.raises(OSError, match="there is none"):
        Rows([{"image": None}], "image")(0)


def test_other_data_sets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    _refused(f"hf:{tmp_path / 'nothing'}", "cannot be opened")
    _write_parquet(tmp_path / "rows", columns=("label",))
    _refused(f"hf:{tmp_path / 'rows'}", "one of images and one of classes is wanted")


def test_digits_are_embedded() -> None:
    sets = open_images("digits")
    assert isinstance(sets.training, PixelImages)
    assert (len(sets.training), len(sets.held_out)) == (1438, 359)
    assert sets.training.pixels.shape[1:] == (8, 8, 1)
    assert sets.training.pixels.max() == 255
    assert min(np.bincount(sets.held_out.labels)) > 25, "each digit is held out often enough"


def test_many_names_in_little_room() -> None:
    names = ["", "a", "Größe/日本.jpg", "last"]
    held = Texts(names)
    assert list(held) == names
    assert len(pickle.dumps(Texts(["train/n01440764/x.JPEG"] * 100_000))) < 3_100_000
    with pytest.raises(IndexError):
        held[4]


def test_fingerprints_tell_sets_apart(tmp_path: Path) -> None:
    first = open_images(str(write_folders(tmp_path / "a"))).training.fingerprint()
    assert open_images(str(write_folders(tmp_path / "b"))).training.fingerprint() == first
    (tmp_path / "b" / "train" / "cat" / "9.JPEG").write_bytes(picture())
    assert open_images(str(tmp_path / "b")).training.fingerprint() != first


def test_pictures_are_what_they_are_said_to_be() -> None:
    assert Image.open(io.BytesIO(picture(size=(30, 20)))).size == (30, 20)
