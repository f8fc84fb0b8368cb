"""`torch.compile` of the step: as many breaks as torch's AdamW has, no recompilation, the same numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from rules import MAKERS
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from largebatch.optim import LAMB

# The compiler's own imports warn, and so does tracing where the profiler's marks are left out.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Profiler record function"),
]
EXTRA: dict[str, Any] = {
    "clipped": {"max_grad_norm": 1.0},
    "masters": {"master_weights": True},
    "capturable": {"capturable": True},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 4), (7,), (), (3, 8))]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return made


def tensor_rate(optimizer: Any) -> torch.Tensor:
    """Give all groups one learning rate that can be filled without the compiler noticing."""
    rate = torch.tensor(0.01)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def compiled(make: Callable[..., Any], steps: int = 6, **options: Any) -> tuple[CompileCounter, int, Any, Any]:
    """Return the counter, the graph breaks, and a compiled and an eager optimizer after the same steps."""
    counter = CompileCounter()
    optimizers = [make(parameters(), **options) for _ in range(2)]
    rates = [tensor_rate(optimizer) for optimizer in optimizers]
    compiled_step = torch.compile(optimizers[0].step, backend=counter)
    for number in range(steps):
        for rate in rates:
            rate.fill_(0.01 * (number + 1))
        compiled_step()
        optimizers[1].step()
    return counter, sum(counters["graph_break"].values()), *optimizers


def assert_equal(one: Any, other: Any) -> None:
    for group, same in zip(one.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], same["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    if hasattr(one, "trust_ratios"):
        torch.testing.assert_close(one.trust_ratios(), other.trust_ratios(), rtol=1e-4, atol=0, equal_nan=True)


def _breaks_of_adamw() -> tuple[int, int]:
    counter, breaks, *_ = compiled(torch.optim.AdamW, foreach=False)
    torch._dynamo.reset()
    counters.clear()
    return counter.frame_count, breaks


@pytest.mark.parametrize("name", MAKERS)
def test_no_break_beyond_adamws_and_no_recompilation(name: str) -> None:
    frames, breaks = _breaks_of_adamw()
    found, own_breaks, one, other = compiled(MAKERS[name])
    assert own_breaks <= breaks
    # A base that makes its state in its step, as SGD does, is traced once more when it is there; torch's SGD is too.
    allowed = frames + (name == "Layerwise SGD")
    assert found.frame_count <= allowed
    assert_equal(one, other)


@pytest.mark.parametrize("extra", EXTRA)
def test_further_options_compile_as_well(extra: str) -> None:
    frames, breaks = _breaks_of_adamw()
    found, own_breaks, one, other = compiled(LAMB, **EXTRA[extra])
    assert (found.frame_count, own_breaks) == (frames, breaks)
    assert_equal(one, other)


def test_half_precision_with_masters_compiles() -> None:
    optimizers = [LAMB(parameters(torch.bfloat16), lr=0.1, master_weights=True) for _ in range(2)]
    step = torch.compile(optimizers[0].step, backend="eager")
    for _ in range(4):
        step()
        optimizers[1].step()
    assert_equal(*optimizers)


def test_a_float_rate_recompiles_and_a_tensor_does_not() -> None:
    """The trap: the counter has to see the recompilations that a tensor avoids."""
    counter = CompileCounter()
    optimizer = LAMB(parameters())
    step = torch.compile(optimizer.step, backend=counter)
    for number in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 * (number + 1)
        step()
    assert counter.frame_count > 1


def test_an_option_out_of_range_is_refused_by_a_compiled_step_too() -> None:
    optimizer = LAMB(parameters())
    step = torch.compile(optimizer.step, backend="eager")
    step()
    optimizer.param_groups[0]["max_grad_norm"] = 0
    with pytest.raises(Exception, match="max_grad_norm is 0"):
        step()


def test_a_sparse_gradient_is_refused_by_a_compiled_step_too() -> None:
    x = nn.Parameter(torch.ones(3, 2))
    optimizer = LAMB([x])
    x.grad = torch.zeros(3, 2).to_sparse()
    with pytest.raises(Exception, match="a gradient is sparse"):
        torch.compile(optimizer.step, backend="eager")()


def test_a_layer_that_freezes_and_thaws_is_seen() -> None:
    optimizers = [LAMB(parameters(), lr=0.1) for _ in range(2)]
    step = torch.compile(optimizers[0].step, backend="eager")
    held: list[Any] = []
    for number in range(5):
        for optimizer in optimizers:
            p = optimizer.param_groups[0]["params"][1]
            if number == 1:
                held.append(p.grad)
                p.grad = None
            if number == 3:
                p.grad = held.pop(0)
        step()
        optimizers[1].step()
        assert_equal(*optimizers)


def test_layerwise_leaves_the_options_of_its_base_alone() -> None:
    """A trace reads `capturable` as true; that must not be written down."""
    optimizer = MAKERS["Layerwise AdamW"](parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        step()
        assert optimizer.param_groups[0]["capturable"] is False
        assert optimizer.param_groups[0]["lr"] == 0.1
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LAMB", "LANS", "LARS", "LARS 2017", "Layerwise AdamW"])
def test_generated_code_takes_the_same_steps(name: str) -> None:
    optimizers = [MAKERS[name](parameters(), **({} if name == "LANS" else {"max_grad_norm": 1.0})) for _ in range(2)]
    rates = [tensor_rate(optimizer) for optimizer in optimizers]
    # Compiled headers would be kept beside the folder that these tests remove.
    step = torch.compile(optimizers[0].step, options={"cpp_cache_precompile_headers": False})
    for number in range(5):
        for rate in rates:
            rate.fill_(0.01 * (number + 1))
        step()
        optimizers[1].step()
        assert_equal(*optimizers)
