"""Time of one optimizer step: ours beside torch's and other packages', on the shapes of real models.

    python benchmarks/optimizer_step.py [--model bert-base] [--dtype float32] [--device cpu] [--rounds 9] [--only WORD]

Every implementation that is installed takes its steps on the same weights and gradients. They take turns, and the
ratios are medians over rounds of times that were taken in one round. The numbers go to
benchmarks/results/optimizer_step-MODEL-DTYPE.json (with -cuda on a GPU), a bar chart beside them.

The floor is what has to be moved. In float32 AdamW reads x, g, m, v and writes x, m, v: 7 words a parameter. LAMB
needs ||u|| before it may move x: it reads x, g, m, v and writes m, v, then reads x, m, v and writes x, 10 words. Where
the second sweep finds x, m and v in the last-level cache, three of them are not moved again: 7 words. A layer whose
three arrays are larger than the cache can find there as much as the cache holds, for the second sweep begins where the
first has ended. So the floor of a layer of n parameters is 10 - 3 * min(1, cache / 12 n) words, and in time that number
over 7 of AdamW's on the same tensors. SGD with momentum moves 5 words; LARS 5 where x and m are found again, else 7.
On a GPU nothing is taken to be found again.

That count takes the whole cache to be ours, and a word found in it to cost nothing. So steps that only move memory, in
the order of the fused CPU kernels, take turns with the others ("traffic of ..."): the floor that this machine has.

Memory is the rise of the process's peak over what it held before one more step.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bar_chart import write_bar_chart
from certificate import in_a_line, installed, write_result
from largebatch import LAMB, LANS, LARS
from largebatch.optim.kernels import cpu
from step_length import timm
from traffic import traffic

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


MODELS: dict[str, Callable[[], Shapes]] = {
    "bert-base": lambda: bert(768, 12),
    "bert-large": lambda: bert(1024, 24),
    "resnet-50": resnet50,
    # The shapes of BERT-base by themselves.
    "768x768": lambda: [(768, 768)] * 49,
    "768x3072": lambda: [(768, 3072)] * 24,
    "embeddings": lambda: [(30522, 768)] * 2,
    "vectors": lambda: [shape for shape in bert(768, 12) if len(shape) == 1],
}
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


ON_CPU = "LAMB, plain", "traffic"
"""What is not measured on a GPU."""
WORDS = {"adamw": (7, 7), "sgd": (5, 5), "lamb": (7, 10), "lans": (7, 10), "lars": (5, 7)}
"""Words a parameter that have to be moved: if every layer is still in the cache at the second sweep, and if none is."""


def words(name: str) -> tuple[int, int]:
    """Return the words that a parameter's step moves at least."""
    return next(moved for key, moved in WORDS.items() if key in name.lower())


def floor(name: str, shapes: Shapes, device: str) -> float:
    """Return the words that a parameter's step has to move, as the text above derives them."""
    least, most = words(name)
    if least == most or device != "cpu":
        return most
    counts = [torch.Size(shape).numel() for shape in shapes]
    bytes_read = 8 if "lars" in name.lower() else 12
    found = sum(count * min(1.0, cpu.cache_bytes() / (bytes_read * count)) for count in counts)
    return most - (most - least) * found / sum(counts)


def rise_of_peak(call: Callable[[], Any], device: str) -> int | None:
    """Return by how many bytes the peak of memory exceeds what was held before; None for a CPU off Linux."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before

    def kilobytes(key: str) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = kilobytes("VmRSS:")
        call()
        return max(0, kilobytes("VmHWM:") - before) * 1024
    except OSError:
        return None


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds that a call takes, and what it has left a GPU to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def contenders(
    shapes: Shapes, dtype: torch.dtype, only: list[str], device: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return the steps of the optimizers that could take two, and why the others could not.

    They share weights and gradients, so that memory holds all their states; no cache holds any of it from turn to turn.
    """
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(device, dtype)) for shape in shapes]
    for p in made:
        p.grad = (torch.randn(p.shape, generator=generator) * 1e-2).to(device, dtype)
    found: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name, make in makers().items():
        if (only and not any(word in name for word in only)) or (device != "cpu" and name.startswith(ON_CPU)):
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
            found[name] = optimizer.step
    if device == "cpu" and dtype == torch.float32 and (not only or "traffic" in only):
        try:
            found |= traffic(shapes)
        except ImportError as error:
            missing["traffic"] = in_a_line(error)
    assert all(p.isfinite().all() for p in made), "what is not finite takes other times"
    return found, missing


def measure(
    found: dict[str, Callable[[], Any]], rounds: int, device: str
) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each in each round, and the bytes a second of a copy in each."""
    a, b = torch.ones(1 << 26, device=device), torch.zeros(1 << 26, device=device)
    b.copy_(a)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    copied: list[float] = []
    for turn in range(rounds):
        order = list(found) if turn % 2 == 0 else list(reversed(found))
        for name in order:
            seconds[name].append(seconds_of(found[name], device))
        copied.append(2 * a.numel() * 4 / seconds_of(lambda: b.copy_(a), device))
    return seconds, copied


def result(
    name: str, seconds: dict[str, list[float]], copied: list[float], word_bytes: int | None, device: str
) -> dict[str, Any]:
    """Return the numbers of one implementation; `word_bytes` is one word of every parameter, if words are equal."""
    beside = "torch SGD, fused" if words(name)[0] == 5 else "torch AdamW, fused"
    own, moved = seconds[name], words(name)[0 if device == "cpu" else 1]
    probe = next((of for of in seconds if of.startswith("traffic") and words(of) == words(name)), None)
    entry: dict[str, Any] = {"seconds": statistics.median(own), "rounds": own}
    if beside in seconds:
        ratios = [mine / theirs for mine, theirs in zip(own, seconds[beside], strict=True)]
        entry |= {"beside": beside, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    if probe is not None and name.startswith(("LAMB, fused", "LARS, fused", "torch")) and "clipping" not in name:
        entry["over its traffic"] = statistics.median(a / b for a, b in zip(own, seconds[probe], strict=True))
    entry["words at least"] = words(name)
    if word_bytes is not None:
        shares = [moved * word_bytes / mine / rate for mine, rate in zip(own, copied, strict=True)]
        entry["share of a copy's bandwidth"] = statistics.median(shares)
    return entry


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Time of one optimizer step, ours beside others'.")
    parser.add_argument("--model", choices=MODELS, default="bert-base", help="whose shapes")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and gradients")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where")
    parser.add_argument("--rounds", type=int, default=9, help="how often each takes its turn")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="those whose name has it")
    given = parser.parse_args()
    shapes, dtype = MODELS[given.model](), DTYPES[given.dtype]
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    found, missing = contenders(shapes, dtype, given.only, given.device)
    seconds, copied = measure(found, given.rounds, given.device)
    memory = {name: rise_of_peak(step, given.device) for name, step in found.items()}
    # Beside half-precision weights moments are float32 in ours and half precision in torch's.
    word_bytes = 4 * parameters if dtype == torch.float32 else None
    results = {name: result(name, seconds, copied, word_bytes, given.device) for name in found}
    for name, entry in results.items():
        entry["extra bytes at the peak"] = memory[name]
        if "ratio" in entry and dtype == torch.float32:
            least = floor(name, shapes, given.device)
            entry["words at the floor"] = least
            entry["over the floor"] = entry["ratio"] / (least / words(entry["beside"])[0])
    print(f"{given.model}, {parameters / 1e6:.1f} M parameters in {len(shapes)} tensors, {given.dtype}, ", end="")
    where = f"{torch.get_num_threads()} threads" if given.device == "cpu" else torch.cuda.get_device_name()
    print(f"{where}, copy {statistics.median(copied) / 1e9:.1f} GB/s")
    print(f"{'':26}{'ms':>8}{'MB':>8}{'ratio':>8}   (least, most)   over its floor, traffic   beside")
    for name, entry in sorted(results.items(), key=lambda item: item[1]["seconds"]):
        ratio = f"{entry['ratio']:8.2f}   ({entry['least']:.2f}, {entry['most']:.2f})" if "ratio" in entry else ""
        if "over the floor" in entry:
            ratio += f"   {entry['over the floor']:.2f}"
        if "over its traffic" in entry:
            ratio += f"   {entry['over its traffic']:.2f}"
        megabytes = (entry["extra bytes at the peak"] or 0) / 1e6
        print(f"{name:26}{entry['seconds'] * 1e3:8.1f}{megabytes:8.1f}{ratio}   {entry.get('beside', '')}")
    for name, why in missing.items():
        print(f"{name:26}{why}")
    bars = sorted((entry["seconds"] * 1e3, name) for name, entry in results.items())
    title = f"One step on {given.model}'s tensors in {given.dtype}, {where}"
    file = f"optimizer_step-{given.model}-{given.dtype}" + ("" if given.device == "cpu" else f"-{given.device}")
    chart = Path(__file__).parent / "results" / f"{file}.svg"
    ours = ("LAMB,", "LANS,", "LARS,")
    write_bar_chart(chart, title, [(name, ms, name.startswith(ours)) for ms, name in bars], "ms")
    packages = ("timm", "torch-optimizer", "pytorch-optimizer", "bitsandbytes", "apex")
    write_result(
        file,
        {
            "device": where,
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
