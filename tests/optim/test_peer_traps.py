"""Traps that other implementations set their users, one test each, in a fixed order; further tests go deeper."""

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from peers import timm_lamb
from rules import MAKERS, every_backend, how
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from largebatch.optim import LAMB, LANS, LARS, Layerwise
from largebatch.optim.kernels.pieces import cut

every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def layer(*shape: int, dtype: torch.dtype = torch.float32, grad: float = 1.0) -> nn.Parameter:
    x = nn.Parameter(torch.arange(1, math.prod(shape) + 1).view(shape).to(dtype))
    x.grad = torch.full_like(x, grad)
    return x


@every_maker
def test_trap_01_a_clip_of_zero_erases_the_gradient_and_the_step_overwrites_it(make: Any) -> None:
    with pytest.raises(ValueError, match="max_grad_norm"):
        make([layer(3)], max_grad_norm=0)
    x = layer(3)
    held = x.grad
    make([x]).step()
    assert held is not None
    assert x.grad is held
    assert torch.equal(held, torch.ones(3))


@every_maker
def test_trap_02_float32_masters_are_lost_on_resume_and_bf16_is_refused(make: Any) -> None:
    x = layer(3, dtype=torch.bfloat16)
    optimizer = make([x], lr=1e-3, master_weights=True)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["master"].dtype == torch.float32
    assert not torch.equal(saved["state"][0]["master"], x.float()), "it holds what the parameter has not"
    twin = nn.Parameter(x.detach().clone())
    other = make([twin], lr=1e-3, master_weights=True)
    other.load_state_dict(saved)
    assert torch.equal(other.state[twin]["master"], optimizer.state[x]["master"])


@every_maker
def test_trap_03_without_decay_the_ratio_is_switched_off(make: Any) -> None:
    x = layer(3)
    optimizer = make([x], weight_decay=0.0)
    optimizer.step()
    assert float(optimizer.trust_ratios()["0"][0, 0]) != 1
    theirs = layer(3)
    before = theirs.detach().clone()
    timm_lamb()([theirs], lr=1e-3, weight_decay=0.0).step()
    assert float((theirs.detach() - before).norm() / before.norm()) != pytest.approx(1e-3, rel=0.1), "the trap itself"


@pytest.mark.parametrize("make", [LAMB, MAKERS["LARS"], MAKERS["Layerwise SGD"]])
def test_trap_04_the_clip_of_a_group_is_ignored(make: Any) -> None:
    ends = []
    for threshold in (0.1, 100.0):
        x, y = layer(3), layer(2)
        # A step without the ratio, and a coarse eps, so that the size of the gradient shows.
        options: dict[str, Any] = {"adapt": False, **({"eps": 1.0} if make is LAMB else {})}
        make([{"params": [x], "max_grad_norm": threshold}, {"params": [y]}], lr=0.1, **options).step()
        ends.append((x.detach(), y.detach()))
    assert not torch.allclose(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


@every_maker
def test_trap_05_loading_truncates_the_float32_moments_of_bf16_parameters(make: Any) -> None:
    x = layer(4, dtype=torch.bfloat16, grad=0.3)
    optimizer = make([x], lr=0.01)
    for _ in range(3):
        optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[x].items()}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key, value in optimizer.state[x].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])
    assert any(not torch.equal(value.bfloat16().float(), value) for value in before.values()), "there was what to lose"


# Trap 6, sharded norms that are taken for whole ones, is all of `test_norms_over_shards.py`.


@every_maker
def test_trap_07_flat_parameters_mix_the_norms_of_layers(make: Any) -> None:
    """ZeroRedundancyOptimizer with a clip is in `test_norms_over_processes.py`."""
    x = layer(4)
    x._fsdp_flattened = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(NotImplementedError, match=r"flattened shard \(FSDP1\).*use fully_shard .*FSDP2"):
        make([x])


@pytest.mark.parametrize("make", [LAMB, LANS, MAKERS["LARS"]])
def test_trap_08_a_scaler_waits_for_the_device_and_the_count_goes_on(make: Any) -> None:
    x = layer(3)
    optimizer = make([x], capturable=True)
    assert optimizer._step_supports_amp_scaling
    optimizer.step()
    held = {key: value.clone() for key, value in optimizer.state[x].items()}
    x.grad = torch.full((3,), torch.inf)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(value, held[key]) for key, value in optimizer.state[x].items())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:Profiler record function")
def test_trap_09_a_rate_or_a_step_recompiles_and_a_norm_is_looked_at() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    optimizer = LAMB([layer(3)], lr=torch.tensor(0.01), max_grad_norm=1.0)
    step = torch.compile(optimizer.step, backend=counter)
    for number in range(5):
        optimizer.param_groups[0]["lr"].fill_(0.01 * number)
        step()
    torch._dynamo.reset()
    assert counter.frame_count == 1
    meta = LAMB([nn.Parameter(torch.zeros(3, device="meta"))], foreach=True, max_grad_norm=1.0)
    meta.param_groups[0]["params"][0].grad = torch.zeros(3, device="meta")
    meta.step()  # without data, a look at a norm would raise


def test_trap_10_counts_of_elements_overflow_at_two_to_the_31() -> None:
    """Without data, so that it fits here: pieces of a tensor of 2^33 elements cover all of it."""
    x = torch.empty(1 << 33, device="meta", dtype=torch.bfloat16)
    sizes = [piece.numel() for pieces in cut([[x]]) for piece in pieces.lists[0]]
    assert sum(sizes) == 1 << 33
    assert max(sizes) <= 1 << 25
    p = nn.Parameter(x)
    p.grad = x
    optimizer = LAMB([p], foreach=True)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].numel() == 1 << 33


@every_maker
@every_backend
def test_trap_11_complex_parameters_differ_from_their_real_twins(make: Any, backend: str) -> None:
    x = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    twin = nn.Parameter(torch.view_as_real(x.detach()).clone())
    x.grad = torch.tensor([0.5 - 1j, 2 + 0.1j], dtype=torch.complex128)
    twin.grad = torch.view_as_real(x.grad).clone()
    for p in (x, twin):
        optimizer = make([p], lr=0.1, **how(backend))
        for _ in range(3):
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(x), twin, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *[(make, {"betas": (0.9, 1.0)}) for make in (LAMB, LANS)],
        *[(make, {"eps": -1e-8}) for make in (LAMB, LANS, MAKERS["LARS"])],
        *[(make, {"lr": -0.1}) for make in MAKERS.values()],
        *[(make, {"lr": math.nan}) for make in MAKERS.values()],
        *[(make, {"weight_decay": math.nan}) for make in (LAMB, LANS, MAKERS["LARS"])],
    ],
)
def test_trap_12_values_out_of_range_are_accepted_in_silence(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("lr", "(lr|learning rate)")):
        make([layer(3)], **options)


@every_maker
def test_trap_13_checkpoints_initialise_the_state_by_a_step_that_moves_the_weights(make: Any) -> None:
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = make(model.named_parameters(), lr=0.5, weight_decay=0.3)
    get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("make", [LAMB, LANS, LARS, Layerwise])
def test_trap_14_options_are_swallowed(make: Any) -> None:
    """Every option is named in the signature; `test_options.py` shows that each changes the step or raises."""
    kinds = {parameter.kind for parameter in inspect.signature(make).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make([layer(2)], **({} if make is Layerwise else {"lr": 0.1}), fused_adam=True)
