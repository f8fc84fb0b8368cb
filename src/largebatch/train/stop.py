"""SIGTERM and Ctrl-C as a wish that the loop fulfils between two steps, when everything can be saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.wished = False


@contextmanager
def listen() -> Iterator[StopWish]:
    """Turn the first SIGTERM or SIGINT into a wish; a second one has its usual effect at once."""
    wish = StopWish()
    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame: FrameType | None) -> None:
        wish.wished = True
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, receive)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
