"""Branches of a run as runs of their own: where they begin, what they train, how their results are kept."""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from largebatch.advise.critical_batch import EVALUATIONS, MOST, Branch
from largebatch.aside import write_aside
from largebatch.errors import InputError
from largebatch.report.run_folder import RunFolder
from largebatch.scaling import scale_lr
from largebatch.schedules import Schedule
from largebatch.train.checkpoint import checkpoint_folder, checkpoints, step_of, verify
from largebatch.train.distributed import World
from largebatch.train.finite import Diverged
from largebatch.train.loop import Outcome, Training
from largebatch.train.observers import Observer
from largebatch.train.run import Run, Stage
from largebatch.train.run_record import Origin

RESULTS = "branches.jsonl"
_LEAST_RATE = 0.02
"""A rate below this share of the stage's peak says nothing about the batch: the training there is about to end."""


@dataclass(frozen=True)
class Place:
    """A checkpoint, and what the run would have done next."""

    checkpoint: Path
    step: int
    stage: Stage
    stage_begins: int
    """The steps of the run before its stage."""
    lr: float

    @property
    def batch(self) -> int:
        """Samples of a step there."""
        return self.stage.global_batch_samples


def find_place(folder: Path, run: Run[Any, Any], step: int | None, lr: float | None, kept: Path) -> Place:
    """Return the place of a checkpoint, the newest at which the rate is not about to end if none is named.

    Args:
        folder: of the run.
        run: as it is recorded.
        step: of the checkpoint.
        lr: the rate there, if not the schedule's.
        kept: where branches have a copy of the one named, which the run may have removed since.

    Raises:
        InputError: there is none, or its rate is too low and no other is given, or it is damaged.
    """
    found = {step_of(path): path for path in checkpoints(folder)}
    if step is not None and step not in found and (copy := kept / checkpoint_folder(folder, step).name).is_dir():
        found[step] = copy
    if not found:
        raise InputError(f"{folder} has no checkpoints")
    if step is not None and step not in found:
        raise InputError(f"{folder} has no checkpoint after step {step}: there are {sorted(found)}")
    places = [_place(path, at, run, lr) for at, path in sorted(found.items(), reverse=True) if step in (None, at)]
    for place in places:
        if lr is not None or place.lr > _LEAST_RATE * place.stage.peak_lr:
            verify(place.checkpoint)
            return place
    ends = ", ".join(f"{place.lr:.3g} after step {place.step}" for place in places)
    raise InputError(
        f"the learning rate has come to its end where {folder} has checkpoints ({ends}): give one with --lr, or train "
        "with a larger --keep-checkpoints and name an earlier one with --checkpoint"
    )


def _place(path: Path, step: int, run: Run[Any, Any], lr: float | None) -> Place:
    begins = 0
    for stage in run.stages:
        if step < begins + stage.steps or stage is run.stages[-1]:
            own = stage.lr(step - begins) if step < begins + stage.steps else 0.0
            return Place(path, step, stage, begins, own if lr is None else lr)
        begins += stage.steps
    raise AssertionError("a run has stages")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which branches are run, and on how many samples."""

    place: Place
    multiples: tuple[int, ...]
    orders: int
    samples: int
    """D, of the branch at the run's own batch; the others have half as many more."""

    def jobs(self) -> list[tuple[int, int]]:
        """Return (order, multiple) of every branch, order by order, so that an answer comes early."""
        return [(order, k) for order in range(self.orders) for k in self.multiples]

    def branch_samples(self, multiple: int) -> int:
        """Return the samples of a branch."""
        return self.samples if multiple == 1 else round(MOST * self.samples)

    @property
    def total_samples(self) -> int:
        """Return those of all branches."""
        return sum(self.branch_samples(k) for _, k in self.jobs())


def least_samples(batch: int, multiples: Sequence[int]) -> int:
    """Return the fewest samples D whose eighths are whole steps of every branch."""
    return EVALUATIONS * batch * math.lcm(*multiples)


def branch_run(run: Run[Any, Any], plan: Plan, order: int, multiple: int) -> Run[Any, Any]:
    """Return a branch as a run of one stage: the rate sqrt(k) times as high and constant, evaluated every eighth."""
    place = plan.place
    batch = multiple * place.batch
    between = plan.samples // EVALUATIONS // batch
    stage = replace(
        place.stage,
        name=f"{multiple}-times",
        global_batch_samples=batch,
        steps=plan.branch_samples(multiple) // batch,
        peak_lr=scale_lr(place.lr, place.batch, batch),
        schedule=Schedule(shape="constant"),
        reset_moments=False,
        continues_data=False,
    )
    return replace(
        run,
        stages=(stage,),
        seed=run.seed + 1 + order,
        evaluate_every_steps=between,
        checkpoint_every_steps=between,
        keep_checkpoints=1,
        gradient_noise="off",  # nothing asks for it, and a branch may have fewer steps than it takes
    )


def read_results(folder: Path) -> list[Branch]:
    """Return the branches that have ended; a torn last line is left out.

    Raises:
        InputError: another line is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            found.append(Branch.read(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} is damaged") from error
    return found


def run_branches(
    plan: Plan,
    run: Run[Any, Any],
    origin: Origin,
    folder: Path,
    world: World,
    observer: Callable[[], Observer],
    tell: Callable[[str], None],
) -> list[Branch] | None:
    """Train the branches that have not ended; return all, or None if a stop was asked for.

    They begin with the folder's own copy of the checkpoint: the run may go on meanwhile, and remove it. A branch at the
    run's own batch that diverges is the last: nothing could be told.

    Args:
        plan: which.
        run: the run that they branch from.
        origin: its origin.
        folder: where the branches go.
        world: this process.
        observer: makes who watches a branch.
        tell: a sentence for each that begins.
    """
    done = {(branch.order, branch.multiple): branch for branch in read_results(folder)}
    start = folder / plan.place.checkpoint.name
    world.first_rank_does(lambda: _own(plan.place.checkpoint, start))
    for number, (order, k) in enumerate(plan.jobs(), 1):
        place = folder / f"batch-{k * plan.place.batch}-order-{order}"
        if (order, k) in done:
            world.first_rank_does(partial(_tidy, place))
            if k == 1 and done[order, k].state == "diverged":
                break
            continue
        tell(f"branch {number} of {len(plan.jobs())}: batch {k * plan.place.batch:,}, order {order}")
        own = replace(origin, start=str(start))
        diverged = False
        try:
            training = Training(branch_run(run, plan, order, k), place, world, [observer()], own)
            outcome = training.train(resume=(place / "run.json").is_file())
            del training
            if outcome is Outcome.STOPPED:
                return None
        except Diverged:
            diverged = True
        world.barrier()
        losses = [one.loss for one in RunFolder.read(place).evaluations]
        diverged = diverged or not all(map(math.isfinite, losses))
        branch = Branch(
            multiple=k,
            order=order,
            state="diverged" if diverged else "complete",
            losses=tuple(loss for loss in losses if math.isfinite(loss)),
        )
        world.first_rank_does(partial(_keep, folder, place, branch))
        done[order, k] = branch
        if k == 1 and diverged:
            break
    return [done[job] for job in plan.jobs() if job in done]


def _own(checkpoint: Path, start: Path) -> None:
    """Give the folder the checkpoint's files, by links where the disk has them; they never change."""
    if start.is_dir():
        if start == checkpoint:
            return
        try:
            verify(start)
            return
        except InputError:
            shutil.rmtree(start)
    aside = start.with_name(start.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, aside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(checkpoint, aside)
    aside.rename(start)


def _keep(folder: Path, place: Path, branch: Branch) -> None:
    """Add a line behind whatever whole lines there are, and remove what only training needed."""
    path = folder / RESULTS
    kept = path.read_bytes() if path.is_file() else b""
    write_aside(path, kept[: kept.rfind(b"\n") + 1].decode() + json.dumps(branch.as_dict()) + "\n")
    _tidy(place)


def _tidy(place: Path) -> None:
    for left in ("checkpoints", "model"):
        shutil.rmtree(place / left, ignore_errors=True)
