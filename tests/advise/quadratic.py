"""A quadratic with a chosen Hessian and chosen noise, as a task: all that training does on it can be computed.

A sample s has the loss 1/2 (x - xi_s)' H (x - xi_s), H = diag(h), xi_s independent and normal with variances v. So
g = H x, Sigma = H diag(v) H, and with SGD each coordinate goes its own way:

    E x   <-  (1 - eta h) E x
    Var x <-  (1 - eta h)^2 Var x + eta^2 h^2 v / B
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from largebatch.recipes.optimizers import Momentum
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage
from largebatch.train.task import Batch, SampleId, StageView

Array = NDArray[np.float64]
HESSIAN: Array = np.geomspace(1.0, 0.02, 12)
VARIANCES: Array = np.geomspace(2.5, 100.0, 12)
START: Array = np.full(12, 3.0)
HELD_OUT = 4000


class Place(nn.Module):
    """Where the minimiser stands, in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(START[:5], dtype=torch.float32))
        self.second = nn.Parameter(torch.tensor(START[5:], dtype=torch.float32))

    def forward(self, xi: Tensor) -> Tensor:
        return torch.cat([self.first, self.second]) - xi


@dataclass(frozen=True)
class Draws:
    """Normal numbers of each sample and epoch."""

    seed: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, sample: SampleId) -> Array:
        return np.random.default_rng((self.seed, *sample)).normal(size=12) * np.sqrt(VARIANCES)


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """The task."""

    @property
    def weights(self) -> Mapping[str, float]:
        return {"square": 1.0}

    def check(self, stages: Sequence[StageView]) -> None:
        pass

    def build_model(self, seed: int) -> nn.Module:
        return Place()

    def dataset(self, stage: StageView, seed: int) -> Draws:
        return Draws(seed, 1_000_000)

    def collate(self, samples: Sequence[Any]) -> Batch:
        return {"xi": torch.tensor(np.stack(samples), dtype=torch.float32)}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"square": len(batch["xi"])}

    def tokens(self, batch: Batch) -> int:
        return len(batch["xi"])

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"square": (model(batch["xi"]).square() * torch.tensor(HESSIAN, dtype=torch.float32)).sum() / 2}

    def evaluation_dataset(self, stage: StageView, seed: int) -> Draws:
        return Draws(10**6, HELD_OUT)  # the same for all seeds

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {**self.loss(model, batch), "count": torch.tensor(len(batch["xi"]))}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        return sums["square"] / sums["count"], {}

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")


def quadratic(batch: int = 16, steps: int = 60, lr: float = 0.3) -> Run[Quadratic, Momentum]:
    """SGD on the quadratic at one rate."""
    stage = Stage(
        name="only",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=lr,
        schedule=Schedule(shape="constant"),
    )
    return Run(
        task=Quadratic(),
        stages=(stage,),
        optimizer=Momentum(momentum=0.0, weight_decay=0.0),
        precision="fp32",
        microbatch=4,
        checkpoint_every_steps=20,
        keep_checkpoints=9,
        evaluate_every_steps=20,
    )


def expected_loss(mean: Array, variance: Array, held_out_mean: Array, constant: float) -> float:
    """Return the held-out loss of a place that is drawn with such means and variances.

    Args:
        mean: E x.
        variance: Var x.
        held_out_mean: of the held-out xi, which are no more than HELD_OUT draws.
        constant: their 1/2 E xi' H xi, less that of the mean.
    """
    return float((HESSIAN * ((mean - held_out_mean) ** 2 + variance)).sum() / 2 + constant)


def gone_on(mean: Array, variance: Array, lr: float, batch: int, steps: int) -> tuple[Array, Array]:
    """Return E x and Var x after so many steps of SGD."""
    kept = 1 - lr * HESSIAN
    for _ in range(steps):
        mean, variance = kept * mean, kept**2 * variance + (lr * HESSIAN) ** 2 * VARIANCES / batch
    return mean, variance
