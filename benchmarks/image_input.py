"""Images per second that reach the model: this input pipeline beside a plain DataLoader with Pillow.

Both read the same images in the same number of processes, cut, resize and mirror them at random, and end with a batch
of standardised float32 tensors. The plain one is what tutorials write: a data set that opens one image with Pillow and
returns a tensor. Ours hands on bytes, which the model standardises; that is counted.

    python benchmarks/image_input.py --data ../imagenette --image-size 96
    python benchmarks/image_input.py --data ../cifar-10-batches-py --crop padded

writes benchmarks/results/image_input-CROP.json.
"""

import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from certificate import write_result
from largebatch.train.data_order import DataOrder
from largebatch.train.step_data import MicrobatchDataset, steps_from
from largebatch.vision.classification import ImageClassification
from largebatch.vision.classifier import scale_and_shift, standardised
from largebatch.vision.sources import EncodedImages, Images
from turns import summed_up

STAGE: Any = None  # images are the same in every stage
MEANS, STDS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    data: str
    """Images, as `largebatch train` takes them."""
    crop: Literal["resized", "padded"] = "resized"
    """Random resized crops of files, or shifts by up to 4 pixels of images in memory."""
    image_size: int = 96
    """Side of a resized crop, or of images in memory."""
    batch: int = 256
    """Images in a batch."""
    batches: int = 20
    """Batches in a turn; the first of each turn is not counted."""
    workers: int = 2
    """Processes that read."""
    rounds: int = 5
    """Turns of each."""


class Plain(Dataset[tuple[Tensor, int]]):
    """One image at a time with Pillow."""

    def __init__(self, images: Images, size: int) -> None:
        self._images, self._size = images, size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if isinstance(self._images, EncodedImages):
            image = Image.open(io.BytesIO(self._images.read(index))).convert("RGB")
            image = image.crop(self._box(*image.size)).resize((self._size, self._size), Image.Resampling.BILINEAR)
        else:
            image = Image.fromarray(np.pad(self._images.pixels[index], ((4, 4), (4, 4), (0, 0)), mode="reflect"))
            left, upper = random.randrange(9), random.randrange(9)
            image = image.crop((left, upper, left + self._size, upper + self._size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        standard = (values - torch.tensor(MEANS)[:, None, None]) / torch.tensor(STDS)[:, None, None]
        return standard, int(self._images.labels[index])

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = random.uniform(0.08, 1) * width * height
            ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, upper = random.randrange(width - w + 1), random.randrange(height - h + 1)
                return left, upper, left + w, upper + h
        return 0, 0, width, height


def rate(batches: Iterator[int]) -> float:
    """Return images per second, the first batch not counted."""
    next(batches)
    began = time.perf_counter()
    images = sum(batches)
    return images / (time.perf_counter() - began)


def ours(task: ImageClassification, options: Options) -> Iterator[int]:
    """Yield how many images each batch has, once they are standardised."""
    data = task.dataset(STAGE, 0)
    order = DataOrder(seed=0, stage=0, dataset_samples=len(data), global_batch_samples=options.batch)
    batches = MicrobatchDataset(task, data, order, options.batch, 0, 1)
    scale, shift = scale_and_shift(MEANS, STDS)
    for (micro,) in steps_from(batches, 0, options.batches, options.workers):
        standard = standardised(micro.batch["pixels"], scale, shift).permute(0, 3, 1, 2)
        yield len(standard)


def plain(images: Images, size: int, options: Options) -> Iterator[int]:
    """Yield the same of the plain loader."""
    data = Plain(images, size)
    chosen = torch.randperm(len(data)).repeat(-(-options.batch * options.batches // len(data)))
    sampler = chosen[: options.batch * options.batches].tolist()
    for standard, _ in DataLoader(data, options.batch, sampler=sampler, num_workers=options.workers):
        yield len(standard)


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    task = ImageClassification(data=options.data, crop=options.crop, image_size=options.image_size)
    images = task.images.training
    size = task.dataset(STAGE, 0)[0, 0].pixels.shape[0]
    rounds = []
    for _ in range(options.rounds):
        rounds.append({"ours": rate(ours(task, options)), "plain": rate(plain(images, size, options))})
        print(rounds[-1], flush=True)
    result = {
        "what": "images per second, standardised and in batches: ours beside a plain DataLoader with Pillow",
        "crop": options.crop,
        "size": size,
        "batch": options.batch,
        "workers": options.workers,
        **summed_up(rounds, "plain"),
    }
    write_result(f"image_input-{options.crop}", result)
    print(f"ours / plain, median of {options.rounds} paired ratios: {result['ratio']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
