"""A network and labelled examples of one's own: the shortest way to train them with any recipe, batch and study.

>>> from dataclasses import dataclass
>>> import torch
>>> from largebatch.classification import Classification
>>> @dataclass(frozen=True, kw_only=True)
... class Signs(Classification):
...     def network(self):
...         return torch.nn.Linear(2, 2)
...     def examples(self):
...         x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
...         y = (x[:, 0] > 0).long()
...         return x[:80], y[:80], x[80:], y[80:]
>>> Signs().summarise({"loss": 2.0, "right": 3.0, "count": 4.0})
(0.5, {'accuracy': 0.75})
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from largebatch.errors import InputError
from largebatch.stage_view import StageView

Examples = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Pairs:
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        _, index = sample
        return self.x[index], self.y[index]


@dataclass(frozen=True, kw_only=True)
class Classification(ABC):
    """A task of `largebatch.train`: cross-entropy over classes, judged by the accuracy on held-out examples.

    A subclass is a frozen dataclass of its options and has the two methods below. Examples lie in memory.
    """

    @abstractmethod
    def network(self) -> nn.Module:
        """Return a network that maps x [n, ...] to logits [n, classes]; PyTorch's generator has been seeded."""

    @abstractmethod
    def examples(self) -> Examples:
        """Return x [n, ...] and class numbers y [n], int64, for training, and the same that are held out."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The one term of the loss."""
        return {"class": 1.0}

    def check(self, stages: Sequence[StageView]) -> None:
        """Raise InputError for examples that are none."""
        x, y, held_x, held_y = _held(self)
        for part, inputs, classes in (("training", x, y), ("held-out", held_x, held_y)):
            if len(inputs) != len(classes) or not len(classes):
                raise InputError(
                    f"there are {len(inputs)} {part} inputs and {len(classes)} classes, allowed are as many, 1 or more"
                )
            if classes.dtype != torch.int64 or classes.ndim != 1 or int(classes.min()) < 0:
                raise InputError(
                    f"{part} classes are {classes.dtype} {list(classes.shape)}, allowed are int64 [n] from 0 up"
                )

    def fingerprint(self) -> str:
        """Return what identifies the examples."""
        told = hashlib.sha256()
        for tensor in _held(self):
            told.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            told.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return told.hexdigest()

    def build_model(self, seed: int) -> nn.Module:
        """Return the network, the same for the same seed; the generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()

    def dataset(self, stage: StageView, seed: int) -> _Pairs:
        """Return the training examples."""
        x, y, _, _ = _held(self)
        return _Pairs(x, y)

    def evaluation_dataset(self, stage: StageView, seed: int) -> _Pairs:
        """Return those held out."""
        _, _, x, y = _held(self)
        return _Pairs(x, y)

    def collate(self, samples: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Stack examples."""
        return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the examples of a microbatch."""
        return {"class": len(batch["y"])}

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Return the same."""
        return len(batch["y"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies."""
        return {"class": functional.cross_entropy(model(batch["x"]).float(), batch["y"], reduction="sum")}

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over a microbatch."""
        logits = model(batch["x"]).float()
        return {
            "loss": functional.cross_entropy(logits, batch["y"], reduction="sum"),
            "right": (logits.argmax(1) == batch["y"]).sum(),
            "count": torch.tensor(len(batch["y"])),
        }

    def summarise(self, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the mean loss and the accuracy."""
        return sums["loss"] / sums["count"], {"accuracy": sums["right"] / sums["count"]}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights as model.safetensors."""
        from safetensors.torch import save_model

        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / "model.safetensors"))


@lru_cache(maxsize=2)
def _held(task: Classification) -> Examples:
    return task.examples()
