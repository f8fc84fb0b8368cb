"""Functions that the tests of the worker pool run in its workers."""

import os
import sys
import time

from largebatch.errors import InputError


def double(number: int) -> int:
    """Return twice the number, the sooner the larger it is."""
    time.sleep(0.02 * max(0, 5 - number))
    return 2 * number


def process_id() -> int:
    """Return the worker's process id."""
    return os.getpid()


def loaded_modules() -> list[str]:
    """Return what the worker has imported."""
    return sorted(sys.modules)


def variable(name: str) -> str | None:
    """Return a variable of the worker's environment."""
    return os.environ.get(name)


def noisy(text: str) -> str:
    """Print to standard output in two ways, then return the text."""
    print(text, flush=True)
    os.write(1, text.encode())
    return text


def refuse(number: int) -> int:
    """Refuse multiples of three, the later the smaller they are."""
    if number % 3 == 0:
        time.sleep(0.05 * max(0, 7 - number))
        raise InputError(f"{number} is a multiple of three")
    return number


def fail() -> None:
    """Fail as a programming error does."""
    raise ZeroDivisionError("of ours")


def leave() -> None:
    """End the worker in the middle of a call."""
    os._exit(9)


def wait(seconds: float) -> None:
    """Keep the worker busy."""
    time.sleep(seconds)
