r"""Batch normalisation whose result does not depend on how a batch is cut into microbatches and ranks.

    y = (x - mean) / sqrt(var + eps) * weight + bias,      mean and var over ``group`` samples and all pixels

in training; a microbatch holds whole groups, in the order of the data, so that the same samples are normed together
wherever they lie ("ghost" batch norm: Hoffer et al., arXiv 1705.08741; Goyal et al., arXiv 1706.02677, norm 32
samples). What is used outside of training moves once for each optimizer step, by the mean over all groups of the step
and of all ranks:

    running <- (1 - momentum) * running + momentum * mean over groups of (mean, unbiased var)

where PyTorch's own moves with every forward pass, and so by other weights for another number of passes.

With ``group=None`` a group is a microbatch, and with ``synchronised=True`` the microbatches of all ranks that run at a
time, but for those of ranks that have no share in it (``counted`` is False).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over groups of samples, of the same parameters, buffers and results outside of training."""

    gathered: Tensor

    def __init__(
        self, features: int, eps: float, momentum: float, group: int | None = None, synchronised: bool = False
    ) -> None:
        """Make one with weight 1 and bias 0.

        Args:
            features: channels.
            eps: added to the variance.
            momentum: share of a step's statistics in the running ones.
            group: samples that are normed together; None takes those of a microbatch.
            synchronised: norm those of all ranks together; with ``group=None`` alone.
        """
        super().__init__(features, eps=eps, momentum=momentum)
        assert group is None or not synchronised
        self.group, self.synchronised = group, synchronised
        self.counted = True
        self.register_buffer("gathered", torch.zeros(2 * features + 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, [N, C, H, W], normed."""
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self.synchronised and dist.is_initialized() and dist.get_world_size() > 1:
            return self._over_ranks(input)
        if self.group is None or len(input) <= self.group:
            return self._normed(input)
        return torch.cat([self._normed(part) for part in input.split(self.group)])

    def _normed(self, x: Tensor) -> Tensor:
        # With momentum 1 the statistics that PyTorch keeps are those of this group; zeros, for 0 times NaN is NaN.
        mean, var = (torch.zeros_like(self.weight, dtype=torch.float32) for _ in range(2))
        if x.numel() == x.shape[1]:  # one sample of one pixel is its own mean, which PyTorch refuses
            out = 0 * x + self.bias[:, None, None]
            mean = x.detach().flatten().float()
        else:
            out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        self._gather(mean, var, len(x))
        return out

    def _over_ranks(self, x: Tensor) -> Tensor:
        # In float32 at least, and around each rank's own mean, for E[x^2] - E[x]^2 loses what is small beside the mean.
        x32 = x.float()
        var, mean = torch.var_mean(x32, dim=(0, 2, 3), correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1] if self.counted else 0.0, dtype=torch.float32)
        total, means = _sum_over_ranks(torch.cat([count, count * mean])).split([1, len(mean)])
        means = means / total
        squares = _sum_over_ranks(count * (var + (mean - means) ** 2))
        scale = torch.rsqrt(squares / total + self.eps) * self.weight
        out = (x32 - means[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        self._gather(means.detach(), (squares / (total - 1).clamp(min=1)).detach(), len(x))
        return out.to(x.dtype)

    def _gather(self, mean: Tensor, var: Tensor, samples: int) -> None:
        with torch.no_grad():
            self.gathered += samples * torch.cat([mean, var, torch.ones_like(mean[:1])])

    # What the loop asks of layers that gather over a step.

    def step_sums(self) -> Tensor:
        """Return the sums of mean and variance, times the samples of each group, and of the samples: [2 C + 1]."""
        return self.gathered.clone()

    def fold_step_sums(self, sums: Tensor | None) -> None:
        """Move the running statistics towards those of a step, whose sums over all ranks are given, or leave them."""
        self.gathered.zero_()
        if sums is None:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        samples = sums[-1]
        mean, var = (sums[:-1] / samples.clamp(min=1)).chunk(2)
        share = self.momentum * (samples > 0)  # not asked for on the host, which would have to wait for it
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)
        self.num_batches_tracked += samples > 0


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks, and backwards too, for each rank's output is a function of each rank's input.

    PyTorch's own keeps the process group in the graph, which then outlives ``destroy_process_group``: one process in
    three ended by SIGABRT, for its group's threads still ran when the interpreter ended (torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _summed(gradients)


def _summed(values: Tensor) -> Tensor:
    sums = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(sums)
    return sums


def _sum_over_ranks(values: Tensor) -> Tensor:
    result = _SumOverRanks.apply(values)
    assert isinstance(result, Tensor)
    return result


def grouped_batch_norm_(network: nn.Module, group: int | None, *, synchronised: bool) -> None:
    """Replace all batch norms of a network, which keep their weights and their names."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                own = BatchNorm(child.num_features, child.eps, child.momentum or 0.1, group, synchronised)
                own.load_state_dict(child.state_dict())
                setattr(module, name, own.train(child.training))
