"""Watching the steps of an optimizer: trust ratios for TensorBoard, and a warning where a layer jumps."""

import math
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.gathering import parameter_names
from largebatch.optim.options import check_number
from largebatch.optim.shards import whole


class ScalarWriter(Protocol):
    """What receives the curves: `torch.utils.tensorboard.SummaryWriter`, or anything that has its method."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Take one point of one curve."""
        ...


class StepMonitor:
    r"""Watch every so many steps of an optimizer.

    In a watched step the trust ratios go to a writer, and the relative step of each layer is measured,

    .. math::
        \lVert x_{t+1} - x_t \rVert_2 \; / \; \lVert x_t \rVert_2

    over the whole parameter, by a copy of the weights from before the step. It is lr for an adapted layer of LAMB,
    of LARS by algorithm 1 and of `Layerwise` with plain ratios of l2 norms, and anything for a layer that is not
    adapted, which is where rates tuned for adapted layers do harm. A layer of zeros has no relative step. The copies
    live during the step, and all numbers come to the host in one transfer afterwards; steps that are not watched cost
    nothing. Of parameters in shards all processes have to watch, and exchange two numbers for each.

    Args:
        optimizer: one of ours, or any other, which has relative steps but no trust ratios.
        writer: receives ``trust_ratio/NAME`` (with ``[direction,block]`` behind it where there are several) and,
            if they are measured, ``relative_step/NAME``; None for the warning alone.
        every: watch the first step and then each `every`-th.
        max_relative_step: warn, once, when a layer's relative step exceeds this; None for no warning, and then
            relative steps are not measured.
        first_step: the number of the first step that it sees, for the curves of a run that goes on.

    Raises:
        ValueError: an argument is of another kind than said above, `every` is not at least 1, or the bound is not
            positive.

    Example:
        >>> import torch
        >>> from largebatch.optim import LAMB, StepMonitor
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = LAMB(layer.named_parameters(), lr=0.01)
        >>> monitor = StepMonitor(optimizer, max_relative_step=0.5)
        >>> layer(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> round(monitor.relative_steps["weight"], 4)
        0.01
        >>> monitor.remove()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        writer: ScalarWriter | None = None,
        *,
        every: int = 100,
        max_relative_step: float | None = None,
        first_step: int = 1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer is of type {type(optimizer).__name__}; it must be a torch.optim.Optimizer")
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise ValueError(f"writer is {writer!r}; it must be None or have a method add_scalar, as a SummaryWriter")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is {every!r}; it must be an integer at least 1")
        if isinstance(first_step, bool) or not isinstance(first_step, int):
            raise ValueError(f"first_step is {first_step!r}; it must be an integer")
        if max_relative_step is not None:
            check_number("max_relative_step", max_relative_step, above=0)
        self.relative_steps: dict[str, float] = {}
        """By parameter name, of the last watched step; NaN for layers of zeros, inf where the step was not finite."""
        self._optimizer, self._writer = optimizer, writer
        self._every, self._bound = every, max_relative_step
        self._first = self._step = first_step
        self._before: list[tuple[Tensor, Tensor]] = []
        """The parameters of a watched step, and copies of them from before it."""
        self._warned = False
        self._handles = [
            optimizer.register_step_pre_hook(self._look_before),
            optimizer.register_step_post_hook(self._look_after),
        ]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _watched(self) -> bool:
        return (self._step - self._first) % self._every == 0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _look_before(self, *_: Any) -> None:
        watched = self._watched() and self._bound is not None
        self._before = [(p, p.detach().clone()) for p in self._parameters()] if watched else []

    @torch.no_grad()
    def _look_after(self, *_: Any) -> None:
        step = self._step
        watched, before = self._watched(), self._before
        self._step += 1
        self._before = []
        if not watched:
            return
        curves: dict[str, Tensor] = {}
        ratios = getattr(self._optimizer, "trust_ratios", None)
        if ratios is not None and self._writer is not None:
            curves |= {
                f"trust_ratio/{tag}": value for name, some in ratios().items() for tag, value in _each(name, some)
            }
        if self._bound is not None:
            names = parameter_names(self._optimizer.param_groups)
            name_of = {id(p): name for p, name in zip(self._parameters(), names, strict=True)}
            curves |= {
                f"relative_step/{name_of[id(p)]}": _relative_step(old, p) for p, old in before if id(p) in name_of
            }
        values = dict(zip(curves, _on_host(list(curves.values())), strict=True))
        if self._writer is not None:
            for tag, value in values.items():
                if math.isfinite(value):
                    self._writer.add_scalar(tag, value, step)
        if self._bound is not None:
            start = "relative_step/"
            self.relative_steps = {
                tag.removeprefix(start): value for tag, value in values.items() if tag.startswith(start)
            }
            self._warn(step)

    def _warn(self, step: int) -> None:
        assert self._bound is not None
        beyond = {name: value for name, value in self.relative_steps.items() if value > self._bound}
        if not beyond or self._warned:
            return
        self._warned = True
        name = max(beyond, key=lambda name: beyond[name])
        others = f", and {len(beyond) - 1} more layers exceed it" if len(beyond) > 1 else ""
        warnings.warn(
            f"in step {step} the layer {name} moved by {beyond[name]:.3g} times its norm, more than the bound of "
            f"{self._bound:g}{others}; a smaller rate or a longer warm-up may be needed (told once)",
            RuntimeWarning,
            stacklevel=5,  # this, two of ours, the wrapper that calls them, the caller of step
        )


def _each(name: str, ratios: Tensor) -> list[tuple[str, Tensor]]:
    if ratios.numel() == 1:
        return [(name, ratios)]
    directions, blocks = ratios.shape
    return [(f"{name}[{d},{b}]", ratios[d, b]) for d in range(directions) for b in range(blocks)]


def _relative_step(before: Tensor, after: Tensor) -> Tensor:
    """Return the length of the step over the norm of the weights: NaN for weights of zeros, inf if it is not finite."""
    if before.numel() == 0:
        return torch.full((), math.nan, dtype=torch.float64, device=before.device)
    wide = torch.complex128 if before.is_complex() else torch.float64
    size = whole(torch.linalg.vector_norm(before, dtype=wide))
    length = whole(torch.linalg.vector_norm(before.to(wide).sub_(after), dtype=wide))
    finite = torch.where(length.isfinite(), length / size, math.inf)
    return torch.where(size == 0, math.nan, finite)


def _on_host(values: list[Tensor]) -> list[float]:
    if not values:
        return []
    device = values[0].device
    return torch.stack([value.reshape(()).to(device, torch.float64) for value in values]).tolist()
