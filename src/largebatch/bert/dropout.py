"""Dropout whose masks do not cost more than the layer: on a CPU, PyTorch draws them one number at a time.

    y = x * m,    m = scale with probability 1 / scale, else 0,    scale = 1 / (1 - p) as the dtype of x holds it

so that the mean of m is 1: in bfloat16 an element is dropped with probability 0.0986 for p = 0.1. Sixteen random bits
decide over each element (32 for float32). The seed of a mask comes from PyTorch's generator, so that
`torch.manual_seed` decides over all of them. On other devices, in other dtypes and under torch.compile this is
PyTorch's own dropout.

Milliseconds for 2.8 million elements in bfloat16: PyTorch 18.0, here 3.5 (AMD EPYC, 2 threads, 2026-11-25).
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The integers that have as many bits as an element.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x with elements dropped with probability p, the others scaled so that the mean stays.

    Args:
        x: of any shape.
        p: from 0 to less than 1.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in _BITS or torch.compiler.is_compiling():
        return F.dropout(x, p, training=True)
    return x * mask(x.shape, x.dtype, p)


def mask(shape: torch.Size, dtype: torch.dtype, p: float) -> Tensor:
    """Return what dropout multiplies by: 0 or ``scale``, of a dtype with 16 or 32 bits."""
    count, bits = shape.numel(), _BITS[dtype]
    size = torch.iinfo(bits).bits // 8
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    drawn = np.random.Generator(np.random.SFC64(seed)).integers(
        0, 2**64 - 1, size=-(-count * size // 8), dtype=np.uint64, endpoint=True
    )
    threshold, pattern = _rule(dtype, p)
    chosen = torch.from_numpy(drawn.view(np.int16 if size == 2 else np.int32))[:count]
    return chosen.lt_(threshold).mul_(pattern).view(dtype).view(shape)


@functools.lru_cache(maxsize=64)
def _rule(dtype: torch.dtype, p: float) -> tuple[int, int]:
    """Return (what a drawn integer has to be below to stay, the scale's bits as an integer)."""
    scale = torch.tensor(1 / (1 - p), dtype=dtype, device="cpu")
    range_of = torch.iinfo(_BITS[dtype])
    least, width = range_of.min, range_of.max - range_of.min + 1
    return least + round(width / float(scale)), int(scale.view(_BITS[dtype]))


class QuickDropout(nn.Dropout):
    """``nn.Dropout`` by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, in training with elements dropped."""
        return dropout(input, self.p) if self.training else input


def quicken_(network: nn.Module) -> None:
    """Replace all dropout layers of a network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, QuickDropout(child.p).train(child.training))
