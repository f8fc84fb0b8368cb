"""One job of a study, trained as `largebatch train` would, and what it came to."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.errors import InputError
from largebatch.recipes.catalogue import build_run
from largebatch.report.run_folder import Evaluation, RunFolder
from largebatch.study.ledger import Trial
from largebatch.study.plan import Arm, Job, State, Study
from largebatch.study.space import Point, words
from largebatch.train.distributed import join_world
from largebatch.train.finite import Diverged
from largebatch.train.loop import Outcome, Training

EVALUATIONS = 500
"""About so many of a run are kept at most, at equal distances; samples to a target are as coarse."""

LOSSES = 60
"""About so many training losses of a run are kept, as means of stretches of steps."""


def train_trial(
    study: Study, arm: Arm, job: Job, point: Point, folder: Path, is_hopeless: Callable[[float, int], bool]
) -> Trial | None:
    """Train a job to its end, as `largebatch.study.search.Train` has it.

    Raises:
        InputError: the recipe refuses what it is given, or its evaluations lack the score.
    """
    given = words({**study.options, **arm.options, **point, "seed": job.seed})
    run, origin = build_run(study.recipe, given)
    run = replace(run, keep_checkpoints=1)
    judge = _Judge(study, run.evaluate_every_steps, is_hopeless)
    state: State = "complete"
    reason = None
    if not (folder / "model").is_dir():
        try:
            with join_world(run.device) as world:
                training = Training(run, folder, world, [judge], origin)
                outcome = training.train(resume=(folder / "run.json").is_file())
                del training
            if outcome is Outcome.STOPPED:
                return None
        except Diverged as error:
            state, reason = "diverged", str(error)
        except _Hopeless:
            state = "pruned"
    return _told(study, job, point, folder, state, reason)


class _Hopeless(Exception):
    """Ends a run whose score is worse than its arm's median."""


class _Judge:
    """Watches a run's evaluations."""

    def __init__(self, study: Study, every_steps: int, is_hopeless: Callable[[float, int], bool]) -> None:
        self._study, self._every_steps, self._is_hopeless = study, every_steps, is_hopeless

    def start(self, first_step: int, steps: int) -> None:
        """Nothing is to be done."""

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Tell the score of an evaluation."""
        if kind == "eval":
            score = _score(self._study, {**fields["metrics"], "loss": fields["loss"]})
            # By the step, so that a run that went on from a checkpoint is compared with others at the same place. Those
            # at the end of a stage lie in between, and are not judged.
            number, rest = divmod(fields["step"], self._every_steps) if self._every_steps else (0, 1)
            if score is not None and not rest and self._is_hopeless(score, number - 1):
                raise _Hopeless

    def say(self, sentence: str) -> None:
        """Nothing: many runs at once would speak together."""

    def finish(self) -> None:
        """Nothing is to be done."""


def _score(study: Study, metrics: Mapping[str, float | None]) -> float | None:
    """Return the score of an evaluation, None where it is no finite number.

    Raises:
        InputError: there is none of that name.
    """
    if study.score not in metrics:
        raise InputError(
            f"study {study.name} goes by {study.score!r}, the evaluations of the recipe have {list(metrics)}"
        )
    value = metrics[study.score]
    return None if value is None or not math.isfinite(value) else float(value)


def _told(study: Study, job: Job, point: Point, folder: Path, state: State, reason: str | None) -> Trial:
    run = RunFolder.read(folder)
    every = -(-len(run.evaluations) // EVALUATIONS)
    kept = run.evaluations if every < 2 else (*run.evaluations[:-1:every], run.evaluations[-1])
    evaluations = tuple((one.step, int(one.samples), _score(study, _metrics(one))) for one in kept)
    last = run.last_evaluation
    score = None if last is None or state != "complete" else _score(study, _metrics(last))
    if state == "complete" and (score is None or last is None or not math.isfinite(last.loss)):
        state, score, reason = "diverged", None, f"{study.score} or the held-out loss was no number at the end"
    record, stages = run.record, run.stages
    sessions = record["sessions"]
    return Trial(
        job=job,
        point=point,
        state=state,
        score=score,
        metrics={} if last is None else {k: v for k, v in _metrics(last).items() if math.isfinite(v)},
        evaluations=evaluations,
        losses=_losses(run),
        steps=run.planned_steps,
        samples=stages[-1].last_samples,
        seconds=round(float(np.nansum(run.train.seconds)), 3),
        command=" ".join(["largebatch train", study.recipe, *record["overrides"]]),
        reason=reason,
        origin={
            "commit": record["commit"],
            "cpu": record["cpu"],
            "gpu": record["gpu"],
            "threads": sessions[-1]["threads"],
            "versions": record["versions"],
            "data": record["data"],
            "date": sessions[-1]["started"][:10],
        },
    )


def _metrics(one: Evaluation) -> dict[str, float]:
    return {**one.metrics, "loss": one.loss}


def _losses(run: RunFolder) -> tuple[tuple[int, float], ...]:
    """Return the training loss as means of equal stretches, at the samples of their last step."""
    loss, samples = run.train.loss, run.train.samples
    if not len(loss):
        return ()
    edges = np.unique(np.linspace(0, len(loss), min(LOSSES, len(loss)) + 1).astype(int))
    rows = []
    for start, stop in pairwise(edges.tolist()):
        stretch = loss[start:stop]
        finite = stretch[np.isfinite(stretch)]
        if len(finite):
            rows.append((int(samples[stop - 1]), float(f"{finite.mean():.5g}")))
    return tuple(rows)
