"""Going through a study: each worker takes a job, has it trained, writes down what it came to, until none is left.

A worker knows nothing of recipes: how a job is trained is given to it.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from largebatch.errors import InputError
from largebatch.study.claims import SharedStudy
from largebatch.study.ledger import Trial
from largebatch.study.plan import Arm, Job, Study
from largebatch.study.space import Point, described
from largebatch.train.folder_lock import FolderHeld

NOT_KEPT = ("checkpoints", "model", "tensorboard")
"""Of a run that has ended: a study has too many of them."""

PAUSE_SECONDS = 0.5
"""Between two looks at what others have brought to an end."""


class Train(Protocol):
    """How a job is trained."""

    def __call__(
        self, study: Study, arm: Arm, job: Job, point: Point, folder: Path, is_hopeless: Callable[[float, int], bool], /
    ) -> Trial | None:
        """Train in a folder, going on from what is there, and return what came out; None where it was stopped.

        Args:
            study, arm, job, point: what is run.
            folder: of the run.
            is_hopeless: to be told the score of each evaluation that all runs of the arm have, and which of them it
                is, from 0; True ends the run there, as pruned.
        """
        ...


def work(
    shared: SharedStudy,
    folder: Path,
    train: Train,
    worker: str,
    *,
    pause_seconds: float = PAUSE_SECONDS,
) -> bool:
    """Run jobs until the study is over; return False if a job was stopped before its end, and given back.

    Args:
        shared: the study.
        folder: runs go below it.
        train: how a job is trained.
        worker: what others see of this one.
        pause_seconds: between two looks while others run all that is open.

    Raises:
        InputError: a job cannot be trained, through a fault of the study's declaration or of the recipe.
    """
    while True:
        claim = shared.claim(worker)
        if claim is None:
            shared.bury()
            if shared.study.is_over(shared.ended()):
                return True
            time.sleep(pause_seconds)
            continue
        with claim:
            place = run_folder(folder, shared.study.by_name[claim.job.arm], claim.job)
            try:
                trial = train(
                    shared.study,
                    shared.study.by_name[claim.job.arm],
                    claim.job,
                    claim.point,
                    place,
                    claim.is_hopeless,
                )
            except FolderHeld:
                # An attempt that was taken for dead goes on here; what it trains, this one finds in the end.
                time.sleep(pause_seconds)
                continue
            except InputError as error:
                raise InputError(f"{claim.job} ({described(claim.point)}): {error}") from error
            if trial is None:
                return False
            if claim.end(trial):
                for name in NOT_KEPT:
                    shutil.rmtree(place / name, ignore_errors=True)


def run_folder(folder: Path, arm: Arm, job: Job) -> Path:
    """Return where a job's run lies below the study's folder."""
    return folder / "runs" / arm.folder / f"{'point' if job.kind == 'tuning' else 'seed'}-{job.number}"
