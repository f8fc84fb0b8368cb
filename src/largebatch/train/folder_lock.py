"""One process at a time writes to a run's folder.

The first rank holds a record lock of POSIX on a file in it. The operating system lets go of such a lock when its
process dies, by kill -9 too; unlike `flock` it is not handed on to workers that are forked, and it holds over NFS.
"""

import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.train.run import Run
from largebatch.train.run_record import LOCK, claim_folder

PATIENCE_SECONDS = 10.0
"""For a process that is just ending, whose folder the next one is given at once."""

_PAUSE_SECONDS = 0.2
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_HELD = (errno.EACCES, errno.EAGAIN)


class FolderHeld(InputError):
    """Another process is writing to the folder."""


@contextmanager
def claimed(
    folder: Path,
    run: Run[Any, Any],
    resume: bool,
    say: Callable[[str], None],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[None]:
    """Keep a folder for this process, having checked that the run may write to it; see `claim_folder`.

    Raises:
        InputError: the run may not, or another process is writing there, a `FolderHeld`.
    """
    claim_folder(folder, run, resume)
    made = not folder.exists()
    try:
        with locked(folder, say, patience_seconds):
            claim_folder(folder, run, resume)  # again: while we waited, another may have begun a run here
            yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()  # only if nothing has been written


@contextmanager
def locked(folder: Path, say: Callable[[str], None], patience_seconds: float) -> Iterator[None]:
    """Hold a folder's lock, whose file is there meanwhile.

    Raises:
        FolderHeld: another process still has it after that time.
        InputError: the folder cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        say(f"this system has no record locks: see to it that one run at a time writes to {folder}")
        yield
        return
    path, until = folder / LOCK, time.monotonic() + patience_seconds
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(path, held):
                break
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                say(f"the file system of {folder} has no locks: see to it that one run at a time writes there")
                break
            if error.errno not in _HELD:
                os.close(held)
                raise InputError(f"{folder} cannot be locked: {error.strerror}") from error
            if time.monotonic() > until:
                holder = os.read(held, 200).decode(errors="replace").strip() or "another process"
                os.close(held)
                raise FolderHeld(
                    f"{folder} is being written by {holder}: wait for its end or stop it, or name another folder"
                ) from None
            time.sleep(_PAUSE_SECONDS)  # POSIX has no lock that waits for a limited time
        os.close(held)
    try:
        os.ftruncate(held, 0)
        os.write(held, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


def _is_file(path: Path, held: int) -> bool:
    """Return whether an open file still has its name; one that let go of the lock has removed it."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(held)
    return (named.st_ino, named.st_dev) == (own.st_ino, own.st_dev)
