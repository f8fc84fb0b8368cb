"""A study of the toy task, slow enough to be killed in the middle of a trial."""

from dataclasses import replace
from typing import Any

from largebatch.recipes.optimizers import Lamb
from largebatch.study.plan import Arm, Carried, Study
from largebatch.study.space import Choices, Interval, grid, quasi_random
from largebatch.train.run import Run
from train.toy import ToyTask, toy


def recipe(lr: float = 0.02, batch: int = 10, pause_seconds: float = 0.0) -> Run[ToyTask, Lamb]:
    """20 steps, a checkpoint after each third."""
    run = toy(batch=batch, peak_lr=lr)
    return replace(run, task=ToyTask(pause_seconds=pause_seconds))


def study(trials: int = 3, seeds: int = 2, pause_seconds: float = 0.0, **fields: Any) -> Study:
    """Two batches."""
    search = quasi_random({"lr": Interval(1e-3, 0.1)}, trials)
    return Study(
        name="toy",
        title="Toy",
        question="Does it go on?",
        recipe="study.toy_study:recipe",
        options={"pause_seconds": pause_seconds},
        arms=tuple(Arm(method="LAMB", batch=batch, options={"batch": batch}, search=search) for batch in (8, 16)),
        score="loss",
        higher_is_better=False,
        seeds=seeds,
        **fields,
    )


def wrong_score() -> Study:
    """Goes by a metric that the task does not have."""
    return replace(study(), score="accuracy")


def wrong_option() -> Study:
    """Gives the recipe an option that it does not have."""
    return replace(study(), options={"learning_rate": 1.0})


def too_fast() -> Study:
    """Diverges at one of its points."""
    return replace(study(), options={"stop_after_skipped_steps": 1, "poison_epoch": 1})


def no_study() -> int:
    """Return something else."""
    return 3


def late_choice() -> Study:
    """The second of its choices is none that the recipe takes."""
    arm = Arm(method="LAMB", search=grid({"lr": Choices((0.02, "fast"))}))
    return replace(study(), arms=(arm,))


def carried_whole() -> Study:
    """What is carried over is no whole number any more."""
    arm = Arm(method="LAMB", search=grid({"batch": Choices((8, 16))}))
    other = Arm(method="carried", search=Carried(arm="LAMB", factors={"batch": 1.5}))
    return replace(study(), arms=(arm, other))
