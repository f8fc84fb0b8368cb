"""What a training task must offer. A task knows its data, model and loss, and never sees ranks, workers or steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from largebatch.errors import InputError
from largebatch.stage_view import StageView

Batch = dict[str, Tensor]
Sample = Any
SampleId = tuple[int, int]
"""(epoch, index): what a data set is asked for; masks and augmentation depend on it and the seed alone."""


class TaskDataset(Protocol):
    """A map-style data set of constant length.

    It may also offer ``__getitems__`` to build many samples at once, and ``lengths(samples)``, int64 [samples], where
    samples are of different lengths and a batch is padded to its longest.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, sample: SampleId, /) -> Sample: ...


class Task(Protocol):
    """A frozen dataclass of scalars that builds a model and data, and states its loss as sums over counted targets.

    The loss is sum_k w_k S_k / N_k with the sums S_k and counts N_k taken over the *global* batch. The engine
    back-propagates ranks * sum_k w_k S_k / N_k for each microbatch, N_k being the count over all microbatches of
    all ranks: the mean over ranks that DDP and FSDP take then gives exactly the gradient of the global mean, however
    unevenly the targets lie.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight w_k of each term of the loss."""
        ...

    def check(self, stages: Sequence[StageView], /) -> None:
        """Raise ``InputError`` for anything that cannot work, before anything is built or written."""
        ...

    # A task may also offer ``fingerprint() -> str``: what identifies its data beyond its name. A run does not resume
    # on data with another one. And ``flops(batch) -> float``: the operations that the model asks for in a forward and
    # backward pass over a microbatch, for the log. And ``microbatch_multiple: int``: what the samples of a microbatch
    # must be a multiple of, where layers look at several at once.

    def build_model(self, seed: int, /) -> nn.Module:
        """Return the model in float32 on the CPU, the same for the same seed."""
        ...

    def dataset(self, stage: StageView, seed: int, /) -> TaskDataset:
        """Return the training data of a stage."""
        ...

    def collate(self, samples: Sequence[Sample], /) -> Batch:
        """Join the samples of one microbatch."""
        ...

    def counts(self, batch: Batch, /) -> Mapping[str, int]:
        """Return N_k of one microbatch for each term, without a forward pass."""
        ...

    def tokens(self, batch: Batch, /) -> int:
        """Return how many tokens (or pixels' images) of a microbatch are not padding, for the log."""
        ...

    def loss(self, model: nn.Module, batch: Batch, /) -> Mapping[str, Tensor]:
        """Return S_k of one microbatch, float32 scalars that can be differentiated; calls ``model`` exactly once."""
        ...

    def evaluation_dataset(self, stage: StageView, seed: int, /) -> TaskDataset:
        """Return the held-out data; it is always asked for epoch 0."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch, /) -> Mapping[str, Tensor]:
        """Return sums and counts that add up over batches and ranks."""
        ...

    def summarise(self, sums: Mapping[str, float], /) -> tuple[float, Mapping[str, float]]:
        """Turn the summed results of ``evaluate`` into the held-out loss and named metrics."""
        ...

    def export(self, model: nn.Module, folder: Path, /) -> None:
        """Write the model where other libraries can load it (Hugging Face format)."""
        ...


def check_targets(targets: Mapping[str, float], step: int) -> None:
    """Raise InputError if nothing in the global batch of the step after this one counts, so that nothing is learned."""
    if not any(targets.values()):
        raise InputError(f"nothing in the batch of step {step + 1} counts for the loss ({', '.join(targets)})")
