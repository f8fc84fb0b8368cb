"""The fused GPU kernels: interpreted on the CPU, compiled for a GPU that is not there, and run where there is one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from rules import CASES
from torch import nn

from largebatch.optim import LAMB
from largebatch.optim.kernels import gpu

HERE = Path(__file__).parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("name", ["LAMB", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LANS", "LARS"))])
def test_interpreted_kernels_equal_the_oracle(name: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(HERE / "interpreted_gpu.py"), name],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "TRITON_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert told.returncode == 0, told.stderr[-3000:]


_COMPILE = """
import sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from largebatch.optim.kernels import gpu_sweeps

POINTERS = {name: "*i64" for name in ("addresses", "elements", "shapes", "layers", "starts", "first")}
POINTERS |= {name: "*fp64" for name in ("options", "numbers", "partial", "lengths", "sums")} | {"keep": "*i1"}

def ptx(kernel, **constants):
    names = kernel.arg_names
    signature = {name: POINTERS.get(name, "constexpr") for name in names}
    given = {(i,): constants[name] for i, name in enumerate(names) if name not in POINTERS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given)
    return compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for rule, columns in (("squares", 1), ("lamb", 2), ("lans", 3), ("lars", 2), ("lars-2017", 2)):
    for stored, computed in ((tl.bfloat16, tl.float32), (tl.float32, tl.float32), (tl.float64, tl.float64)):
        for ndim, ahead, norm in ((0, False, 2), (2, True, 0)):
            options = dict(RULE=rule, HAS_KEEP=ahead, AHEAD=ahead, BUFFER=True, NORM=norm, NDIM=ndim, X=stored)
            options |= dict(G=stored, ALIGNED=not ndim, COMPUTE=computed, CHUNK=1 << 14, BLOCK=gpu_sweeps.BLOCK)
            made = [ptx(gpu_sweeps.first_phase, COLUMNS=columns, **options)]
            if rule != "squares":
                made.append(ptx(gpu_sweeps.last_phase, HAS_ROUNDED=ahead, ROUNDED=tl.bfloat16, **options))
            if stored == tl.float32 and not ndim:
                assert all("ld.global.v4.b32" in one for one in made), "elements are read one by one"
ptx(gpu_sweeps.add_chunks, COLUMNS=3, NORM=2, BLOCK=128)
"""


def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert told.returncode == 0, told.stderr[-3000:]


def test_without_triton_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in str(gpu.unavailable())


# ---- where there is a GPU ----------------------------------------------------------------------------------------


def on_gpu(dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().cuda()) for p in zoo.parameters(zoo.weights(), dtype)]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS"])
def test_fused_equals_foreach_on_a_gpu_without_waiting_for_it(name: str, dtype: torch.dtype) -> None:
    ends = []
    for how in ({"foreach": True}, {"fused": True}):
        made, case = on_gpu(dtype), CASES[name]
        optimizer = case.build(zoo.groups_over(made, case.option_sets["everything"]), capturable=True, **how)
        for step in range(1, 8):
            for p, array in zip(made, zoo.gradients(step), strict=True):
                p.grad = None if array is None else torch.tensor(array).to(p)
            optimizer.step() if step < 3 else _without_waiting(optimizer)
        ends.append([p.detach().cpu() for p in made])
    unit = torch.finfo(dtype).eps
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12 if dtype == torch.float64 else 64 * unit, atol=64 * unit)


def _without_waiting(optimizer: Any) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_replayed_graph_equals_eager_steps() -> None:
    ends = []
    for captured in (False, True):
        x = nn.Parameter(torch.linspace(1, 2, 100_000, device="cuda"))
        x.grad = torch.linspace(-1, 1, 100_000, device="cuda")
        lr = torch.tensor(0.1, device="cuda")
        optimizer = LAMB([x], lr=lr, fused=True, capturable=True)
        optimizer.step()
        step: Any = optimizer.step
        if captured:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            held = [a.clone() for a in (x.detach(), *optimizer.state[x].values())]
            with torch.cuda.graph(graph):
                optimizer.step()
            for a, old in zip((x.detach(), *optimizer.state[x].values()), held, strict=True):
                a.copy_(old)
            step = graph.replay
        for number in range(5):
            x.grad.mul_(1 + number)
            lr.fill_(0.01 * (number + 1))
            step()
        ends.append(x.detach().cpu())
    assert torch.equal(*ends)
