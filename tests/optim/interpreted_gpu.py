"""The GPU kernels in Triton's interpreter, beside the oracle and the plain kernels; run by `test_fused_gpu.py`.

The interpreter has to be chosen before Triton is imported, hence a process of its own. The kernels' tensors are in the
host's memory, so "fused cpu" is made to mean them.
"""

import sys
from typing import Any

import torch
import zoo
from rules import CASES, MAKERS
from test_against_oracle import follow
from torch import Tensor, nn

from largebatch.optim import LAMB, LANS, LARS
from largebatch.optim.kernels import gpu, gpu_sweeps

KINDS: dict[str, Any] = {"LAMB": LAMB, "LANS": LANS, "LARS": LARS}


def interpret() -> None:
    """Let fused kernels mean those of the GPU, in chunks so short that the zoo has layers of several."""
    for kind in KINDS.values():
        kind._phases = {**kind._phases, "fused cpu": kind._phases["fused cuda"]}
    gpu.CHUNK = gpu_sweeps.BLOCK = 16


def compare(found: list[Tensor], expected: list[Tensor], rtol: float, what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * largest, msg=lambda m: f"{what}: {m}")


def ends(name: str, options: str, dtype: torch.dtype, steps: int, **how: Any) -> list[Tensor]:
    case = CASES[name]
    made = zoo.parameters(zoo.weights(), dtype)
    optimizer = case.build(zoo.groups_over(made, case.option_sets[options]), **how)
    for _ in zoo.run(made, optimizer, steps=steps):
        pass
    states = [state[key] for state in optimizer.state.values() for key in sorted(state) if key != "step"]
    return [*[p.detach() for p in made], *states]


def check_rule(name: str) -> None:
    """Fifty steps beside the oracle with every option in use, and each set of options beside the plain kernels."""
    case = CASES[name]
    follow(case, case.judge, case.option_sets["everything"], fused=True)
    for options in case.option_sets:
        found, plain = (ends(name, options, torch.float64, 3, **how) for how in ({"fused": True}, {"foreach": False}))
        compare(found, plain, 1e-12, f"{name}, {options}")
    for dtype, masters in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, False)):
        how: dict[str, Any] = {"master_weights": masters}
        found = ends(name, "everything", dtype, 3, fused=True, **how)
        plain = ends(name, "everything", dtype, 3, foreach=False, **how)
        rtol = 3e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        compare(found, plain, rtol, f"{name}, {dtype}")
        again = ends(name, "everything", dtype, 3, fused=True, **how)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def check_skipped(name: str) -> None:
    """A step whose gradients are not finite changes nothing; one that is scaled is the one that is not."""
    x, twin = (nn.Parameter(torch.linspace(1, 2, 40)) for _ in range(2))
    ours, theirs = (MAKERS[name]([p], lr=0.1, capturable=True, fused=True) for p in (x, twin))
    for number in range(1, 5):
        skipped = number % 2 == 1
        g = torch.linspace(-1, number, 40)
        x.grad = 64 * g
        if skipped:
            x.grad[3] = torch.nan
        ours.grad_scale, ours.found_inf = torch.tensor(64.0), torch.tensor(float(skipped))
        held = x.detach().clone()
        ours.step()
        if skipped:
            assert torch.equal(x.detach(), held)
            assert all(ratio.isnan().all() for ratio in ours.trust_ratios().values())
        else:
            twin.grad = g
            theirs.step()
        torch.testing.assert_close(x.detach(), twin.detach(), rtol=1e-6, atol=0)


def check_table() -> None:
    """Addresses are copied once while they stay the same."""
    x = nn.Parameter(torch.ones(20))
    x.grad = torch.ones(20)
    optimizer = LAMB([x], fused=True)
    optimizer.step()
    before = len(gpu._tables)
    for _ in range(3):
        optimizer.step()
    assert len(gpu._tables) - before <= 3  # the counts of steps


if __name__ == "__main__":
    interpret()
    check_rule(sys.argv[1])
    check_skipped(sys.argv[1])
    check_table()
