"""Decoding and augmentation: the right pixels, and the same for (seed, epoch, sample) however they are asked for."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import picture, write_folders
from PIL import Image

from largebatch.errors import InputError
from largebatch.vision import augmentation
from largebatch.vision.augmentation import Augmentation
from largebatch.vision.decoded import decoded
from largebatch.vision.decoding import Unreadable, opened, resized
from largebatch.vision.images import open_images
from largebatch.vision.samples import ImageSamples, View
from largebatch.vision.sources import EncodedImages, PixelImages, Texts


def _encoded(contents: list[bytes]) -> EncodedImages:
    return EncodedImages(
        "made",
        Texts([f"image {n}" for n in range(len(contents))]),
        np.zeros(len(contents), np.int64),
        contents.__getitem__,
    )


# Decoding.


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("LA", "PNG")],
)
def test_all_colours_become_rgb(mode: str, kind: str) -> None:
    content = picture(mode=mode, kind=kind)
    found = resized(opened(content), (0, 0, 20, 20), 20)
    assert found.shape == (20, 20, 3)
    assert found.dtype == np.uint8
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[:20, :20]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_keeps_its_shades(dtype: Any) -> None:
    shades = np.linspace(0, 65_535, 400).reshape(20, 20).astype(dtype)
    content = io.BytesIO()
    Image.fromarray(shades).save(content, "PNG" if dtype is np.uint16 else "TIFF")
    image = opened(content.getvalue())
    if image.mode == "I":
        with pytest.raises(Unreadable, match="32 bits"):
            resized(image, (0, 0, 20, 20), 20)
    else:
        np.testing.assert_array_equal(resized(image, (0, 0, 20, 20), 20)[..., 1], shades >> 8)


def test_a_part_is_cut_and_resized_at_once() -> None:
    image = Image.open(io.BytesIO(picture(size=(60, 40), kind="PNG")))
    found = resized(opened(picture(size=(60, 40), kind="PNG")), (10, 5, 40, 35), 12)
    wanted = np.asarray(image.crop((10, 5, 40, 35)).resize((12, 12), Image.Resampling.BILINEAR))
    difference = np.abs(found.astype(int) - wanted)
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.max() <= 4, "at the edge the filter sees what lies beyond it"
    elsewhere = np.asarray(image.crop((20, 5, 50, 35)).resize((12, 12), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - elsewhere).max() > 20


def test_a_large_jpeg_is_decoded_small() -> None:
    content = picture(size=(640, 480))
    image = opened(content)
    found = resized(image, (100, 50, 500, 450), 50)
    assert image.size[0] < 640, "decoded at a fraction of its size"
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    wanted = np.asarray(whole.resize((50, 50), Image.Resampling.BILINEAR, box=(100, 50, 500, 450)))
    assert np.abs(found.astype(int) - wanted).mean() < 2


@pytest.mark.parametrize(
    "content",
    [picture(size=(200, 200))[:1500], b"", b"text", picture()[:40], picture(kind="PNG")[:300], b"\xff\xd8\xff"],
)
def test_torn_images_are_unreadable(content: bytes) -> None:
    with pytest.raises(Unreadable):
        resized(opened(content), (0, 0, 20, 20), 20)


def test_a_decompression_bomb_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unreadable):
        opened(picture(size=(15, 10)))
    with pytest.raises(Unreadable):
        opened(picture(size=(50, 50)))


# Draws.


def _keys(count: int, seed: int = 3, epoch: int = 0) -> Any:
    return augmentation.keys(seed, np.full(count, epoch), np.arange(count))


def test_keys_differ_by_seed_epoch_and_sample() -> None:
    found = np.concatenate([_keys(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)])
    assert len(np.unique(found)) == 200
    mixed = augmentation.keys(3, np.array([1, 0, 1]), np.array([4, 4, 5]))
    np.testing.assert_array_equal(mixed, [_keys(6, 3, 1)[4], _keys(6, 3, 0)[4], _keys(6, 3, 1)[5]])


def test_half_are_mirrored_and_shifts_are_even() -> None:
    keys = _keys(8000)
    assert abs(augmentation.flipped(keys).mean() - 0.5) < 0.03
    shifts = augmentation.shifts(keys, 4)
    counts = np.bincount(shifts.ravel() + 4, minlength=9)
    assert len(counts) == 9
    assert np.abs(counts / counts.mean() - 1).max() < 0.12
    assert abs(np.corrcoef(shifts[:, 0], shifts[:, 1])[0, 1]) < 0.05
    holes = augmentation.holes(keys, 32, 8)
    assert (holes.min(), holes.max()) == (0, 24)


def test_resized_crops_are_as_they_are_said_to_be() -> None:
    width, height = 400, 300
    draws = augmentation.crop_draws(_keys(4000))
    boxes = np.array([augmentation.resized_crop(of_one, width, height, 0.08) for of_one in draws])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    areas, ratios = w * h / (width * height), w / h
    assert 0.075 < areas.min() < 0.1
    assert areas.max() > 0.9
    wanted = np.random.default_rng(0).uniform((0.08, np.log(3 / 4)), (1, np.log(4 / 3)), (20_000, 2))
    fits = np.sqrt(wanted[:, 0] * np.exp(wanted[:, 1]) * height / width) <= 1
    fits &= np.sqrt(wanted[:, 0] / np.exp(wanted[:, 1]) * width / height) <= 1
    assert abs(areas.mean() - wanted[fits, 0].mean()) < 0.012, "large boxes fit less often"
    assert abs(np.log(ratios).mean() - wanted[fits, 1].mean()) < 0.01
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    free = width - w
    assert abs((boxes[:, 0] / np.maximum(free, 1))[free > 50].mean() - 0.5) < 0.03, "anywhere, not at the edge"


def test_an_odd_image_is_shown_in_its_middle() -> None:
    assert augmentation.resized_crop(augmentation.crop_draws(_keys(1))[0], 1000, 10, 0.9) == (493, 0, 506, 10)
    assert augmentation.middle_square(40, 20, 1.0) == (10, 0, 30, 20)
    left, upper, right, lower = augmentation.middle_square(256, 256, 0.875)
    assert (left, upper, right, lower) == (16, 16, 240, 240)


def test_places_beyond_the_edge_are_mirrored() -> None:
    found = augmentation.mirrored_places(np.array([-2, 0, 3]), 5, 5)
    np.testing.assert_array_equal(found, [[2, 1, 0, 1, 2], [0, 1, 2, 3, 4], [3, 4, 3, 2, 1]])


# Samples.

AUGMENTATIONS = [
    Augmentation(crop="resized", flip=True),
    Augmentation(crop="padded", padding=3, flip=True, cutout=4),
    Augmentation(crop="none", flip=True),
    None,
]


def _images(kind: Augmentation | None) -> EncodedImages | PixelImages:
    encoded = _encoded([picture(n, size=(24, 20)) for n in range(9)])
    if kind is not None and kind.crop == "resized":
        return encoded
    same = _encoded([picture(n, size=(20, 20)) for n in range(9)])
    return decoded(same, 20, leave_out=False)


@pytest.mark.parametrize("kind", AUGMENTATIONS, ids=["resized", "padded", "mirrored", "none"])
def test_a_sample_depends_on_seed_epoch_and_index_alone(kind: Augmentation | None) -> None:
    view, images = View(size=20, augmentation=kind), _images(kind)
    samples = [(epoch, index) for epoch in (0, 5) for index in range(9)]
    together = ImageSamples(images, view, 1).__getitems__(samples)
    for place in np.random.default_rng(0).permutation(len(samples)):
        alone = ImageSamples(images, view, 1)[samples[place]]
        np.testing.assert_array_equal(alone.pixels, together[place].pixels)
    other = ImageSamples(images, view, 2).__getitems__(samples)
    epochs_differ = any((together[n].pixels != together[9 + n].pixels).any() for n in range(9))
    seeds_differ = any((a.pixels != b.pixels).any() for a, b in zip(together, other, strict=True))
    assert epochs_differ == seeds_differ == (kind is not None)


def test_pixels_in_memory_are_shifted_mirrored_and_covered() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    images = PixelImages("made", pixels, np.arange(40))
    plain = ImageSamples(images, View(size=12), 0).__getitems__([(0, n) for n in range(40)])
    np.testing.assert_array_equal(np.stack([sample.pixels for sample in plain]), pixels)
    assert [sample.label for sample in plain] == list(range(40))
    moved = ImageSamples(images, View(size=12, augmentation=Augmentation(crop="padded", padding=2)), 0)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    seen = set()
    for n in range(40):
        found = moved[0, n].pixels
        places = [(y, x) for y in range(5) for x in range(5) if (padded[n, y : y + 12, x : x + 12] == found).all()]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 12
    mirrored = ImageSamples(images, View(size=12, augmentation=Augmentation(flip=True)), 0)
    turned = [(mirrored[0, n].pixels == pixels[n][:, ::-1]).all() for n in range(40)]
    assert 10 < sum(turned) < 30
    assert all(t or (mirrored[0, n].pixels == pixels[n]).all() for n, t in enumerate(turned))
    covered = ImageSamples(images, View(size=12, augmentation=Augmentation(cutout=5)), 0)
    for n in range(40):
        assert (covered[0, n].pixels != pixels[n]).any(axis=-1).sum() in range(20, 26)
    assert (images.pixels == pixels).all(), "what is kept in memory is never written to"


def test_what_is_held_out_is_shown_whole_in_the_middle() -> None:
    content = picture(size=(32, 24), kind="PNG")
    found = ImageSamples(_encoded([content]), View(size=12, middle=0.5), 0)[0, 0].pixels
    image = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(found, np.asarray(image.crop((10, 6, 22, 18))))


def test_images_that_cannot_be_decoded(caplog: pytest.LogCaptureFixture) -> None:
    torn = _encoded([picture(size=(200, 200)), picture(size=(200, 200))[:1500], picture(size=(200, 200))])
    resizing = Augmentation(crop="resized")
    with pytest.raises(InputError, match=r"made: image 1 cannot be decoded: .*; --corrupt skip leaves"):
        ImageSamples(torn, View(size=20, augmentation=resizing), 0)[0, 1]
    skipping = ImageSamples(torn, View(size=20, augmentation=resizing, corrupt="skip"), 0)
    for _ in range(2):
        found = skipping.__getitems__([(0, n) for n in range(3)])
        assert [sample.readable for sample in found] == [True, False, True]
        assert not found[1].pixels.any()
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == ["left out: made: image 1"]


def test_a_file_that_is_gone_is_told_alike(tmp_path: Path) -> None:
    sets = open_images(str(write_folders(tmp_path)))
    (tmp_path / "train" / "cat" / "1.JPEG").unlink()
    with pytest.raises(InputError, match=r"train/cat/1.JPEG cannot be decoded: .*No such file"):
        ImageSamples(sets.training, View(size=20), 0)[0, 1]


def test_small_images_are_decoded_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [picture(n, size=(20, 20)) for n in range(4)]
    found = decoded(_encoded(contents), 20, leave_out=False)
    np.testing.assert_array_equal(found.pixels[2], np.asarray(Image.open(io.BytesIO(contents[2]))))
    with pytest.raises(InputError, match="image 1 has 24 x 20 pixels, image_size is 20"):
        decoded(_encoded([contents[0], picture(size=(24, 20))]), 20, leave_out=True)
    torn = _encoded([contents[0], b"torn", contents[1]])
    with pytest.raises(InputError, match="image 1 cannot be decoded: it is no image"):
        decoded(torn, 20, leave_out=False)
    with caplog.at_level(logging.WARNING):
        kept = decoded(torn, 20, leave_out=True)
    assert (len(kept), kept.left_out) == (2, 1)
    np.testing.assert_array_equal(kept.pixels[1], found.pixels[1])
    assert "1 of 3 images left out" in caplog.text
    monkeypatch.setattr("largebatch.vision.decoded.MOST_BYTES", 100)
    with pytest.raises(InputError, match="give crop resized"):
        decoded(torn, 20, leave_out=True)
