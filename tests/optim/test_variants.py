"""The named variants: each is the rule that its source describes, and not another."""

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from largebatch.optim import LAMB, Variant, layer_groups, variants
from oracle import Lamb, norm_of

OPTIONS: dict[str, dict[str, Any]] = {
    "paper-v5": {},
    "paper-v3": {"bias_correction": False},
    "nvlamb": {"max_grad_norm": 1.0, "adapt": True},
    "lambc": {"ratio_bounds": (0.0, 1.0)},
    "deepspeed-clamp": {"ratio_bounds": (0.01, 0.3)},
    "n-lamb": {"nesterov": "first"},
    "nn-lamb": {"nesterov": "both"},
}
"""What each name means to the oracle, which has it from the paper."""


def test_the_names_are_those_that_are_documented() -> None:
    assert list(variants) == list(OPTIONS)
    for name, variant in variants.items():
        assert variant.name == name
        assert variant.what.endswith(".")
        assert variant.source
    assert "lambc" in variants
    assert "lamb-c" not in variants
    assert len(variants) == len(OPTIONS)
    for unknown in ("lamb-c", 3, ["lambc"]):
        with pytest.raises((KeyError, ValueError), match=r"there is no variant .*; there are 'paper-v5', 'paper-v3'"):
            variants[unknown]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        variants["new"] = variants["lambc"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        variants["lambc"].name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def ends(variant: Variant | None, groups: Any = None, **options: Any) -> list[Tensor]:
    made = zoo.parameters(zoo.weights())
    given = zoo.groups_over(made, groups or (zoo.PLAIN_GROUP,))
    optimizer = LAMB(given, **options) if variant is None else variant.build(given, **options)
    for _ in zoo.run(made, optimizer):
        pass
    return [p.detach() for p in made]


@pytest.mark.parametrize("name", OPTIONS)
def test_fifty_steps_equal_the_oracle(name: str) -> None:
    oracle = Lamb(zoo.weights(), ({**zoo.PLAIN_GROUP, **OPTIONS[name]},))
    for step in range(1, zoo.STEPS + 1):
        oracle.groups[0]["lr"] = zoo.learning_rate(0, step)
        oracle.step(zoo.gradients(step))
    for found, expected in zip(ends(variants[name]), oracle.x, strict=True):
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-12, atol=1e-12)


def test_no_two_of_them_are_the_same_rule() -> None:
    found = {name: torch.cat([a.flatten() for a in ends(variant)]) for name, variant in variants.items()}
    for name, end in found.items():
        for other in found:
            assert torch.allclose(end, found[other], rtol=1e-3) is (name == other), (name, other)


def test_nvlamb_adapts_every_layer_whatever_the_groups_say() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for name, adapted in (("nvlamb", True), ("paper-v5", False)):
        groups = layer_groups(model)
        optimizer = variants[name].build(groups, lr=0.1)
        assert all(group["adapt"] for group in optimizer.param_groups) is adapted
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0], "the decay is another choice"
        assert groups[1]["adapt"] is False, "the caller's groups stay as they are"
    assert not any(group["adapt"] for group in variants["nvlamb"].build(model.parameters(), adapt=False).param_groups)


def test_nvlamb_divides_by_the_global_norm_only_above_one() -> None:
    """The authors write g / max(1, ||g||)."""
    for size in (0.1, 10.0):
        x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        g = torch.tensor([0.6, 0.8], dtype=torch.float64) * size
        optimizer = variants["nvlamb"].build([x], eps=1e-2, weight_decay=0.0, lr=0.1)
        x.grad = g.clone()
        optimizer.step()
        seen = g / max(1.0, norm_of(g.numpy(), 2))
        torch.testing.assert_close(optimizer.state[x]["exp_avg"], 0.1 * seen)


@pytest.mark.parametrize("name", OPTIONS)
def test_overrides_win_and_unknown_ones_are_refused(name: str) -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = variants[name].build([("x", x)], lr=0.5, ratio_bounds=(0.2, 0.3), max_grad_norm=7.0)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["ratio_bounds"], group["max_grad_norm"]) == (0.5, (0.2, 0.3), 7.0)
    with pytest.raises(TypeError, match="trust_clip"):
        variants[name].build([x], trust_clip=True)
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        variants[name].build(x)
    assert isinstance(variants[name].build(p for p in [x]), LAMB)


def test_norms_are_options_of_every_variant() -> None:
    for norm in (1, "inf"):
        a, b = ends(variants["lambc"], norm=norm), ends(None, norm=norm, ratio_bounds=(0.0, 1.0))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
