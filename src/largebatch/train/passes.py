"""The forward and backward passes of a step on one rank: from microbatches to gradients and sums of losses."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from largebatch import counter_random
from largebatch.train.distributed import World
from largebatch.train.gradient_noise import Detail, GradientNoise
from largebatch.train.parallel import SharedModel
from largebatch.train.step_data import LoadedMicrobatch, moved
from largebatch.train.step_statistics import left_out
from largebatch.train.task import Task

_DROPOUT = 2  # the stream number of the seeds drawn here


class Passes:
    """Runs a task's loss over microbatches and back-propagates it."""

    def __init__(
        self,
        task: Task,
        shared: SharedModel,
        world: World,
        autocast: torch.autocast,
        seed: int,
        noise: GradientNoise,
    ) -> None:
        """Take what every pass needs; ``noise`` is shown the gradient of each microbatch."""
        self._task, self._shared, self._world, self._autocast = task, shared, world, autocast
        self._seed, self._noise = seed, noise

    def accumulate(
        self,
        stage: int,
        step: int,
        microbatches: Sequence[LoadedMicrobatch],
        targets: Mapping[str, float],
        *,
        noise: Detail,
    ) -> list[float]:
        """Back-propagate all microbatches of this rank; return its sums S_k, and what the noise has gathered.

        Args:
            stage: number of the stage.
            step: of the stage.
            microbatches: of this rank.
            targets: N_k, over all microbatches of all ranks.
            noise: how much of it is to be told.
        """
        weights, model = self._task.weights, self._shared.model
        scales = {term: self._world.ranks * weights[term] / targets[term] if targets[term] else 0.0 for term in weights}
        totals = torch.zeros(len(weights), dtype=torch.float64, device=self._world.device)
        model.train()
        self._noise.begin(noise)
        for position, micro in enumerate(microbatches):
            self._set_generators(stage, step, micro.first_position)
            last = position + 1 == len(microbatches)
            with self._shared.exchanging(last), self._noise.watching(micro.samples):
                with self._autocast, nullcontext() if micro.counted else left_out(model):
                    sums = self._task.loss(self._shared.runs, moved(micro.batch, self._world.device))
                terms = [sums[term] * (scales[term] if micro.counted else 0.0) for term in weights]
                torch.stack(terms).sum().backward()
            if micro.counted:
                totals += torch.stack([sums[term].detach().double() for term in weights])
        return torch.cat([totals, self._noise.gathered()]).tolist()

    def discarded(self, micro: LoadedMicrobatch, model: nn.Module) -> None:
        """Run forward and backward over a microbatch, and throw the gradients away."""
        with self._autocast:
            sums = self._task.loss(model, moved(micro.batch, self._world.device))
        torch.stack(list(sums.values())).sum().backward()
        model.zero_grad(set_to_none=True)

    def _set_generators(self, stage: int, step: int, first_position: int) -> None:
        seed = counter_random.key(self._seed, _DROPOUT, stage, step, first_position) >> 1
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, for a millisecond
        if self._world.device.type == "cuda":
            torch.cuda.manual_seed(seed)
