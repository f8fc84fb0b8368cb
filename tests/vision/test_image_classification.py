"""Classification: sums over the images that count, networks that are what they are called, and exports that load."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import picture, write_folders, write_idx
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

from largebatch.errors import InputError
from largebatch.recipes.optimizers import Lamb
from largebatch.schedules import Schedule
from largebatch.train.distributed import World
from largebatch.train.ledger import read_ledger
from largebatch.train.loop import Training
from largebatch.train.run import Run, Stage
from largebatch.train.run_record import Origin
from largebatch.vision.batch_norm import BatchNorm
from largebatch.vision.classification import ImageClassification
from largebatch.vision.classifier import Classifier
from largebatch.vision.models import LeNet, ResNet9, lenet
from largebatch.vision.samples import Sample

STAGE: Any = SimpleNamespace(name="only", task_options={})
OTHER_STAGE: Any = SimpleNamespace(name="only", task_options={"sequence_length": 3})


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "pictures", per_class=5)


def small(folders: Path, **fields: Any) -> ImageClassification:
    """A task whose network is quick."""
    given: dict[str, Any] = {
        "data": str(folders),
        "network": "resnet9",
        "width": 4,
        "image_size": 16,
        "norm_group": 4,
    } | fields
    return ImageClassification(**given)


def digits(**fields: Any) -> ImageClassification:
    given: dict[str, Any] = {"data": "digits", "network": "lenet", "crop": "none", "flip": False}
    given |= {"channel_means": (0.3,), "channel_stds": (0.4,)} | fields
    return ImageClassification(**given)


class _Fixed(nn.Module):
    """A network that says what it is told."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> Any:
        self.seen = images
        return SimpleNamespace(logits=self.logits)


def _batch(labels: list[int], readable: list[bool] | None = None, value: int = 0) -> dict[str, torch.Tensor]:
    count = len(labels)
    return {
        "pixels": torch.full((count, 2, 2, 3), value, dtype=torch.uint8),
        "labels": torch.tensor(labels),
        "readable": torch.tensor(readable or [True] * count),
    }


# Sums.


def test_the_loss_is_the_sum_over_readable_images() -> None:
    logits = [[1.0, 0.0, -1.0], [0.0, 2.0, 1.0], [3.0, 1.0, 0.0]]
    model = Classifier(_Fixed(logits), (0.5,) * 3, (0.25,) * 3, channels_last=True)
    task = ImageClassification(data="digits")
    plain = task.loss(model, _batch([0, 2, 1]))["class"]
    torch.testing.assert_close(plain, F.cross_entropy(torch.tensor(logits), torch.tensor([0, 2, 1]), reduction="sum"))
    some = _batch([0, 2, 1], [True, False, True])
    torch.testing.assert_close(
        task.loss(model, some)["class"],
        F.cross_entropy(torch.tensor(logits)[[0, 2]], torch.tensor([0, 1]), reduction="sum"),
    )
    assert (task.counts(some), task.tokens(some)) == ({"class": 2}, 2)
    smooth = replace(task, label_smoothing=0.3).loss(model, _batch([0, 2, 1]))["class"]
    spread = -torch.tensor(logits).log_softmax(-1).mean(-1).sum()
    torch.testing.assert_close(smooth, 0.7 * plain + 0.3 * spread)
    torch.testing.assert_close(task.evaluate(model, _batch([0, 2, 1]))["class"].float(), plain.detach())


def test_an_image_that_is_left_out_cannot_poison_the_loss() -> None:
    model = Classifier(_Fixed([[1.0, 0.0], [math.inf, 0.0]]), (0.5,) * 3, (0.25,) * 3, channels_last=True)
    sums = ImageClassification(data="digits").loss(model, _batch([0, 1], [True, False]))
    assert sums["class"].isfinite()


def test_pixels_are_standardised() -> None:
    network = _Fixed([[0.0, 0.0]])
    Classifier(network, (0.5, 0.4, 0.0), (0.25, 0.5, 1.0), channels_last=True)(**_batch([0], value=255), smoothing=0.0)
    torch.testing.assert_close(network.seen[0, :, 0, 0], torch.tensor([2.0, 1.2, 1.0]))
    assert network.seen.shape == (1, 3, 2, 2)


def test_top_1_and_top_5_and_ties() -> None:
    ranked = [float(n) for n in range(8)]  # class 7 has the highest logit
    model = Classifier(_Fixed([ranked] * 4 + [[0.0] * 8]), (0.5,) * 3, (0.25,) * 3, channels_last=True)
    task = ImageClassification(data="digits")
    sums = task.evaluate(model, _batch([7, 3, 2, 7, 1], [True, True, True, False, True]))
    found = {name: float(value.detach()) for name, value in sums.items()}
    assert (found["top1"], found["top5"], found["images"], found["unreadable"]) == (1, 2, 4, 1)
    loss, metrics = task.summarise(found)
    assert loss == pytest.approx(found["class"] / 4)
    assert metrics == {"top1_accuracy": 0.25, "top5_accuracy": 0.5, "commonest_class_accuracy": 0.25}
    assert replace(task, corrupt="skip").summarise(found)[1]["unreadable"] == 1
    with pytest.raises(InputError, match="none of the held-out images can be decoded"):
        task.summarise(dict.fromkeys(found, 0.0))


@pytest.mark.parametrize("logits", [[math.nan] * 8, [math.nan, *[0.0] * 7], [0.0] * 7 + [math.nan]])
def test_a_network_that_has_diverged_is_right_about_nothing(logits: list[float]) -> None:
    model = Classifier(_Fixed([logits] * 4), (0.5,) * 3, (0.25,) * 3, channels_last=True)
    sums = ImageClassification(data="digits").evaluate(model, _batch([0, 1, 6, 7], [True] * 4))
    assert float(sums["top1"]) == 0


# Networks.


def test_resnet_50_is_that_of_transformers_with_a_quiet_start(folders: Path) -> None:
    model: Any = small(folders, network="resnet50", image_size=32).build_model(3)
    network = model.network
    last = [module for name, module in network.named_modules() if name.endswith("layer.2.normalization")]
    assert len(last) == 16, "one for each residual branch"
    assert not any(module.weight.any() for module in last)
    assert sum(int((module.weight == 0).all()) for module in network.modules() if isinstance(module, BatchNorm)) == 16
    assert sum(p.numel() for p in network.resnet.parameters()) == 23_508_032, "25,557,032 with 1,000 classes"
    strides = [m.stride for name, m in network.named_modules() if name.endswith("layers.0.layer.1.convolution")]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2)], "version 1.5"
    assert network.config.id2label == {0: "cat", 1: "dog"}
    assert all(module.group == 4 for module in network.modules() if isinstance(module, BatchNorm))


def test_the_other_networks_have_their_sizes(tmp_path: Path) -> None:
    mnist = digits(data=str(write_idx(tmp_path, size=28))).build_model(0)
    assert sum(p.numel() for p in mnist.parameters()) == 61_706
    cifar = small(write_folders(tmp_path / "pictures"), width=64, image_size=32).build_model(0)
    assert 6.5e6 < sum(p.numel() for p in cifar.parameters()) < 6.6e6


def test_lenet_is_that_of_the_textbook(tmp_path: Path) -> None:
    """There the rectifier stands before the maximum, which gives the same numbers and gradients for more work."""
    network: Any = digits(data=str(write_idx(tmp_path, size=28))).build_model(0).network
    images = torch.randn(7, 1, 28, 28)
    hidden = images
    for convolution in (network.conv1, network.conv2):
        hidden = F.max_pool2d(convolution(hidden).relu(), 2)
    wanted = network.classifier(network.fc2(network.fc1(hidden.flatten(1)).relu()).relu())
    found = network(images).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    parameters = list(network.parameters())
    gradients = [torch.autograd.grad(logits.square().sum(), parameters) for logits in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("network", ["lenet", "resnet9", "resnet50"])
def test_weights_depend_on_the_seed_alone(folders: Path, network: Any) -> None:
    task = small(folders, network=network, image_size=32)
    torch.manual_seed(5)
    one = task.build_model(1)
    torch.manual_seed(6)
    draw = torch.rand(2)
    torch.manual_seed(6)
    two, other = task.build_model(1), task.build_model(2)
    torch.testing.assert_close(torch.rand(2), draw)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("network", "kind"), [("lenet", LeNet), ("resnet9", ResNet9), ("resnet50", None)])
def test_an_export_loads_with_equal_logits(folders: Path, tmp_path: Path, network: Any, kind: Any) -> None:
    task = small(folders, network=network, image_size=32)
    model = task.build_model(0).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var)  # type: ignore[arg-type]
    task.export(model, tmp_path / "model")
    loaded = (kind or AutoModelForImageClassification).from_pretrained(tmp_path / "model").eval().double()
    model.double()  # the two hold pixels in another order, and so sum in another one
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model.network(images).logits)  # type: ignore[operator]
    assert loaded.config.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("size", [64, 400])
def test_the_exported_processor_makes_images_ready_alike(folders: Path, tmp_path: Path, size: int) -> None:
    from PIL import Image

    task = small(folders, network="resnet50", image_size=size)
    task.export(task.build_model(0), tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    path = folders / "val" / "cat" / "0.JPEG"
    path.write_bytes(picture(size=(size + size // 2, size + 20)))
    data = task.evaluation_dataset(STAGE, 0)
    sample = data[0, 0].pixels / 255
    ours = (sample - np.array(task.channel_means)) / np.array(task.channel_stds)
    theirs = processor(Image.open(path), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.abs(ours - theirs).mean() < 0.1
    assert np.abs(ours[:, ::-1] - theirs).mean() > 0.3


# What cannot be.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"least_area": 0.0}, "least_area is 0.0"),
        ({"middle": 1.5}, "middle is 1.5"),
        ({"image_size": 0}, "image_size is 0"),
        ({"norm_group": 0}, "norm_group is 0"),
        ({"synchronised_norm": True}, "with synchronised_norm it must be None"),
        ({"cutout": 17}, "cutout is 17, the images have 16 pixels"),
        ({"channel_means": (0.5,)}, "have 3 channels"),
        ({"channel_stds": (0.5, 0.0, 1.0)}, "allowed is 0.001 to 1"),
        ({"channel_stds": (0.5, 0.5, math.inf)}, "allowed is 0.001 to 1"),
        ({"channel_means": (0.5, math.nan, 0.5)}, "allowed is 0 to 1"),
        ({"width": 1_000_000}, "width is 1000000, allowed is 4096 or less"),
        ({"crop": "padded"}, "24 x 20 pixels, image_size is 16"),
        ({"data": "nowhere"}, "there are no images at 'nowhere'"),
    ],
)
def test_fields_that_cannot_work_are_refused(folders: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(folders, **fields).check([STAGE])


def test_what_pixels_in_memory_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match="crop is resized, but the images of digits are small"):
        digits(crop="resized").check([STAGE])
    with pytest.raises(InputError, match="padding is 8, the images have 8"):
        digits(crop="padded", padding=8).check([STAGE])
    with pytest.raises(InputError, match="task_options"):
        digits().check([OTHER_STAGE])
    with pytest.raises(InputError, match="LeNet allows 8 or more"):
        lenet(["a"], 7, 1, 0)
    digits().check([STAGE])


# In the loop.


def _trained(task: ImageClassification, folder: Path, **fields: Any) -> list[dict[str, Any]]:
    stage = Stage(name="s", global_batch_samples=8, steps=4, peak_lr=0.02, schedule=Schedule(warmup_steps=1))
    given: dict[str, Any] = {"precision": "fp32", "microbatch": 4} | fields
    run = Run(task=task, stages=(stage,), optimizer=Lamb(), **given)
    Training(run, folder, World(0, 1, torch.device("cpu")), [], Origin(recipe="r", recipe_name="r")).train(resume=False)
    return list(read_ledger(folder / "metrics.jsonl"))


def _losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if line["kind"] in ("train", "eval")]


def test_the_microbatch_does_not_change_what_is_learned(folders: Path, tmp_path: Path) -> None:
    parts = _losses(_trained(small(folders), tmp_path / "parts"))
    whole = _losses(_trained(small(folders), tmp_path / "whole", microbatch=8))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    loose = [_losses(_trained(small(folders, norm_group=None), tmp_path / f"loose-{m}", microbatch=m)) for m in (4, 8)]
    assert np.abs(np.divide(loose[0], loose[1]) - 1).max() > 1e-3, "without groups it would"
    with pytest.raises(InputError, match="microbatch is 3, but the model looks at 4 samples at a time"):
        _trained(small(folders), tmp_path / "torn", microbatch=3)
    chosen = _trained(small(folders, norm_group=6), tmp_path / "auto", microbatch="auto")
    assert len(_losses(chosen)) == 5


def test_a_torn_image_is_left_out_of_means_and_counted(folders: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (folders / split / "cat" / "2.JPEG").write_bytes(picture(size=(200, 200))[:1500])
    with pytest.raises(InputError, match=r"cat/2\.JPEG cannot be decoded"):
        _trained(small(folders), tmp_path / "fail")
    lines = _trained(small(folders, corrupt="skip"), tmp_path / "skip")
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert (last["samples"], last["tokens"]) == (32, 29), "one of ten, three times in three epochs and a bit"
    assert [line["metrics"]["unreadable"] for line in lines if line["kind"] == "eval"] == [1]


def test_a_run_without_one_image_to_learn_from_does_not_end_well(folders: Path, tmp_path: Path) -> None:
    for path in (folders / "train").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"nothing in the batch of step 1 counts for the loss \(class\)"):
        _trained(small(folders, corrupt="skip"), tmp_path / "run")


def test_flops_are_three_times_those_of_a_forward_pass(folders: Path) -> None:
    task = small(folders, network="resnet50", image_size=224, norm_group=None)
    batch = task.collate([Sample(np.zeros((224, 224, 3), np.uint8), 0, True)] * 2)
    assert task.flops(batch) / 6 == pytest.approx(2 * 4.09e9, rel=0.01), "4.09 billion products and sums an image"
