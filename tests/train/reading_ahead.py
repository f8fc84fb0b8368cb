"""Reads ahead by two processes and prints their numbers and that of their fork server, until it is killed."""

import os
import time
from typing import Any

from torch.utils.data import Dataset

from largebatch.train.step_data import load


class Numbers(Dataset[Any]):
    """The process that reads each."""

    def __getitem__(self, place: int) -> tuple[int, int]:
        return os.getpid(), os.getppid()


if __name__ == "__main__":
    found: set[int] = set()
    for of_worker in load(Numbers(), range(10**9), 2):
        found.update(of_worker)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if len(found) == 3:
            print(*found, flush=True)
            time.sleep(600)
