"""Processes of one thread that meet as ranks, as torchrun would start them, for what is measured over several."""

import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from largebatch.bert.pretraining import BertPretraining
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage


def short_run(
    run: Run[BertPretraining, Any], corpus: Path, *, batch: int, steps: int, length: int, held_out_pairs: int
) -> Run[BertPretraining, Any]:
    """Return a run in float32 with one stage of a few steps, evaluated at its end alone on few pairs."""
    stage = Stage(
        name="measured",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=1e-3,
        schedule=Schedule(warmup_steps=1),
        task_options={"sequence_length": length, "max_predictions": length * 10 // 64},
    )
    task = replace(run.task, corpus=str(corpus), held_out_pairs=held_out_pairs)
    return replace(run, task=task, stages=(stage,), precision="fp32", evaluate_every_steps=0)


def run_ranks(action: Callable[..., None], ranks: int, *words: Any) -> None:
    """Run ``action(rank, *words)`` in each of several processes that find each other by `join_world`.

    Raises:
        RuntimeError: if one of them fails.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    run_beside([(action, (rank, *words), (rank, ranks, port)) for rank in range(ranks)])


def run_beside(each: list[tuple[Callable[..., None], tuple[Any, ...], tuple[int, int, int] | None]]) -> None:
    """Run functions with their arguments side by side, as (rank, ranks, port) of a world or, with None, alone.

    Raises:
        RuntimeError: if one of them fails.
    """
    context = mp.get_context("spawn")
    processes = [context.Process(target=_started, args=one) for one in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"the processes ended with {[process.exitcode for process in processes]}, wanted is 0")


def _started(action: Callable[..., None], words: tuple[Any, ...], place: tuple[int, int, int] | None) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    if place is not None:
        rank, ranks, port = (str(number) for number in place)
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    action(*words)
