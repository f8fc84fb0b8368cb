"""Watching steps: the curves that TensorBoard gets, relative steps, and the one warning."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rules import MAKERS
from torch import nn

from largebatch.optim import LAMB, LANS, LARS, StepMonitor, layer_groups


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.points.append((tag, scalar_value, global_step))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 3)).pow(2).sum().backward()
    optimizer.step()


def test_tensorboard_gets_the_ratios_of_every_watched_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = model()
    optimizer = LAMB(layer_groups(net), lr=0.01)
    with SummaryWriter(str(tmp_path)) as writer:
        StepMonitor(optimizer, writer, every=3, first_step=11)
        expected = {}
        for number in range(11, 20):
            step(net, optimizer)
            expected[number] = float(optimizer.trust_ratios()["0.weight"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"trust_ratio/{name}" for name, _ in net.named_parameters()}
    points = {event.step: event.value for event in events.Scalars("trust_ratio/0.weight")}
    assert list(points) == [11, 14, 17]
    for number, value in points.items():
        assert value == pytest.approx(expected[number], rel=1e-6)
    assert {event.value for event in events.Scalars("trust_ratio/0.bias")} == {1.0}


def test_directions_and_blocks_have_curves_of_their_own() -> None:
    x, frozen = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
    optimizer = LANS([("x", x), ("frozen", frozen)], stacked=(0, 2))
    writer = Writer()
    StepMonitor(optimizer, writer, every=1)
    x.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    tags = {tag for tag, _, _ in writer.points}
    assert tags == {f"trust_ratio/x[{direction},{block}]" for direction in (0, 1) for block in (0, 1)}
    assert all(math.isfinite(value) for _, value, _ in writer.points), "what took no step is left out"


@pytest.mark.parametrize("name", MAKERS)
def test_the_relative_step_is_what_the_layer_moved(name: str) -> None:
    x, zero = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.zeros(3))
    unnamed = nn.Parameter(torch.empty(0))
    optimizer = MAKERS[name]([x, zero, unnamed], lr=0.05)
    monitor = StepMonitor(optimizer, every=1, max_relative_step=100.0)
    for _ in range(3):
        before = x.detach().clone()
        for p in (x, zero, unnamed):
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert monitor.relative_steps["0"] == pytest.approx(float((x.detach() - before).norm() / before.norm()))
        if name in ("LAMB", "LARS", "Layerwise AdamW", "Layerwise SGD"):
            assert monitor.relative_steps["0"] == pytest.approx(0.05, rel=1e-5)
        assert math.isnan(monitor.relative_steps["2"])
    assert not math.isnan(monitor.relative_steps["1"]), "a layer of zeros has a norm once it has moved"


def test_a_layer_that_jumps_is_warned_of_once() -> None:
    net = model()
    optimizer = LAMB(layer_groups(net), lr=0.7)
    writer = Writer()
    monitor = StepMonitor(optimizer, writer, every=1, max_relative_step=0.6)
    with pytest.warns(
        RuntimeWarning, match=r"in step 1 the layer .* moved by .* times its norm.*0\.6.*told once"
    ) as caught:
        step(net, optimizer)
    assert len(caught) == 1
    assert caught[0].filename == __file__, "it points to who took the step"
    assert "\n" not in str(caught[0].message)
    worst = max(monitor.relative_steps, key=lambda name: monitor.relative_steps[name])
    assert f"the layer {worst} moved" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net, optimizer)
    assert ("relative_step/0.weight", pytest.approx(0.7, rel=1e-5), 2) in writer.points


def test_no_warning_within_the_bound_and_none_without_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bound in (1.5, None):
            net = model()
            optimizer = LAMB(layer_groups(net, no_adapt=()), lr=0.7)
            monitor = StepMonitor(optimizer, every=1, max_relative_step=bound)
            for _ in range(3):
                step(net, optimizer)
            assert bool(monitor.relative_steps) is (bound is not None)


def test_only_watched_steps_cost_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    optimizer = LAMB(layer_groups(net), lr=0.01)
    StepMonitor(optimizer, Writer(), every=4, max_relative_step=1.0)
    copies = [0]
    real = torch.Tensor.tolist

    def counted(a: torch.Tensor) -> Any:
        copies[0] += 1
        return real(a)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    for _ in range(8):
        step(net, optimizer)
    assert copies == [2], "steps 1 and 5, one transfer each"


def test_it_watches_optimizers_of_others_too_and_can_be_removed() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.named_parameters(), lr=10.0)
    monitor = StepMonitor(optimizer, writer := Writer(), every=1, max_relative_step=1e9)
    step(net, optimizer)
    assert {tag.partition("/")[0] for tag, _, _ in writer.points} == {"relative_step"}
    assert set(monitor.relative_steps) == {name for name, _ in net.named_parameters()}
    monitor.remove()
    step(net, optimizer)
    assert {number for _, _, number in writer.points} == {1}


def test_complex_layers_have_a_relative_step() -> None:
    x = nn.Parameter(torch.tensor([3 + 4j]))
    x.grad = torch.tensor([1 + 0j])
    optimizer = LARS([x], lr=0.1)
    monitor = StepMonitor(optimizer, max_relative_step=1.0)
    optimizer.step()
    assert monitor.relative_steps["0"] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; it must be an integer at least 1"),
        ({"every": True}, "every is True"),
        ({"every": 2.5}, "every is 2.5"),
        ({"max_relative_step": 0}, "max_relative_step is 0; it must be a number above 0, finite"),
        ({"max_relative_step": True}, "max_relative_step is True"),
        ({"max_relative_step": "a"}, "max_relative_step is 'a'"),
        ({"first_step": "a"}, "first_step is 'a'; it must be an integer"),
        ({"writer": 3}, "writer is 3; it must be None or have a method add_scalar"),
        ({"optimizer": None}, "optimizer is of type NoneType; it must be a torch.optim.Optimizer"),
        ({"max_relative_step": math.nan}, "max_relative_step is nan"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepMonitor(**{"optimizer": LAMB([nn.Parameter(torch.ones(2))]), **options})


def test_a_layer_that_is_no_number_any_more_is_warned_of() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = LAMB([("x", x)])
    monitor = StepMonitor(optimizer, Writer(), every=1, max_relative_step=0.5)
    x.grad = torch.tensor([1.0, math.nan])
    with pytest.warns(RuntimeWarning, match="the layer x moved by inf times its norm"):
        optimizer.step()
    assert monitor.relative_steps == {"x": math.inf}


def test_groups_that_come_within_a_step_and_steps_that_raise() -> None:
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LAMB([("x", x)], lr=0.1)
    monitor = StepMonitor(optimizer, every=1, max_relative_step=0.5)

    def closure() -> float:
        optimizer.add_param_group({"params": [("y", y)]})
        x.grad = torch.ones(2)
        return 1.0

    optimizer.step(closure)
    assert set(monitor.relative_steps) == {"x"}
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr is -1\.0"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert set(monitor.relative_steps) == {"x", "y"}
