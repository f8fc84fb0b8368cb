"""A network for images with what comes before it and after it: bytes to standard numbers, logits to loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scale_and_shift(means: Sequence[float], stds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return by what the bytes of each channel are multiplied and what is added, of its mean and standard deviation."""
    stds32 = torch.tensor(stds)
    return 1 / (255 * stds32), -torch.tensor(means) / stds32


def standardised(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return pixels * scale + shift in float32, [N, height, width, channels], in two passes over whole rows."""
    width = pixels.shape[2]
    rows = pixels.flatten(2).to(scale.dtype)
    return torch.addcmul(shift.repeat(width), rows, scale.repeat(width), out=rows).view(pixels.shape)


class Classifier(nn.Module):
    """Takes images as they are stored, uint8 [N, height, width, channels], and returns sums over them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any, means: Sequence[float], stds: Sequence[float], *, channels_last: bool) -> None:
        """Wrap a network that has ``logits`` in its output.

        Args:
            network: of transformers' form.
            means: of each channel, in brightness from 0 to 1.
            stds: of each channel, the same.
            channels_last: whether activations lie pixel by pixel, which is what convolutions in half precision want.
        """
        super().__init__()
        layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=layout)
        self._layout = layout
        scale, shift = scale_and_shift(means, stds)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, pixels: Tensor, labels: Tensor, readable: Tensor, smoothing: float, measure: bool = False) -> Any:
        """Return sums over the readable images, float32 also under autocast.

        Args:
            pixels: uint8 [N, height, width, channels].
            labels: int64 [N].
            readable: bool [N].
            smoothing: the share of each target that is spread evenly over all classes.
            measure: also count the images whose class has the highest logit, or one of the five highest.

        Returns:
            "class": the sum of the cross-entropies, in nats; with ``measure`` "top1" and "top5" too.
        """
        standard = standardised(pixels, self.scale, self.shift)
        images = standard.permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
        logits = self.network(images).logits.float()
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        sums = {"class": torch.where(readable, losses, 0).sum()}
        if measure:
            own = logits.gather(1, labels[:, None])
            others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
            # A tie is lost, and so is a comparison with NaN: a network that says nothing is right about nothing.
            ahead = (~(logits < own) & others).sum(dim=1)
            for name, most in (("top1", 1), ("top5", 5)):
                sums[name] = ((ahead < most) & readable).sum()
        return sums
