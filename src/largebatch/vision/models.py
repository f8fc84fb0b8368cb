"""The networks: LeNet, the residual network of 9 layers of DAWNBench, and ResNet-50 v1.5 of transformers.

All take float pixels [N, channels, size, size] and return an output with ``logits`` [N, classes], and all are written
and read by ``save_pretrained`` and ``from_pretrained``.

Source: LeCun et al., 1998; David Page's entry to DAWNBench, 2018; He et al., 2015, with the stride of v1.5 in the 3 x 3
convolutions, and the last scale of each residual branch at zero (Goyal et al., arXiv 1706.02677, section 5.1).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.errors import InputError
from largebatch.networks import seeded

try:
    from transformers import PretrainedConfig, PreTrainedModel, ResNetConfig, ResNetForImageClassification
    from transformers.modeling_outputs import ImageClassifierOutput
except ModuleNotFoundError as error:
    raise InputError(
        f"networks for images need the package {error.name}, which is not installed: pip install 'largebatch[train]'"
    ) from None

_LENET_LEAST, _UNPADDED_FROM = 8, 20


class LeNetConfig(PretrainedConfig):
    """Sizes of a LeNet."""

    model_type = "largebatch-lenet"

    def __init__(self, image_size: int = 28, num_channels: int = 1, **others: Any) -> None:
        super().__init__(**others)
        self.image_size, self.num_channels = image_size, num_channels


class LeNet(PreTrainedModel):
    """LeNet-5 with rectifiers and the maximum for pooling: two convolutions of 5 x 5, three layers of units.

    From 20 pixels on only the first convolution is padded, as in the original of 28 (32 with its margin); below both
    are. 61,706 parameters for MNIST.
    """

    config_class = LeNetConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.image_size
        padding = 0 if size >= _UNPADDED_FROM else 2
        self.conv1 = nn.Conv2d(config.num_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=padding)
        side = (size // 2 + 2 * padding - 4) // 2
        self.fc1 = nn.Linear(16 * side**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.classifier = nn.Linear(84, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own weights are kept."""

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Return the logits."""
        x = F.relu(F.max_pool2d(self.conv1(pixel_values), 2))  # as the maximum of rectified ones, of a quarter of them
        x = F.relu(F.max_pool2d(self.conv2(x), 2)).flatten(1)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return ImageClassifierOutput(logits=self.classifier(x))


class ResNet9Config(PretrainedConfig):
    """Sizes of a residual network of 9 layers."""

    model_type = "largebatch-resnet9"

    def __init__(self, width: int = 64, num_channels: int = 3, logit_scale: float = 0.125, **others: Any) -> None:
        super().__init__(**others)
        self.width, self.num_channels, self.logit_scale = width, num_channels, logit_scale


class _Block(nn.Sequential):
    """Convolution of 3 x 3, batch norm, pooling if asked for, and rectifier, which may as well follow a maximum."""

    def __init__(self, channels: int, filters: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        if pool:
            self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _Block(channels, channels), _Block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class ResNet9(PreTrainedModel):
    """Eight convolutions and a linear layer whose logits are scaled by 1/8; 6.6 million parameters."""

    config_class = ResNet9Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        w = config.width
        self.layers = nn.Sequential(
            _Block(config.num_channels, w),
            _Block(w, 2 * w, pool=True),
            _Residual(2 * w),
            _Block(2 * w, 4 * w, pool=True),
            _Block(4 * w, 8 * w, pool=True),
            _Residual(8 * w),
        )
        self.classifier = nn.Linear(8 * w, config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own weights are kept."""

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Return the logits."""
        pooled = self.layers(pixel_values).amax(dim=(2, 3))
        return ImageClassifierOutput(logits=self.config.logit_scale * self.classifier(pooled))


def lenet(classes: list[str], image_size: int, channels: int, seed: int) -> Any:
    """Return a LeNet, the same for a seed.

    Raises:
        InputError: the images are too small.
    """
    if image_size < _LENET_LEAST:
        raise InputError(f"image_size is {image_size}, LeNet allows {_LENET_LEAST} or more")
    with seeded(seed):
        return LeNet(LeNetConfig(image_size=image_size, num_channels=channels, **_labels(classes)))


def resnet9(classes: list[str], channels: int, width: int, seed: int) -> Any:
    """Return a ResNet9, the same for a seed."""
    with seeded(seed):
        return ResNet9(ResNet9Config(width=width, num_channels=channels, **_labels(classes)))


def resnet50(classes: list[str], channels: int, seed: int) -> Any:
    """Return transformers' ResNet-50 v1.5, the same for a seed, the last scale of each residual branch at zero."""
    config = ResNetConfig(num_channels=channels, downsample_in_bottleneck=False, **_labels(classes))
    with seeded(seed):
        network = ResNetForImageClassification(config)
    with torch.no_grad():
        for name, module in network.named_modules():
            # encoder.stages.S.layers.L.layer.2.normalization; a shortcut's norm is named otherwise.
            if name.endswith("layer.2.normalization"):
                module.weight.zero_()  # pyright: ignore[reportCallIssue]
    return network


def _labels(classes: list[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }
