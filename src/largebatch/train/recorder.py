"""What a run writes down while it goes on: lines of the ledger, which its observers see too."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.train.ledger import Ledger
from largebatch.train.observers import Observer


class Recorder:
    """The ledger and the observers, on the first rank; on the others it is never opened and does nothing.

    A line that cannot be written raises nothing: the first rank alone would end, and the others in the middle of an
    exchange with it. It becomes the ``failure``, which all ranks tell each other of at their next exchange.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        """Take who may watch."""
        self.failure: InputError | None = None
        self.synced_bytes = 0
        self._observers = list(observers)
        self._ledger: Ledger | None = None

    def open(self, path: Path, keep_bytes: int) -> None:
        """Open the ledger, keeping its first bytes."""
        self._ledger = Ledger(path, keep_bytes=keep_bytes)

    def start(self, first_step: int, steps: int) -> None:
        """Tell the observers where training begins and ends."""
        for observer in self._observers:
            observer.start(first_step, steps)

    def record(self, kind: str, fields: dict[str, Any]) -> None:
        """Write a line and show it, unless one before could not be written."""
        if self._ledger is None or self.failure is not None:
            return
        try:
            self._ledger.write(kind, **fields)
            for observer in self._observers:
                observer.record(kind, fields)
        except InputError as error:
            self.failure = error
        except OSError as error:
            self.failure = InputError(f"{self._ledger.path.parent} cannot be written: {error.strerror or error}")

    def say(self, sentence: str) -> None:
        """Tell a person."""
        for observer in self._observers:
            observer.say(sentence)

    def sync(self) -> None:
        """Force the ledger to the disk, and take down its length.

        Raises:
            InputError: if that cannot be done, or a line before could not be written.
        """
        if self.failure is not None:
            raise self.failure
        if self._ledger is not None:
            self.synced_bytes = self._ledger.sync()

    def close(self) -> None:
        """Let go of the files; what could not be written was said before."""
        with suppress(OSError):
            for observer in self._observers:
                observer.finish()
        with suppress(OSError):
            if self._ledger is not None:
                self._ledger.close()
