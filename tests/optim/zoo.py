"""Awkward tensors, groups and gradients that the tests of all optimizers share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.optim import LAMB
from oracle import Array

Tensors = list[Tensor]
Options = dict[str, Any]

NAMES = (
    "large",
    "vector",
    "scalar",
    "excluded",
    "transposed",
    "sliced",
    "empty",
    "zero",
    "no-gradient-yet",
    "thawed",
    "quiet",
    "stacked",
    "stacked-across",
)
SHAPES = ((6, 5), (7,), (), (4,), (5, 3), (4, 6), (0, 3), (3, 4), (2, 3), (4, 2), (2, 2), (6, 2), (3, 8))
PLAIN_GROUP: Options = {"members": list(range(len(SHAPES)))}
GROUPS: tuple[Options, ...] = (
    {"members": [0, 1, 2], "weight_decay": 0.1, "eps": 1e-3, "max_grad_norm": 2.0},
    {"members": [3], "adapt": False, "weight_decay": 0.05, "eps": 1e-2, "maximize": True},
    {"members": [4, 5, 6], "weight_decay": 0.0, "norm": 1, "phi_bounds": (1.0, 4.0), "max_grad_norm": 50.0},
    {"members": [7, 8, 9, 10], "betas": (0.8, 0.95), "ratio_bounds": (0.01, 0.4), "norm": "inf"},
    {"members": [11], "stacked": (0, 3), "nesterov": "first", "weight_decay": 0.3},
    {"members": [12], "stacked": (-1, 2), "nesterov": "both", "bias_correction": False, "max_grad_norm": 0.5},
)
"""Between them every option that changes the step, and the tensors they are hardest on."""
STEPS = 50


def learning_rate(group: int, step: int) -> float:
    """Return a rate that changes at each step and differs between groups: warm-up, then decay."""
    return (0.02 + 0.01 * group) * min(step / 10, (STEPS + 1 - step) / (STEPS - 9))


def weights(seed: int = 0) -> list[Array]:
    """Return float64 starting weights: one layer large, one zero."""
    generator = np.random.default_rng(seed)
    arrays = [np.asarray(generator.standard_normal(shape)) for shape in SHAPES]
    arrays[NAMES.index("large")] *= 20
    arrays[NAMES.index("zero")] *= 0
    return arrays


def gradients(step: int, seed: int = 0) -> list[Array | None]:
    """Return the gradients of a step from 1, of very different sizes; None where a layer takes no part."""
    generator = np.random.default_rng([seed, step])
    found: list[Array | None] = [np.asarray(generator.standard_normal(shape)) * 3**-i for i, shape in enumerate(SHAPES)]
    if step == 13:
        return [None] * len(SHAPES)
    if step < 7:
        found[NAMES.index("no-gradient-yet")] = None
    if 20 <= step < 30:
        found[NAMES.index("thawed")] = None
    found[NAMES.index("quiet")] = np.zeros((2, 2))
    return found


def parameters(arrays: Sequence[Array], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Return parameters with these values, two of them not contiguous in memory."""
    made: list[nn.Parameter] = []
    for name, array in zip(NAMES, arrays, strict=True):
        a = torch.tensor(array, dtype=dtype)
        if name == "transposed":
            a = a.t().contiguous().t()
        if name in ("sliced", "stacked-across"):
            a = torch.stack([a, a], dim=-1)[..., 0]
        assert a.is_contiguous() == (name not in ("transposed", "sliced", "stacked-across"))
        made.append(nn.Parameter(a))
    return made


def groups_over(made: Sequence[nn.Parameter], groups: Sequence[Options] = GROUPS) -> list[Options]:
    """Return parameter groups over named parameters."""
    return [
        {key: value for key, value in group.items() if key != "members"}
        | {"params": [(NAMES[i], made[i]) for i in group["members"]]}
        for group in groups
    ]


def optimizer_over(made: Sequence[nn.Parameter], groups: Sequence[Options] = GROUPS, **options: Any) -> LAMB:
    """Return LAMB over named parameters, in the given groups."""
    return LAMB(groups_over(made, groups), **options)


def set_gradients(made: Sequence[nn.Parameter], arrays: Sequence[Array | None]) -> None:
    """Give each parameter its gradient, in its own dtype."""
    for p, array in zip(made, arrays, strict=True):
        p.grad = None if array is None else torch.tensor(array, dtype=p.dtype)


def run(made: Sequence[nn.Parameter], optimizer: Optimizer, steps: int = STEPS) -> Iterator[int]:
    """Step through the gradients of the zoo and yield after each step."""
    for step in range(1, steps + 1):
        for number, group in enumerate(optimizer.param_groups):
            rate = learning_rate(number, step)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        set_gradients(made, gradients(step))
        optimizer.step()
        yield step
