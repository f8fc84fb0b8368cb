"""Time of one optimizer step: ours beside torch's and other packages', on the shapes of real models.

    python benchmarks/optimizer_step.py [--model bert-base] [--dtype float32] [--rounds 9]

Every implementation that is installed takes its steps on the same weights and gradients. They take turns, and the
ratios are medians over rounds of times that were taken in one round. The numbers go to
benchmarks/results/optimizer_step-MODEL-DTYPE.json.

The floor is what has to be moved. In float32 AdamW reads x, g, m, v and writes x, m, v: 7 words a parameter. LAMB
needs ||u|| before it may move x: it reads x, g, m, v and writes m, v, then reads x, m, v and writes x, 10 words, and
7 where the second sweep finds a layer in the cache. SGD with momentum moves 5. The least bytes over the time, as a
share of what a copy of one large array reaches in the same round, say how near a step comes to its own floor.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from certificate import in_a_line, installed, write_result
from largebatch import LAMB, LANS, LARS
from step_length import timm

Shapes = list[tuple[int, ...]]
Maker = Callable[[list[nn.Parameter]], Any]


def bert(width: int, layers: int) -> Shapes:
    """Return the shapes of BERT with its pooler, 30,522 entries and 512 positions."""
    made: Shapes = [(30522, width), (512, width), (2, width), (width,), (width,)]
    for _ in range(layers):
        made += [(width, width), (width,)] * 4 + [(width,)] * 2
        made += [(4 * width, width), (4 * width,), (width, 4 * width), (width,), (width,), (width,)]
    return [*made, (width, width), (width,)]


def resnet50() -> Shapes:
    """Return the shapes of ResNet-50 with 1,000 classes."""

    def convolution(inputs: int, outputs: int, side: int) -> Shapes:
        return [(outputs, inputs, side, side), (outputs,), (outputs,)]

    made, inputs = convolution(3, 64, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            made += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if block == 0:
                made += convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return [*made, (1000, 2048), (1000,)]


MODELS = {"bert-base": lambda: bert(768, 12), "bert-large": lambda: bert(1024, 24), "resnet-50": resnet50}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
SGD: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


def makers() -> dict[str, Maker]:
    """Return every implementation; a missing package shows when it is called."""

    def of(module: str, name: str, **options: Any) -> Maker:
        return lambda p: getattr(importlib.import_module(module), name)(p, **options)

    return {
        "torch AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, **ADAM),
        "torch AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True, **ADAM),
        "torch SGD, fused": lambda p: torch.optim.SGD(p, fused=True, **SGD),
        "torch SGD, foreach": lambda p: torch.optim.SGD(p, foreach=True, **SGD),
        "LAMB, fused": lambda p: LAMB(p, fused=True, **ADAM),
        "LAMB, fused, clipping": lambda p: LAMB(p, fused=True, max_grad_norm=1.0, **ADAM),
        "LANS, fused": lambda p: LANS(p, fused=True, **ADAM),
        "LARS, fused": lambda p: LARS(p, fused=True, **SGD),
        "LAMB, plain": lambda p: LAMB(p, foreach=False, **ADAM),
        "LAMB, foreach": lambda p: LAMB(p, foreach=True, **ADAM),
        "LAMB, foreach, clipping": lambda p: LAMB(p, foreach=True, max_grad_norm=1.0, **ADAM),
        "LANS, foreach": lambda p: LANS(p, foreach=True, **ADAM),
        "LARS, foreach": lambda p: LARS(p, foreach=True, **SGD),
        "timm Lamb": lambda p: timm("lamb").Lamb(p, max_grad_norm=None, **ADAM),
        "kozistr Lamb": of("pytorch_optimizer", "Lamb", max_grad_norm=0.0, **ADAM),
        "jettify Lamb": of("torch_optimizer", "Lamb", **ADAM),
        "bitsandbytes LAMB": of("bitsandbytes.optim", "LAMB", **ADAM),
        "timm Lars": lambda p: timm("lars").Lars(p, **SGD),
        "apex FusedLAMB": of("apex.optimizers", "FusedLAMB", max_grad_norm=1e30, **ADAM),
    }


WORDS = {"adamw": (7, 7), "sgd": (5, 5), "lamb": (7, 10), "lans": (7, 10), "lars": (5, 8)}
"""Words a parameter that have to be moved: if every layer is still in the cache at the second sweep, and if none is."""


def words(name: str) -> tuple[int, int]:
    """Return the words that a parameter's step moves at least."""
    return next(moved for key, moved in WORDS.items() if key in name.lower())


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def contenders(shapes: Shapes, dtype: torch.dtype, only: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the optimizers that could take two steps, and why the others could not.

    They share weights and gradients, so that memory holds all their states; no cache holds any of it from turn to turn.
    """
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = (torch.randn(p.shape, generator=generator) * 1e-2).to(dtype)
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, make in makers().items():
        if only and not any(word in name for word in only):
            continue
        try:
            optimizer = make(made)
            for _ in range(2):  # the first makes the state
                optimizer.step()
        except ImportError:
            missing[name] = "not installed"
        except Exception as error:  # whatever another package raises: it is reported, not repaired
            missing[name] = in_a_line(error)
        else:
            found[name] = optimizer
    assert all(p.isfinite().all() for p in made), "what is not finite takes other times"
    return found, missing


def measure(found: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each in each round, and the bytes a second of a copy in each."""
    a, b = torch.ones(1 << 26), torch.zeros(1 << 26)
    b.copy_(a)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    copied: list[float] = []
    for turn in range(rounds):
        order = list(found) if turn % 2 == 0 else list(reversed(found))
        for name in order:
            seconds[name].append(seconds_of(found[name].step))
        copied.append(2 * a.numel() * 4 / seconds_of(lambda: b.copy_(a)))
    return seconds, copied


def result(name: str, seconds: dict[str, list[float]], copied: list[float], word_bytes: int | None) -> dict[str, Any]:
    """Return the numbers of one implementation; `word_bytes` is one word of every parameter, if words are equal."""
    beside = "torch SGD, fused" if words(name)[0] == 5 else "torch AdamW, fused"
    own, low = seconds[name], words(name)[0]
    entry: dict[str, Any] = {"seconds": statistics.median(own), "rounds": own}
    if beside in seconds:
        ratios = [mine / theirs for mine, theirs in zip(own, seconds[beside], strict=True)]
        entry |= {"beside": beside, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    entry["words at least"] = words(name)
    if word_bytes is not None:
        shares = [low * word_bytes / mine / rate for mine, rate in zip(own, copied, strict=True)]
        entry["share of a copy's bandwidth"] = statistics.median(shares)
    return entry


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Time of one optimizer step, ours beside others'.")
    parser.add_argument("--model", choices=MODELS, default="bert-base", help="whose shapes")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and gradients")
    parser.add_argument("--rounds", type=int, default=9, help="how often each takes its turn")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="those whose name has it")
    given = parser.parse_args()
    shapes, dtype = MODELS[given.model](), DTYPES[given.dtype]
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    found, missing = contenders(shapes, dtype, given.only)
    seconds, copied = measure(found, given.rounds)
    # Beside half-precision weights moments are float32 in ours and half precision in torch's.
    word_bytes = 4 * parameters if dtype == torch.float32 else None
    results = {name: result(name, seconds, copied, word_bytes) for name in found}
    print(f"{given.model}, {parameters / 1e6:.1f} M parameters in {len(shapes)} tensors, {given.dtype}, ", end="")
    print(f"{torch.get_num_threads()} threads, copy {statistics.median(copied) / 1e9:.1f} GB/s")
    print(f"{'':26}{'ms':>8}{'ratio':>8}   (least, most)   beside")
    for name, entry in sorted(results.items(), key=lambda item: item[1]["seconds"]):
        ratio = f"{entry['ratio']:8.2f}   ({entry['least']:.2f}, {entry['most']:.2f})" if "ratio" in entry else ""
        print(f"{name:26}{entry['seconds'] * 1e3:8.1f}{ratio}   {entry.get('beside', '')}")
    for name, why in missing.items():
        print(f"{name:26}{why}")
    packages = ("timm", "torch-optimizer", "pytorch-optimizer", "bitsandbytes", "apex")
    write_result(
        f"optimizer_step-{given.model}-{given.dtype}",
        {
            "what": "seconds of a step, in turns; ratios are medians of paired ones",
            "parameters": parameters,
            "tensors": len(shapes),
            "copy bytes a second": statistics.median(copied),
            "results": results,
            "not measured": missing,
            "peers": installed(packages),
        },
    )


if __name__ == "__main__":
    main()
