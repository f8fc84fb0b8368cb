"""Files that are whole or not there: written aside, synced, renamed."""

import os
from pathlib import Path


def write_aside(path: Path, text: str) -> None:
    """Write a UTF-8 text file at its place only once it is whole; until then it is PATH.partial.

    Raises:
        OSError: the disk does not take it. What stood at the place stands there still, and nothing else is left.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
