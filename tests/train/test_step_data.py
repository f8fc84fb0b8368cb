"""How batches get onto a device, and the processes that read ahead."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from alive import is_alive
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


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_that_read_ahead_end_with_the_one_they_read_for() -> None:
    script = Path(__file__).parent / "reading_ahead.py"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        processes = [int(word) for word in reader.stdout.readline().split()]
        assert len(processes) == 3
        assert all(is_alive(process) for process in processes)
        reader.kill()
    ends = time.monotonic() + 60
    while any(is_alive(process) for process in processes) and time.monotonic() < ends:
        time.sleep(0.05)
    left = [process for process in processes if is_alive(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left
