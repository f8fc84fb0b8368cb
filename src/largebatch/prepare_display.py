"""The progress of a preparation: a bar on a terminal, plain lines every few seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from largebatch.text.prepare import Progress

_SAID = {"reused": "already prepared", "vocabulary": "training the vocabulary", "encoding": "encoding"}
_SECONDS_BETWEEN_LINES = 10.0


class PrepareDisplay:
    """Receives each ``Progress`` of a preparation; a context manager that takes its bar away at the end."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("reading", total=None)
        self._phase = ""
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> "PrepareDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far the preparation has come."""
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._began = progress.phase, now
            self._bar.reset(self._task, description=_SAID[progress.phase], total=progress.total_bytes)
            if not self._console.is_terminal:
                self._console.print(_SAID[progress.phase], soft_wrap=True)
        self._bar.update(self._task, completed=progress.read_bytes, total=progress.total_bytes)
        if not self._console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._console.print(self._line(progress, now - self._began), soft_wrap=True)

    def _line(self, progress: Progress, seconds: float) -> str:
        rate = progress.read_bytes / max(seconds, 1e-9)
        text = f"{_SAID[progress.phase]}: {progress.read_bytes / 1e6:,.1f} MB read, {rate / 1e6:,.1f} MB/s"
        if progress.total_bytes and rate:
            text += f", {(progress.total_bytes - progress.read_bytes) / rate:,.0f} s left"
        return text
