"""Who may watch a run without touching it: the protocol, TensorBoard, and the progress display of a terminal."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Observer(Protocol):
    """Receives each line of the ledger when it is written, on the first rank only."""

    def start(self, first_step: int, steps: int) -> None:
        """Training begins after ``first_step`` steps and ends after ``steps``."""
        ...

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """A line was written to the ledger."""
        ...

    def say(self, sentence: str) -> None:
        """Something happened that a person wants to read at once."""
        ...

    def finish(self) -> None:
        """Training has ended, for whatever reason."""
        ...


class TensorBoard:
    """Sends losses, learning rate, gradient norm, trust ratios and evaluations to ``tensorboard/``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def start(self, first_step: int, steps: int) -> None:
        """Open the event file; events of a later step than the first, left by a killed run, are marked as void."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1)

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send the numbers of a line."""
        step = fields["step"]
        if kind == "train":
            scalars = {"loss": fields["loss"], "lr": fields["lr"], "grad_norm": fields["grad_norm"]}
            scalars |= {f"loss/{name}": value for name, value in fields["losses"].items()}
            rates = ("samples_per_second", "flops_per_second", "utilisation")
            scalars |= {name: fields[name] for name in rates if name in fields}
        elif kind == "eval":
            scalars = {f"held_out/{name}": value for name, value in fields["metrics"].items()}
            scalars["held_out/loss"] = fields["loss"]
        elif kind == "layers":
            scalars = {f"trust_ratio/{name}": value for name, value in fields["ratios"].items() if value is not None}
        else:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def say(self, sentence: str) -> None:
        """Nothing: sentences are for the terminal."""

    def finish(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Display:
    """A progress bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self._between = seconds_between_lines
        self._bar: Progress | None = None
        self._task: Any = None
        self._steps = 0
        self._first_step = 0  # of the stage, whose pace tells how long the rest takes
        self._began = self._last_line = time.monotonic()

    def start(self, first_step: int, steps: int) -> None:
        """Show where the run stands."""
        self._first_step, self._steps = first_step, steps
        self._began = time.monotonic()
        self._last_line = self._began - self._between
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}  lr {task.fields[lr]}  {task.fields[rate]}/s"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=first_step, loss="-", lr="-", rate="-")

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Advance at each step; print evaluations, stages and skipped steps."""
        if kind == "train":
            self._step(fields)
        elif kind == "eval":
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in fields["metrics"].items())
            self.say(f"step {fields['step']}  held-out loss {fields['loss']:.4f}  {metrics}")
        elif kind == "stage":
            self._first_step, self._began = fields["step"], time.monotonic()
            self.say(f"stage {fields['stage']} begins after step {fields['step']}, moments {fields['moments']}")
        elif kind == "skip":
            self.say(f"step {fields['step']} skipped: {fields['tensor']} is not finite ({fields['in_a_row']} in a row)")

    def _step(self, fields: Mapping[str, Any]) -> None:
        loss = "not finite" if fields["loss"] is None else f"{fields['loss']:.4f}"
        lr, rate = f"{fields['lr']:.3g}", f"{fields['samples_per_second']:.4g} samples"
        if self._bar is not None:
            stage = f"stage {fields['stage']}"
            self._bar.update(self._task, completed=fields["step"], description=stage, loss=loss, lr=lr, rate=rate)
            return
        now = time.monotonic()
        if now - self._last_line >= self._between or fields["step"] == self._steps:
            self._last_line = now
            done = fields["step"] - self._first_step
            left = (now - self._began) / done * (self._steps - fields["step"])
            self.say(
                f"step {fields['step']}/{self._steps}  stage {fields['stage']}  loss {loss}  lr {lr}  "
                f"{rate}/s  {left:.0f} s left"
            )

    def say(self, sentence: str) -> None:
        """Print one sentence above the bar."""
        self._console.print(sentence, markup=False, soft_wrap=True)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
