"""The squared gradient norms of a step's microbatches, layer by layer, taken on the way: see `largebatch.noise_scale`.

A microbatch's gradient exists for a moment, before autograd adds it to those before it. A hook on each parameter is
shown it there, while it lies in the cache; nothing is kept of it but a number, and no pass is added. The step's own
gradient is measured where it lies when all is added up and exchanged. What ranks have gathered is completed in the
exchange of losses that the step makes anyway. A step that is not to be measured has no hooks, and costs nothing: where
a microbatch takes a millisecond in all, the calls for each parameter would be some hundredths of it.

With FSDP2 autograd never sees the parameters in shards but those that were gathered for the pass: these are found when
a block first runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from largebatch.errors import InputError
from largebatch.noise_scale import NoiseEstimate, from_parts
from largebatch.optim.kernels.pieces import squares
from largebatch.optim.shards import is_sharded, local
from largebatch.train.distributed import World

NoiseWish = Literal["auto", "on", "off"]
Detail = Literal["nothing", "whole", "layers"]
"""What a step is to say of its noise."""

_SMALL_ELEMENTS = 1 << 14
"""Gradients of up to so many elements are kept until the microbatch is through, and measured in one call: on a CPU a
call of Python's for each, in the middle of autograd, is most of what small ones cost."""
_PIECE_ELEMENTS = 1 << 18
"""Dot products in float32 of so many elements are good to 1e-6 on a CPU; of 2e7 they are off by 1e-3."""


@dataclass(frozen=True)
class StepNoise:
    """What a step says of its gradient's noise."""

    whole: NoiseEstimate
    layers: dict[str, NoiseEstimate]
    """By parameter; empty where it was not asked for."""

    def whole_fields(self) -> dict[str, float]:
        """Return what a "train" line has of it."""
        return {"gradient_square": self.whole.gradient_square, "covariance_trace": self.whole.covariance_trace}

    def layer_fields(self) -> dict[str, dict[str, float]]:
        """Return what a "layers" line has of it."""
        return {
            "gradient_squares": {name: one.gradient_square for name, one in self.layers.items()},
            "covariance_traces": {name: one.covariance_trace for name, one in self.layers.items()},
        }


def check_measurable(wish: NoiseWish, stage: str, *, parts: int, sorts: bool, repeats: bool) -> None:
    """Raise InputError if the noise of a stage is wanted and cannot be measured; see `GradientNoise.enter`."""
    if wish != "on":
        return
    if sorts:
        raise InputError(
            f"gradient_noise is on, but stage {stage} puts samples of like lengths into one microbatch, which are "
            "no random draws: allowed is auto or off"
        )
    if repeats:
        raise InputError(
            f"gradient_noise is on, but a step of stage {stage} has more samples than the data: allowed is auto or off"
        )
    if parts < 2:
        raise InputError(
            f"gradient_noise is on, but a step of stage {stage} is one microbatch, which has nothing to be compared "
            "with: give a --microbatch of half the batch or less"
        )


class GradientNoise:
    """One rank's part of the measurement."""

    def __init__(self, model: nn.Module, world: World, wish: NoiseWish) -> None:
        """Take the model, cut into parts already where it is shared by parts, and before its first pass."""
        self._world = world
        self._wish: NoiseWish = wish
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._rows = {name: row for row, name in enumerate(self._parameters)}
        self._model = model
        self._hooks: dict[str, RemovableHandle] = {}
        self._held = [list[Tensor]() for _ in self._rows]
        self._norms, self._sums = _Found(), _Found()
        self._squared_sizes = 0.0
        self._measures = self._hooks_wanted = self._watches = False
        self._detail: Detail = "nothing"
        for name, module in model.named_modules() if wish != "off" else ():
            if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's
                module.register_forward_pre_hook(lambda found, _, path=name: self._hook(found, path))

    def enter(self, stage: str, parts: int, *, sorts: bool, repeats: bool = False) -> None:
        """Begin a stage.

        Args:
            stage: its name.
            parts: microbatches of a step, over all ranks.
            sorts: whether they are cut from samples in order of their lengths: such parts are no random draws.
            repeats: whether a step has samples twice, being larger than the data: its parts then depend on each other.

        Raises:
            InputError: the noise is wanted and cannot be measured.
        """
        self._measures = self._wish != "off" and parts > 1 and not sorts and not repeats
        check_measurable(self._wish, stage, parts=parts, sorts=sorts, repeats=repeats)

    def begin(self, detail: Detail) -> None:
        """Forget the step before; of the next one so much is to be told, where the stage can be measured."""
        self._norms, self._sums = _Found(), _Found()
        self._squared_sizes, self._detail = 0.0, detail if self._measures else "nothing"
        self._hooks_wanted = self._detail != "nothing"
        self._hook(self._model, "")

    @contextmanager
    def watching(self, samples: int) -> Iterator[None]:
        """Take the gradients of a microbatch of so many samples."""
        if self._detail == "nothing" or not samples:
            yield
            return
        self._watches = True
        try:
            yield
        finally:
            self._watches = False
        small = [row for row, held in enumerate(self._held) if held]
        if small:
            # Autograd may come to a parameter in several goes, as when blocks that share it are run again.
            whole = [
                held[0] if len(held) == 1 else torch.stack(held).sum(0) for held in map(self._held.__getitem__, small)
            ]
            self._norms.add(small, torch._foreach_norm(whole))
            for row in small:
                self._held[row].clear()
        self._squared_sizes += samples**2

    def gathered(self) -> Tensor:
        """End the step's passes, and return this rank's part, to be summed over ranks and given to `estimate`.

        It is float64, and empty if the step is not measured.
        """
        if self._detail == "nothing":
            return torch.zeros(0, dtype=torch.float64, device=self._world.device)
        self._hooks_wanted = False  # nor by an evaluation before the next step
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()
        for held in self._held:
            held.clear()  # of passes that were not watched
        parts = self._zeros()
        self._norms.add_to(parts, 2)
        self._sums.add_to(parts, 1)
        parts /= self._world.ranks**2  # the loss is multiplied by the ranks, over which DDP averages
        sizes = torch.tensor([self._squared_sizes], dtype=torch.float64, device=parts.device)
        if self._detail == "layers":
            return torch.cat([sizes, parts, self._step_squares()])
        return torch.cat([sizes, parts.sum().view(1)])

    def estimate(self, gathered: list[float], samples: int, grad_norm: float) -> StepNoise | None:
        """Return what all ranks' parts say; None if nothing is measured.

        Args:
            gathered: the sums over ranks.
            samples: of the step.
            grad_norm: of the whole gradient.
        """
        if self._detail == "nothing":
            return None
        sizes, *rest = gathered
        if self._detail == "whole":
            return StepNoise(from_parts(samples, sizes, rest[0], grad_norm**2), {})
        count = len(self._rows)
        each = zip(rest[:count], rest[count:], strict=True)
        layers = {name: from_parts(samples, sizes, *both) for name, both in zip(self._rows, each, strict=True)}
        return StepNoise(from_parts(samples, sizes, sum(rest[:count]), grad_norm**2), layers)

    def _step_squares(self) -> Tensor:
        """Return the squared norm of each layer's gradient, of which ranks with the same have a share each."""
        found = self._zeros()
        for name, p in self._parameters.items():
            if p.grad is not None and (here := local(p.grad)).numel():
                found[self._rows[name]] = squares([here])[0] / self._copies(p.grad)
        return found

    def _copies(self, gradient: Any) -> int:
        if not is_sharded(gradient):
            return self._world.ranks
        whole_on = [placement.is_replicate() for placement in gradient.placements]
        copies = 1
        for dimension, same in enumerate(whole_on):
            copies *= gradient.device_mesh.size(dimension) if same else 1
        return copies

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self._rows), dtype=torch.float64, device=self._world.device)

    def _hook(self, module: nn.Module, path: str) -> None:
        """Watch the parameters of a module that lie here whole, in the passes of a step that is measured."""
        for below, child in module.named_modules() if self._hooks_wanted else ():
            for own, p in child.named_parameters(recurse=False):
                name = ".".join(part for part in (path, below, own) if part)
                if name not in self._rows or name in self._hooks or is_sharded(p):
                    continue
                row = self._rows[name]
                if p.numel() <= _SMALL_ELEMENTS:
                    self._hooks[name] = p.register_hook(self._held[row].append)
                else:
                    self._hooks[name] = p.register_hook(lambda gradient, row=row: self._take(row, gradient))

    def _take(self, row: int, gradient: Tensor) -> None:
        if self._watches:
            pieces = _squares(gradient)
            self._sums.add([row] * len(pieces), pieces)


class _Found:
    """Numbers of layers, 0-dim on the device, and whose they are."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._values: list[Tensor] = []

    def add(self, rows: Sequence[int], values: Sequence[Tensor]) -> None:
        """Take some in."""
        self._rows += rows
        self._values += values

    def add_to(self, totals: Tensor, power: int) -> None:
        """Add this power of each to the total of its layer, float64."""
        if self._rows:
            values = torch.stack(self._values).to(totals.dtype).pow(power)
            totals.index_add_(0, torch.tensor(self._rows, device=totals.device), values)


def _squares(a: Tensor) -> list[Tensor]:
    """Return the sums of squares of pieces of a gradient, 0-dim."""
    if a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64):
        flat = a.permute(sorted(range(a.ndim), key=a.stride, reverse=True))  # as it lies in memory
        if flat.is_contiguous():
            return [torch.dot(piece, piece) for piece in flat.view(-1).split(_PIECE_ELEMENTS)]
    return [torch.linalg.vector_norm(a, dtype=torch.promote_types(a.dtype, torch.float32)).square()]
