"""A task of a few hundred weights with two terms and uneven counts: the engine's tests need nothing larger."""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.counter_random import bits, integers, key, uniform
from largebatch.recipes.optimizers import Lamb
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage
from largebatch.train.task import Batch, SampleId, StageView

WIDTH = 6


class ToyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.values = nn.Linear(16, 3)
        self.pair = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.dropout(self.norm(torch.relu(self.hidden(x))))
        return self.values(state), self.pair(state)


@dataclass(frozen=True)
class ToyData:
    samples: int
    seed: int
    poison_epoch: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, sample: SampleId) -> dict[str, Any]:
        epoch, index = sample
        draw = key(self.seed, epoch, index)
        x = uniform(draw, np.arange(WIDTH)).astype(np.float32)
        if epoch == self.poison_epoch:
            x[0] = np.inf
        return {
            "x": x,
            "y": uniform(key(self.seed, index), np.arange(3)).astype(np.float32),
            "mask": np.arange(3) < 1 + integers(draw, 100, 3),  # one to three targets a sample
            "label": int(bits(key(self.seed, index), 7) & np.uint64(1)),
            "epoch": epoch,
            "index": index,
        }


@dataclass(frozen=True, kw_only=True)
class ToyTask:
    samples: int = 41
    """Samples in the data set."""
    dropout: float = 0.0
    """Probability of dropout."""
    poison_epoch: int = -1
    """Epoch whose inputs are infinite; -1 for none."""
    pause_seconds: float = 0.0
    """Sleep in each training pass, so that a test can strike in the middle of a run."""
    log_samples: str = ""
    """File that receives the samples of every batch; empty for none."""

    @property
    def weights(self) -> Mapping[str, float]:
        return {"value": 1.0, "pair": 0.5}

    def check(self, stages: Sequence[StageView]) -> None:
        pass

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return ToyModel(self.dropout)

    def dataset(self, stage: StageView, seed: int) -> ToyData:
        return ToyData(self.samples, seed, self.poison_epoch)

    def collate(self, samples: Sequence[Any]) -> Batch:
        return {name: torch.as_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"value": int(batch["mask"].sum()), "pair": len(batch["label"])}

    def tokens(self, batch: Batch) -> int:
        return batch["x"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        time.sleep(self.pause_seconds)
        if self.log_samples and model.training:
            with Path(self.log_samples).open("a") as file:
                pairs = zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)
                file.write(" ".join(f"{epoch}:{index}" for epoch, index in pairs) + "\n")
        values, pair = model(batch["x"])
        squares = (values.float() - batch["y"]) ** 2
        return {
            "value": (squares * batch["mask"]).sum(),
            "pair": nn.functional.cross_entropy(pair.float(), batch["label"], reduction="sum"),
        }

    def evaluation_dataset(self, stage: StageView, seed: int) -> ToyData:
        return ToyData(100, seed + 1, -1)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        sums = self.loss(model, batch)
        return {"squares": sums["value"], "count": batch["mask"].sum()}

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        loss = sums["squares"] / sums["count"]
        return loss, {"root": loss**0.5}

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")


def toy(batch: int = 10, steps: int = 12, reset_moments: bool = False, peak_lr: float = 0.02) -> Run[ToyTask, Lamb]:
    """A run of two short stages for tests."""
    return Run(
        task=ToyTask(),
        stages=(
            Stage(
                name="one",
                global_batch_samples=batch,
                steps=steps,
                peak_lr=peak_lr,
                schedule=Schedule(warmup_steps=3),
            ),
            Stage(
                name="two",
                global_batch_samples=max(batch // 2, 1),
                steps=8,
                peak_lr=peak_lr / 2,
                schedule=Schedule(warmup_steps=2, shape="cosine"),
                betas=(0.8, 0.99),
                reset_moments=reset_moments,
            ),
        ),
        optimizer=Lamb(),
        precision="fp32",
        microbatch=4,
        checkpoint_every_steps=3,
        evaluate_every_steps=5,
        layers_every_steps=2,
        gradient_noise_every_steps=1,
    )


def toy_on_a_full_disk() -> Run[ToyTask, Lamb]:
    """The same in a process that cannot write files of more than 3,000 bytes, such as its ledger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    return replace(toy(), checkpoint_every_steps=100)
