"""A pool of lean worker processes: they run functions of this package and nothing else.

`multiprocessing` would do the same with two drawbacks. Its children import the parent's main module, which
asks every script for a guard, and through it PyTorch, two seconds and 300 MB a worker that WordPiece has no
use for; and children of its executor outlive a parent that was killed. Here a worker is a fresh interpreter
that talks pickle over its standard input and output, and ends when either closes or its parent is gone.
"""

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from largebatch.errors import InputError

Context = TypeVar("Context")
Result = TypeVar("Result")

# The stand-in keeps `import largebatch.text...` from running the package's own __init__, which imports PyTorch.
_START = """
import pickle, sys, types
folder, parent, sys.path[:] = pickle.load(sys.stdin.buffer)
package = sys.modules["largebatch"] = types.ModuleType("largebatch")
package.__path__ = [folder]
from largebatch.text.processes import serve
serve(parent)
"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENVIRONMENT = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false"}


class WorkerDied(RuntimeError):
    """A worker process ended before it answered, killed perhaps for want of memory."""


class WorkerPool:
    """Up to `workers` processes, started when first needed and killed at the end of the `with` block.

    `environment` is added to that of the workers, which otherwise use one thread each.
    """

    def __init__(self, workers: int, environment: dict[str, str] | None = None) -> None:
        self.workers = workers
        self._environment = {**os.environ, **_ENVIRONMENT, **(environment or {})}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="largebatch-text")
        self._idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()
        self._started: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._started:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._started:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # closing flushes, and nobody reads any more
                        pipe.close()
            process.wait()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Run a module-level function of this package in a worker."""
        return self._threads.submit(self._call, function, arguments)

    def map(
        self,
        function: Callable[..., Result],
        tasks: Iterable[tuple[Context, tuple[Any, ...] | None]],
    ) -> Iterator[tuple[Context, Result | None]]:
        """Yield (context, function(*arguments)) for each task in order, None for a task without arguments.

        At most three tasks a worker are read ahead, so memory stays bounded. What is raised is the failure of
        the first task that fails, whatever the timing.
        """
        pending: deque[tuple[Context, Future[Result] | None]] = deque()

        def take() -> tuple[Context, Result | None]:
            context, future = pending.popleft()
            return context, None if future is None else future.result()

        iterator = iter(tasks)
        while True:
            try:
                context, arguments = next(iterator)
            except StopIteration:
                break
            except InputError:
                while pending:  # an earlier task may have a complaint of its own, which then comes first
                    take()
                raise
            pending.append((context, None if arguments is None else self.submit(function, *arguments)))
            if len(pending) >= 3 * self.workers:
                yield take()
        while pending:
            yield take()

    def _call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function.__module__, function.__name__, arguments), process.stdin, protocol=5)
            process.stdin.flush()
            good, value = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise WorkerDied(f"a worker process ended with status {process.wait()} before it answered") from None
        self._idle.put(process)
        if not good:
            raise value
        return value

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._closed:
                raise WorkerDied("the pool is closed")
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
            )
            self._started.append(process)
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # if it is dead already, the first call says so
            pickle.dump((str(Path(__file__).parents[1]), os.getpid(), sys.path), process.stdin, protocol=5)
        return process


def serve(parent: int) -> None:
    """Answer calls on standard input until it closes; this is the worker's whole life."""
    calls = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever a library prints must not stand among the answers
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                module, name, arguments = pickle.load(calls)
                try:
                    answer = True, getattr(importlib.import_module(module), name)(*arguments)
                except InputError as error:
                    answer = False, error
                except BaseException:
                    answer = False, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
                pickle.dump(answer, answers, protocol=5)
                answers.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
