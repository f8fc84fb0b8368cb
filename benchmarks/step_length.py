"""How long the steps of LAMB and LARS are, as others ship them, beside those of the paper's rule.

    python benchmarks/step_length.py

runs fifty steps of every implementation that is installed, with equal settings, gradients and starting weights, and
writes benchmarks/results/step_length.json: the lengths of steps over those of our plain implementation in float64 (of
Algorithm 2, and of LARS as of 2017), so that 1 is right, and how far apart the weights have come after the last step,
relative to the way that they went.

What is looked for: timm, torch-optimizer (jettify), pytorch-optimizer (kozistr), bitsandbytes, optax, keras (on torch).
Clipping is switched off where it can be. DeepSpeed's rule is written out, from its source, for it has no build here.
"""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from certificate import in_a_line, installed, write_result
from largebatch import LAMB, LARS

LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.999), 1e-6, 0.01
STEPS, SHOWN = 50, (1, 10, 50)
LAYERS = {"norm 1": 1.0, "norm 128": 128.0, "zero": 0.0}
SHAPE = (64, 32)
Run = Iterator[list[np.ndarray]]


def weights() -> list[np.ndarray]:
    """Return the starting weights of each layer, float64."""
    generator = np.random.default_rng(0)
    raw = [generator.standard_normal(SHAPE) for _ in LAYERS]
    return [a / np.linalg.norm(a) * norm for a, norm in zip(raw, LAYERS.values(), strict=True)]


def gradients(step: int) -> list[np.ndarray]:
    """Return the gradients of a step from 1: a mean and as much noise."""
    generator = np.random.default_rng([1, step])
    mean = np.random.default_rng(2).standard_normal(SHAPE)
    return [1e-3 * (mean + generator.standard_normal(SHAPE)) for _ in LAYERS]


def torch_run(
    make: Callable[[list[nn.Parameter]], Any],
    dtype: torch.dtype = torch.float32,
    rate: Callable[[int], float] = lambda _: LR,
) -> Run:
    """Yield the weights before the first and after each step."""
    made = [nn.Parameter(torch.tensor(a, dtype=dtype)) for a in weights()]
    optimizer = make(made)
    yield [p.detach().double().numpy().copy() for p in made]
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for p, g in zip(made, gradients(step), strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
        yield [p.detach().double().numpy().copy() for p in made]


def optax_run(make: Callable[[Any], Any], rate: Callable[[Any], Any]) -> Run:
    """Yield the same of an optax transformation; `rate` is of the step from 1."""
    import jax.numpy as jnp
    import optax

    optimizer = make(lambda count: rate(count + 1))
    params = [jnp.asarray(a, dtype=jnp.float32) for a in weights()]
    state = optimizer.init(params)
    yield [np.asarray(p, dtype=np.float64) for p in params]
    for step in range(1, STEPS + 1):
        given = [jnp.asarray(g, dtype=jnp.float32) for g in gradients(step)]
        updates, state = optimizer.update(given, state, params)
        params: Any = optax.apply_updates(params, updates)
        yield [np.asarray(p, dtype=np.float64) for p in params]


def keras_run() -> Run:
    """Yield the same of Keras's Lamb, which has no decay inside the direction."""
    os.environ["KERAS_BACKEND"] = "torch"
    keras: Any = importlib.import_module("keras")
    optimizer = keras.optimizers.Lamb(LR, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPS, weight_decay=DECAY)
    made = [keras.Variable(a.astype(np.float32)) for a in weights()]
    optimizer.build(made)
    yield [np.asarray(v.numpy(), dtype=np.float64) for v in made]
    for step in range(1, STEPS + 1):
        optimizer.apply([torch.tensor(g, dtype=torch.float32) for g in gradients(step)], made)
        yield [np.asarray(v.numpy(), dtype=np.float64) for v in made]


class DeepSpeedForm(torch.optim.Optimizer):
    """The rule of DeepSpeed's FusedLamb (and ColossalAI's): the correction multiplies the rate, after the ratio."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, without the clamp of the ratio."""
        self.t += 1
        beta1, beta2 = BETAS
        for group in self.param_groups:
            rate = group["lr"] * (1 - beta2**self.t) ** 0.5 / (1 - beta1**self.t)
            for p in group["params"]:
                state = self.state[p]
                m, v = (state.setdefault(key, torch.zeros_like(p)) for key in "mv")
                m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                u = m / (v.sqrt() + EPS) + DECAY * p
                ratio = p.norm() / u.norm() if p.norm() > 0 and u.norm() > 0 else torch.tensor(1.0)
                p.sub_(rate * ratio * u)


@cache
def timm(module: str) -> Any:
    """Return a module of timm's optimizers without the rest of the package, which needs torchvision."""
    if "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        if spec is None or spec.origin is None:
            raise ImportError("timm")
        root = Path(spec.origin).parent
        for name, folder in (("timm", root), ("timm.optim", root / "optim")):
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
    return importlib.import_module(f"timm.optim.{module}")


def lamb_runs() -> dict[str, Callable[[], Run]]:
    """Return every LAMB, equally set."""
    same: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}

    def of(module: str, name: str, **options: Any) -> Callable[[], Run]:
        return lambda: torch_run(lambda p: getattr(importlib.import_module(module), name)(p, **same, **options))

    def optax() -> Run:
        lamb: Any = importlib.import_module("optax").lamb
        return optax_run(lambda rate: lamb(rate, *BETAS, eps=EPS, weight_decay=DECAY), lambda step: LR)

    return {
        "largebatch LAMB, float32": lambda: torch_run(lambda p: LAMB(p, **same)),
        "timm Lamb": lambda: torch_run(lambda p: timm("lamb").Lamb(p, **same, max_grad_norm=None)),
        "optax lamb": optax,
        "jettify Lamb": of("torch_optimizer", "Lamb"),
        "jettify Lamb, debias": of("torch_optimizer", "Lamb", debias=True),
        "kozistr Lamb": of("pytorch_optimizer", "Lamb", max_grad_norm=0.0),
        "bitsandbytes LAMB": of("bitsandbytes.optim", "LAMB"),
        "keras Lamb": keras_run,
        "DeepSpeed's form": lambda: torch_run(DeepSpeedForm),
    }


def warm_up_and_decay(step: Any) -> Any:
    """Return 100 times LR after a warm-up of ten steps, then less: LARS of 2017 has rates of another size."""
    up, down = step / 10, (STEPS + 1 - step) / (STEPS - 9)
    return 100 * LR * (min(up, down) if isinstance(step, int) else (up + down - abs(up - down)) / 2)


def lars_runs() -> dict[str, Callable[[], Run]]:
    """Return every LARS, with a rate that changes."""
    same: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": DECAY}

    def run(make: Callable[[list[nn.Parameter]], Any]) -> Callable[[], Run]:
        return lambda: torch_run(make, rate=warm_up_and_decay)

    def optax() -> Run:
        lars: Any = importlib.import_module("optax").lars
        return optax_run(lambda rate: lars(rate, weight_decay=DECAY, momentum=0.9), warm_up_and_decay)

    def bitsandbytes(p: Any) -> Any:
        return importlib.import_module("bitsandbytes.optim").LARS(p, **same)

    return {
        "largebatch LARS 2017, float32": run(lambda p: LARS(p, **same, rule="2017")),
        "largebatch LARS 2017-lr-outside": run(lambda p: LARS(p, **same, rule="2017-lr-outside")),
        "timm Lars": run(lambda p: timm("lars").Lars(p, **same, eps=0.0)),
        "optax lars": optax,
        "kozistr LARS": run(lambda p: importlib.import_module("pytorch_optimizer").LARS(p, **same)),
        "bitsandbytes LARS": run(bitsandbytes),
    }


def lengths(path: list[list[np.ndarray]], reference: list[list[np.ndarray]]) -> dict[str, dict[str, float]]:
    """Return the lengths of steps over those of the reference, by layer and step."""

    def step(run: list[list[np.ndarray]], layer: int, t: int) -> float:
        return float(np.linalg.norm(run[t][layer] - run[t - 1][layer]))

    return {name: {str(t): step(path, i, t) / step(reference, i, t) for t in SHOWN} for i, name in enumerate(LAYERS)}


def measured(name: str, start: Callable[[], Run], reference: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return the steps of one implementation and how far its weights end from the reference's."""
    try:
        path = list(start())
    except ImportError:
        return {"not measured": "not installed"}
    except Exception as error:  # whatever another package raises: it is reported, not repaired
        return {"not measured": in_a_line(error)}
    apart = [
        float(np.linalg.norm(a - b) / np.linalg.norm(b - c))
        for a, b, c in zip(path[-1], reference[-1], reference[0], strict=True)
    ]
    return {"lengths": lengths(path, reference), "apart": dict(zip(LAYERS, apart, strict=True))}


def table(results: dict[str, Any], what: str) -> None:
    """Print the results as a table."""
    print(f"\n{what:34}" + "".join(f"{layer} t={t}".rjust(16) for layer in LAYERS for t in SHOWN) + "   apart")
    for name, found in results.items():
        if "not measured" in found:
            print(f"{name:34}  {found['not measured']}")
            continue
        numbers = "".join(f"{found['lengths'][layer][str(t)]:16.3f}" for layer in LAYERS for t in SHOWN)
        print(f"{name:34}{numbers}   {max(found['apart'].values()):.1e}")


def main() -> None:
    """Measure, print and record."""
    same: dict[str, Any] = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    right = list(torch_run(lambda p: LAMB(p, foreach=False, **same), torch.float64))
    lamb = {name: measured(name, start, right) for name, start in lamb_runs().items()}
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": DECAY, "rule": "2017"}
    right = list(torch_run(lambda p: LARS(p, lr=1.0, foreach=False, **options), torch.float64, warm_up_and_decay))
    lars = {name: measured(name, start, right) for name, start in lars_runs().items()}
    table(lamb, "LAMB, ||step|| / reference's")
    table(lars, "LARS, ||step|| / 2017's")
    packages = ("timm", "torch-optimizer", "pytorch-optimizer", "bitsandbytes", "optax", "jax", "keras")
    rates = [round(warm_up_and_decay(step), 4) for step in range(1, STEPS + 1)]
    settings = {"lamb": {"lr": LR, **same}, "lars": {"lr": rates, "trust_coefficient": 0.001, **options}}
    write_result("step_length", {"lamb": lamb, "lars": lars, "peers": installed(packages), "settings": settings})


if __name__ == "__main__":
    main()
