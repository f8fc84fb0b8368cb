"""The pool of lean workers: order, bounded reading ahead, failures, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import worker_functions

from alive import is_alive
from largebatch.errors import InputError
from largebatch.text.processes import WorkerDied, WorkerPool, usable_cores


def test_results_come_in_the_order_of_the_tasks() -> None:
    with WorkerPool(3) as pool:
        tasks = [(number, (number,) if number != 4 else None) for number in range(9)]
        results = list(pool.map(worker_functions.double, tasks))
    assert results == [(number, 2 * number if number != 4 else None) for number in range(9)]


def test_tasks_are_read_ahead_by_three_a_worker_and_no_more() -> None:
    read = 0

    def tasks() -> Iterator[tuple[None, tuple[int]]]:
        nonlocal read
        for number in range(50):
            read += 1
            yield None, (number,)

    with WorkerPool(2) as pool:
        for taken, _ in enumerate(pool.map(worker_functions.double, tasks())):
            assert read <= taken + 6


def test_a_worker_starts_without_pytorch_and_with_one_thread() -> None:
    with WorkerPool(1) as pool:
        modules = pool.submit(worker_functions.loaded_modules).result()
        assert "largebatch.errors" in modules
        assert not any(name.split(".")[0] == "torch" for name in modules)
        assert pool.submit(worker_functions.variable, "TOKENIZERS_PARALLELISM").result() == "false"
    with WorkerPool(1, {"TOKENIZERS_PARALLELISM": "true"}) as pool:
        assert pool.submit(worker_functions.variable, "TOKENIZERS_PARALLELISM").result() == "true"


def test_what_a_worker_prints_does_not_stand_among_its_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(1) as pool:
        assert [pool.submit(worker_functions.noisy, "text").result() for _ in range(3)] == ["text"] * 3
    assert capfd.readouterr().out == ""


def test_processes_start_when_needed_and_none_is_left() -> None:
    with WorkerPool(4) as pool:
        first = pool.submit(worker_functions.process_id).result()
        assert pool.submit(worker_functions.process_id).result() == first  # an idle one is used again
        assert first != os.getpid()
        assert is_alive(first)
    assert not is_alive(first)


def test_the_failure_of_the_first_task_is_raised_whatever_the_timing() -> None:
    # 3 fails later than 6 and 9 do; the reader's own complaint comes last of all
    def tasks() -> Iterator[tuple[None, tuple[int]]]:
        for number in range(1, 8):
            yield None, (number,)
        raise InputError("the reader found a fault")

    with WorkerPool(3) as pool, pytest.raises(InputError, match=r"^3 is a multiple"):
        list(pool.map(worker_functions.refuse, tasks()))


def test_the_readers_failure_is_raised_when_all_tasks_are_good() -> None:
    def tasks() -> Iterator[tuple[None, tuple[int]]]:
        yield None, (1,)
        raise InputError("the reader found a fault")

    with WorkerPool(2) as pool, pytest.raises(InputError, match=r"^the reader found a fault"):
        list(pool.map(worker_functions.refuse, tasks()))


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError: of ours"):
            pool.submit(worker_functions.fail).result()
        assert pool.submit(worker_functions.double, 4).result() == 8  # and the worker lives on


def test_a_worker_that_dies_is_reported() -> None:
    with WorkerPool(1) as pool, pytest.raises(WorkerDied, match="status 9"):
        pool.submit(worker_functions.leave).result()


def test_leaving_the_block_ends_a_busy_worker() -> None:
    with WorkerPool(1) as pool:
        worker = pool.submit(worker_functions.process_id).result()
        waiting = pool.submit(worker_functions.wait, 10_000)
        while not waiting.running():
            time.sleep(0.01)
    assert not is_alive(worker)
    assert isinstance(waiting.exception(), WorkerDied)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import worker_functions\n"
        "from largebatch.text.processes import WorkerPool\n"
        "pool = WorkerPool(2)\n"
        "print(pool.submit(worker_functions.process_id).result(), flush=True)\n"
        "pool.submit(worker_functions.wait, 600).result()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(200):
        if not is_alive(worker):
            break
        time.sleep(0.1)
    assert not is_alive(worker)


def test_usable_cores() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
