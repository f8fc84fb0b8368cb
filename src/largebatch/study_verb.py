"""`largebatch study`: workers side by side on one study, what they bring to an end told as it comes."""

import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from largebatch.errors import InputError, check_at_least
from largebatch.recipes.catalogue import build_run
from largebatch.recipes.studies import build_study
from largebatch.study.claims import SharedStudy
from largebatch.study.ledger import STUDY, Trial, is_study, read_study, read_trials, write_study, write_trials
from largebatch.study.plan import Arm, Carried, Study
from largebatch.study.report import terminal_lines, write_report
from largebatch.study.search import work
from largebatch.study.space import Choices, Point, Search, Value, carried, words
from largebatch.study_display import StudyDisplay
from largebatch.study_trial import train_trial
from largebatch.text.processes import usable_cores
from largebatch.train.folder_lock import locked
from largebatch.train.run_record import LOCK, commit, cpu_model, versions
from largebatch.train.stop import StopWish, listen

MOST_WORKERS = 8
"""That auto takes on a CPU; each has PyTorch and its data in memory."""

_LOOK_SECONDS = 0.5
_LEDGER_SECONDS = 10.0
_LOCK_SECONDS = 60.0
_STOPPED, _FAILED = 75, 1


STUDY_HELP = """
--out FOLDER (default: studies/NAME), the same command goes on with what is there; --workers N, processes side by
side (default: one for each GPU, or for each core, 8 at most); --storage URL, the database that workers on many
machines share (default: a file in the folder); --name NAME, of the study in it; --dry-run to print what would run"""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where a study goes and who runs it."""

    out: Path | None = None
    """Folder of the study; studies/NAME if left out. The same command goes on with what is there."""
    workers: int | Literal["auto"] = "auto"
    """Processes that train side by side; auto is one for each GPU, or for each core of a CPU, 8 at most."""
    storage: str | None = None
    """URL of the database that workers share, SQL of any kind; OUT/study.db, a file, if left out."""
    name: str | None = None
    """What the study is called in the database; its own name if left out."""
    dry_run: bool = False
    """Print what would run, and train nothing."""

    def __post_init__(self) -> None:
        if self.workers != "auto":
            check_at_least(self, workers=1)


def study_verb(name: str, options: StudyOptions, rest: Sequence[str], command: str) -> int:
    """Go through a study and return the exit code.

    Raises:
        InputError: an unknown study, an option it refuses, a folder that holds something else.
    """
    study = build_study(name, rest, STUDY_HELP)
    if options.name is not None:
        study = replace(study, name=options.name)
    folder = options.out or Path("studies") / study.name
    _check_arms(study)
    if options.dry_run:
        for line in _planned(study):
            print(line)
        return 0
    if options.storage is not None:
        SharedStudy(study, options.storage).close()  # one that cannot be had leaves no folder
    held = _claim_folder(folder, study, command)
    url = options.storage or f"sqlite:///{folder / 'study.db'}"
    with listen() as wish, SharedStudy(study, url) as shared, StudyDisplay(study) as display:
        shared.adopt(held)
        try:
            code = _Workers(study, url, folder, options.workers).run(shared, display, wish)
        finally:
            _write(folder, study, shared.trials())
    for line in terminal_lines(folder):
        print(line)
    with _alone(folder):
        print(f"report: {write_report(folder)}")
    return code


def _write(folder: Path, study: Study, trials: Iterable[Trial]) -> None:
    with _alone(folder):
        write_trials(folder, study, trials)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Keep another command that works on the same folder from writing there meanwhile."""
    return locked(folder, print, _LOCK_SECONDS)


def _check_arms(study: Study) -> None:
    """Have every arm's recipe called, so that a wrong option or choice is told now and not after hours."""
    for arm in study.arms:
        factors = arm.search.factors if isinstance(arm.search, Carried) else {}
        for point in _first_of_each_choice(study.tuned_for(arm)):
            build_run(study.recipe, words({**study.options, **arm.options, **carried(point, factors)}))


def _first_of_each_choice(arm: Arm) -> Iterator[Point]:
    """Yield the first point, and every other that has a choice which none before it had."""
    seen: set[tuple[str, Value]] = set()
    for number, point in enumerate(arm.points or ({},)):
        space = arm.search.space if isinstance(arm.search, Search) else {}
        chosen = {(name, value) for name, value in point.items() if isinstance(space[name], Choices)}
        if not number or not chosen <= seen:
            seen |= chosen
            yield point


def _claim_folder(folder: Path, study: Study, command: str) -> list[Trial]:
    """Have the folder hold this study, and return the trials of it that have ended."""
    _holds(folder, study)  # told before there is a folder at all
    with _alone(folder):
        if _holds(folder, study):
            _, origin = read_study(folder)
        else:
            origin = {"command": command, "commit": commit(), "versions": versions(), "cpu": cpu_model()}
        write_study(folder, study, origin)  # title, question and notes may be other ones
    return read_trials(folder, study)


def _holds(folder: Path, study: Study) -> bool:
    """Return whether a folder holds a study, rather than nothing.

    Raises:
        InputError: it holds another study or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder is needed for --out")
    if is_study(folder):
        held, _ = read_study(folder)
        if changed := study.changed(held.as_dict()):
            raise InputError(f"{folder} holds a study with other {', '.join(changed)}: name another folder with --out")
        return True
    if folder.exists() and any(path.name not in (LOCK, f"{STUDY}.partial") for path in folder.iterdir()):
        raise InputError(f"{folder} holds other files, --out takes a folder that is new, empty or of this study")
    return False


def _planned(study: Study) -> list[str]:
    jobs = list(study.jobs())
    tuning = sum(job.kind == "tuning" for job in jobs)
    lines = [study.title, f"{len(jobs)} runs of {study.recipe}: {tuning} to tune, {len(jobs) - tuning} seeds"]
    for arm in study.arms:
        searched = f"{len(arm.points)} points" if arm.points else "nothing tuned"
        if isinstance(arm.search, Carried):
            searched = f"the best point of {arm.search.arm}"
        lines.append(f"  {arm.name}: {searched}, {study.seeds} seeds")
    return lines


class _Workers:
    """The processes, from their start to their end."""

    def __init__(self, study: Study, url: str, folder: Path, workers: int | Literal["auto"]) -> None:
        cores = usable_cores()
        gpus = torch.cuda.device_count()
        number = (gpus or min(cores, MOST_WORKERS)) if workers == "auto" else workers
        left = sum(1 for _ in study.jobs())
        number = min(number, left)
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // number))
        context = get_context("spawn")
        self._folder, self._study = folder, study
        self._channels: list[Connection] = []
        self._processes: list[Any] = []
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")}
        os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # they are born without ears for it
        try:
            for worker in range(number):
                if gpus > 1:
                    os.environ["CUDA_VISIBLE_DEVICES"] = str(worker % gpus)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_worker, args=(worker, study, url, folder, theirs), daemon=False)
                process.start()
                theirs.close()
                self._channels.append(ours)
                self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run(self, shared: SharedStudy, display: StudyDisplay, wish: StopWish) -> int:
        """Wait for all of them, tell what comes to an end, and return the exit code."""
        told_to_stop = False
        written = time.monotonic()
        said: dict[int, tuple[str, str]] = {}
        while True:
            alive = [process for process in self._processes if process.is_alive()]
            failed = any(kind == "error" for kind, _ in said.values())
            if (wish.wished or failed) and not told_to_stop:
                told_to_stop = True
                for process in alive:
                    process.terminate()
            connection.wait([process.sentinel for process in alive], timeout=_LOOK_SECONDS)
            for number, channel in enumerate(self._channels):
                if number not in said and channel.poll():
                    try:
                        said[number] = channel.recv()
                    except EOFError:
                        # One that is told to stop before it can listen goes without a word.
                        said[number] = ("stopped", "") if told_to_stop else ("died", self._death(number))
                        if not told_to_stop:
                            display.say(said[number][1])
            trials = shared.trials()
            display.show(trials, shared.running())
            if time.monotonic() - written > _LEDGER_SECONDS:
                _write(self._folder, self._study, trials)
                written = time.monotonic()
            if not alive and len(said) == len(self._channels):
                break
        errors = [sentence for kind, sentence in said.values() if kind == "error"]
        if errors:
            raise InputError(errors[0])
        if faults := [sentence for kind, sentence in said.values() if kind == "fault"]:
            display.say(faults[0])
            return _FAILED
        if self._study.is_over(shared.ended()):
            return 0
        stopped = any(kind == "stopped" for kind, _ in said.values())
        display.say("stopped; the same command goes on" if stopped else "no worker is left; the same command goes on")
        return _STOPPED if stopped else _FAILED

    def _death(self, number: int) -> str:
        process = self._processes[number]
        process.join()
        return (
            f"worker {number} died ({process.exitcode}); another goes on with what it was training, or the same command"
        )


def _worker(number: int, study: Study, url: str, folder: Path, channel: Connection) -> None:
    """Be one of the processes; what it says at its end is "done", "stopped", an error or a fault of ours."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; the first process passes it on, once
    signal.signal(signal.SIGTERM, _give_back)
    said = ("done", "")
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        with SharedStudy(study, url) as shared:
            if not work(shared, folder, train_trial, f"{platform.node()}:{os.getpid()}"):
                said = ("stopped", "")
    except InputError as error:
        said = ("error", str(error))
    except KeyboardInterrupt:
        said = ("stopped", "")
    except BaseException:
        said = ("fault", traceback.format_exc())
    with suppress(OSError):  # the first process may be gone
        channel.send(said)
        channel.close()


def _give_back(number: int, frame: object) -> None:
    """Leave a claim between two trainings; while one is under way, the loop itself listens."""
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Stop as by SIGTERM when the process that started this one is gone, however it went."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
