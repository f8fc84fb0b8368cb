"""Lists of layers that kernels take in one call, and what of them is completed over processes.

A layer that is spread over processes is in the call of each of them, with or without elements there, so that the rows
of what is exchanged are the same layers everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.optim.gathering import Member, block_count, layers_here
from largebatch.optim.gradient_norm import on
from largebatch.optim.kernels.contract import Layers, Phases
from largebatch.optim.shards import Part, Spread, complete
from largebatch.optim.state_contract import RatiosTaken


@dataclass(slots=True)
class Call:
    """Layers that the kernels take in one call, and where they come from."""

    options: Mapping[str, Any]
    device: torch.device
    phases: Phases
    layers: Layers
    """Those that have elements here."""
    members: list[Member]
    spread: Spread | None = None
    """Over which processes the layers are spread; None if each lies here whole."""
    whole_squares: Tensor | None = None
    """Of spread layers whose gradients are to be normalised: the sums of squares of these, float64 [all layers]."""

    @property
    def clips(self) -> bool:
        """Whether the gradients are clipped."""
        return self.options["max_grad_norm"] is not None

    @property
    def lr(self) -> float | Tensor:
        """The learning rate, on the device if it is a tensor."""
        lr = self.options["lr"]
        return on(self.device, lr.reshape(())) if isinstance(lr, Tensor) else float(lr)

    def taken_lr(self) -> float | Tensor:
        """Return the learning rate, 0 where the step is not taken."""
        keep, lr = self.layers.keep, self.lr
        if keep is None:
            return lr
        given = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=torch.float64, device=keep.device)
        return torch.where(keep, given, 0.0)

    def if_kept(self, scale: Tensor | None) -> Tensor | None:
        """Return a scale of gradients, 1 where the step is not taken: what is not finite is in their norm too."""
        keep = self.layers.keep
        return scale if scale is None or keep is None else torch.where(keep, scale, 1.0)

    def squares(self) -> Tensor:
        """Return the sum of squares of the gradient of each layer that has elements here, float64 [layers]."""
        if self.layers.x:
            return self.phases.squares(self.layers.g)
        return torch.zeros(0, dtype=torch.float64, device=self.device)

    def record(self, ratios: Tensor) -> RatiosTaken:
        """Return the record of the ratios of all layers, NaN where the step is not taken."""
        keep = self.layers.keep
        taken = ratios if keep is None else torch.where(keep, ratios, math.nan)
        return RatiosTaken([member.number for member in self.members], self._blocks(), taken.detach())

    def rows(self) -> list[int] | slice:
        """Return which of all layers have elements here."""
        here = [there for member in self.members for there in layers_here(member, self.options["stacked"])]
        return slice(None) if all(here) else [row for row, there in enumerate(here) if there]

    def of_all_layers(self, here: Tensor) -> Tensor:
        """Return numbers of all layers, zero where a layer has no element here, from those of the others."""
        rows = self.rows()
        if isinstance(rows, slice):
            return here
        values = here.new_zeros(sum(self._blocks()), *here.shape[1:])
        values[rows] = here
        return values

    def _blocks(self) -> list[int]:
        return [block_count(member, self.options["stacked"]) for member in self.members]


class PhaseZero(NamedTuple):
    """What all processes know of the gradients of layers that are spread over them."""

    squares: list[Tensor]
    """Sums of squares of those that are clipped, float64 0-dim."""
    found_inf: Tensor | None


def complete_phase_zero(calls: Sequence[Call], *, normalises: bool, found_inf: Tensor | None) -> PhaseZero:
    """Exchange what phase 0 needs, by one all-reduce for each mesh at most.

    Args:
        calls: all of a step.
        normalises: whether the kernels get gradients of unit norm; then calls are given their `whole_squares`.
        found_inf: 0-dim, zero if all gradients of this process are finite; None if that is not asked.
    """
    spread = [(call, call.spread) for call in calls if call.spread is not None]
    clipped = [Part(over, call.squares().sum()) for call, over in spread if call.clips]
    normalised = [Part(over, call.of_all_layers(call.squares())) for call, over in spread if normalises]
    meshes = {over.mesh: None for _, over in spread if found_inf is not None}
    wide = None if found_inf is None else found_inf.to(torch.float64)
    found = [Part(Spread(mesh, (False,) * mesh.ndim), wide) for mesh in meshes if wide is not None]
    done = complete([*clipped, *normalised, *found])
    for (call, _), squares in zip(spread if normalises else (), done[len(clipped) :], strict=False):
        call.whole_squares = squares
    if found_inf is not None and found:
        found_inf = torch.stack([on(found_inf.device, a) for a in done[-len(found) :]]).sum().to(found_inf.dtype)
    return PhaseZero(done[: len(clipped)], found_inf)


def complete_sums(calls: Sequence[Call], sums: Sequence[Tensor]) -> list[Tensor]:
    """Return what phase 1 has measured, for whole layers: one all-reduce for each mesh, one more for the norm "inf".

    Args:
        calls: of layers that are spread over processes.
        sums: of each, float64 [layers that have elements here, columns].
    """
    done = [call.of_all_layers(here) for call, here in zip(calls, sums, strict=True)]
    for largest in (False, True):
        parts = {
            n: Part(call.spread, done[n])
            for n, call in enumerate(calls)
            # Ratios that are 1 anyway need no sums.
            if call.spread is not None and call.options["adapt"] and (call.options["norm"] == "inf") == largest
        }
        done_now = complete(list(parts.values()), largest=largest)
        for n, whole in zip(parts, done_now, strict=True):
            done[n] = whole
    return done
