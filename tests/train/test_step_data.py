"""How batches get onto a device."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from largebatch.train.step_data import moved


class Recorded:
    """Stands in for a tensor and notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def pin_memory(self) -> "Recorded":
        self.done.append("pinned")
        return self

    def to(self, device: Any, non_blocking: bool) -> "Recorded":
        self.done.append(f"to {device}{' without waiting' if non_blocking else ''}")
        return self


@pytest.mark.parametrize(
    ("device", "done"), [("cuda:0", ["pinned", "to cuda:0 without waiting"]), ("cpu", ["to cpu without waiting"])]
)
def test_the_host_waits_for_no_copy_to_a_gpu(device: str, done: list[str]) -> None:
    tensor = Recorded()
    moved({"a": cast(Tensor, tensor)}, torch.device(device))
    assert tensor.done == done
