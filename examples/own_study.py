"""A network and data of one's own under two optimizers: largebatch study examples/own_study.py:study"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer

from largebatch.classification import Classification
from largebatch.recipes.optimizers import Adamw, Lamb
from largebatch.schedules import Schedule
from largebatch.study.plan import Arm, Study
from largebatch.study.space import Interval, quasi_random
from largebatch.train.run import Run, Stage


@dataclass(frozen=True, kw_only=True)
class _Tumours(Classification):
    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def examples(self):
        x, y = map(torch.from_numpy, load_breast_cancer(return_X_y=True))
        x = ((x - x.mean(0)) / x.std(0)).float()
        return x[:400], y[:400], x[400:], y[400:]


def recipe(batch: int = 40, lr: float = 0.01, optimizer: str = "lamb"):
    """100 steps at batch 40."""
    stage = Stage(name="all", global_batch_samples=batch, steps=4000 // batch, peak_lr=lr, schedule=Schedule())
    return Run(task=_Tumours(), stages=(stage,), optimizer={"lamb": Lamb, "adamw": Adamw}[optimizer]())


def study(trials: int = 4, seeds: int = 3):
    """Both optimizers at batch 40 and 400."""
    search = quasi_random({"lr": Interval(1e-3, 0.3)}, trials)
    settings = [{"optimizer": method, "batch": batch} for method in ("lamb", "adamw") for batch in (40, 400)]
    arms = tuple(Arm(method=one["optimizer"], batch=one["batch"], options=one, search=search) for one in settings)
    kinds = {"score": "accuracy", "higher_is_better": True, "seeds": seeds, "recipe": f"{__file__}:recipe"}
    return Study(name="tumours", title="Tumours", question="Does LAMB hold out at batch 400?", arms=arms, **kinds)
