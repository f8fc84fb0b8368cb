"""Every rule beside its oracle, with the sets of options that the chain of trust runs over the zoo."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import zoo
from torch.optim import SGD, Adagrad, AdamW, Optimizer, RMSprop

import oracle
from largebatch.optim import LAMB, LANS, LARS, Layerwise

Options = dict[str, Any]
Groups = tuple[Options, ...]


@dataclass(frozen=True)
class Case:
    """A rule: how to build it over groups, what judges it, and with which options."""

    build: Callable[..., Any]
    judge: type[oracle.Oracle]
    option_sets: dict[str, Groups]
    backends: tuple[str, ...] = (
        "plain",
        "foreach",
        "fused",
        "capturable plain",
        "capturable foreach",
        "capturable fused",
    )


def _alone(**options: Any) -> Groups:
    return ({**zoo.PLAIN_GROUP, **options},)


def _for_everyone() -> dict[str, Groups]:
    """Return option sets of the common options."""
    return {
        "defaults": _alone(),
        "not adapted": _alone(adapt=False, ratio_bounds=(0.1, 0.5)),
        "norm 1": _alone(norm=1),
        "norm inf": _alone(norm="inf"),
        "bounded": _alone(phi_bounds=(0.5, 3.0), ratio_bounds=(0.1, 2.0)),
        "clipped, maximised": _alone(max_grad_norm=0.7, maximize=True),
    }


def _spread(changes: Sequence[Options]) -> Groups:
    """Return the groups of the zoo with other options in each."""
    members = [group["members"] for group in zoo.GROUPS]
    return tuple({"members": some, **change} for some, change in zip(members, changes, strict=True))


LAMB_CASE = Case(
    LAMB,
    oracle.Lamb,
    {
        **_for_everyone(),
        "no correction": _alone(bias_correction=False),
        "nesterov first": _alone(nesterov="first"),
        "nesterov both": _alone(nesterov="both"),
        "at most 1": _alone(ratio_bounds=(0, 1)),
        "no memory": _alone(betas=(0.0, 0.0), eps=1e-2),
        "everything": zoo.GROUPS,
    },
)

LANS_GROUPS = _spread(
    [
        {"weight_decay": 0.1, "eps": 1e-3},
        {"adapt": False, "weight_decay": 0.05, "eps": 1e-2, "maximize": True},
        {"weight_decay": 0.0, "norm": 1, "phi_bounds": (1.0, 4.0)},
        {"betas": (0.8, 0.95), "ratio_bounds": (0.01, 0.4), "norm": "inf"},
        {"stacked": (0, 3), "nesterov": "first", "weight_decay": 0.3},
        {"stacked": (-1, 2), "nesterov": "both", "bias_correction": False},
    ]
)
LANS_CASE = Case(
    LANS,
    oracle.Lans,
    {
        **{name: groups for name, groups in _for_everyone().items() if "clipped" not in name},
        "maximised": _alone(maximize=True),
        "no correction": _alone(bias_correction=False),
        "no decay": _alone(weight_decay=0.0),
        "no memory": _alone(betas=(0.0, 0.0), eps=1e-2),
        "nesterov both": _alone(nesterov="both"),
        "everything": LANS_GROUPS,
    },
)

LARS_GROUPS = _spread(
    [
        {"weight_decay": 0.1, "max_grad_norm": 2.0, "nesterov": True, "maximize": True},
        {"adapt": False, "weight_decay": 0.05, "maximize": True, "rule": "2017", "nesterov": True},
        {"rule": "2017", "norm": 1, "phi_bounds": (1.0, 4.0), "max_grad_norm": 50.0, "trust_coefficient": 0.3},
        {"rule": "2017-lr-outside", "ratio_bounds": (0.01, 0.4), "norm": "inf", "eps": 0.3, "weight_decay": 0.2},
        {"stacked": (0, 3), "momentum": 0.0, "trust_coefficient": 0.5, "eps": 0.1},
        {"stacked": (-1, 2), "rule": "2017-lr-outside", "nesterov": True, "max_grad_norm": 0.5, "momentum": 0.5},
    ]
)
LARS_CASE = Case(
    partial(LARS, lr=0.1),
    oracle.Lars,
    {
        **_for_everyone(),
        "2017": _alone(rule="2017", weight_decay=0.1),
        "2017, clipped and maximised": _alone(rule="2017", max_grad_norm=0.7, maximize=True),
        "2017, not adapted": _alone(rule="2017", adapt=False),
        "2017, look-ahead": _alone(rule="2017", nesterov=True, trust_coefficient=0.1, eps=0.01),
        "rate outside": _alone(rule="2017-lr-outside", weight_decay=0.1),
        "rate outside, look-ahead": _alone(rule="2017-lr-outside", nesterov=True),
        "look-ahead": _alone(nesterov=True, weight_decay=0.0),
        "no momentum": _alone(momentum=0.0),
        "2017, no momentum": _alone(momentum=0.0, rule="2017", weight_decay=0.0),
        "everything": LARS_GROUPS,
    },
)

COMMON_GROUPS: list[Options] = [
    {"weight_decay": 0.1, "max_grad_norm": 2.0},
    {"adapt": False, "weight_decay": 0.05, "maximize": True},
    {"weight_decay": 0.0, "norm": 1, "phi_bounds": (1.0, 4.0), "max_grad_norm": 50.0},
    {"ratio_bounds": (0.01, 0.4), "norm": "inf"},
    {"stacked": (0, 3), "weight_decay": 0.3},
    {"stacked": (-1, 2), "max_grad_norm": 0.5},
]


def _without_fused(how: Options) -> Options:
    """Return options for `Layerwise`, which has no fused kernels: those of its fastest stand in their place."""
    alone = how.get("fused") is True and not {"foreach", "differentiable"} & set(how)
    return {("foreach" if name == "fused" and alone else name): value for name, value in how.items()}


def _layerwise(base: type[Optimizer], **options: Any) -> Callable[..., Layerwise]:
    def build(groups: list[Options], **how: Any) -> Layerwise:
        return Layerwise(base(groups, **options), **_without_fused(how))

    return build


SGD_CASE = Case(
    _layerwise(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    oracle.General,
    {**_for_everyone(), "dampened": _alone(dampening=0.3), "everything": _spread(COMMON_GROUPS)},
    backends=("plain", "foreach"),
)
RMSPROP_CASE = Case(
    _layerwise(RMSprop, lr=0.1, weight_decay=0.01),
    oracle.GeneralRMSprop,
    {"defaults": _alone(), "everything": _spread(COMMON_GROUPS)},
    backends=("plain", "foreach"),
)
ADAGRAD_CASE = Case(
    _layerwise(Adagrad, lr=0.1),
    oracle.GeneralAdagrad,
    {"defaults": _alone(), "decaying": _alone(lr_decay=0.1), "everything": _spread(COMMON_GROUPS)},
    backends=("plain", "foreach"),
)

CASES: dict[str, Case] = {
    "LAMB": LAMB_CASE,
    "LANS": LANS_CASE,
    "LARS": LARS_CASE,
    "Layerwise over SGD": SGD_CASE,
    "Layerwise over RMSprop": RMSPROP_CASE,
    "Layerwise over AdaGrad": ADAGRAD_CASE,
}


def layerwise_over(base: type[Optimizer], **fixed: Any) -> Callable[..., Layerwise]:
    """Return a maker of `Layerwise` that takes the options of the base and its own alike."""
    own = set(inspect.signature(Layerwise).parameters)

    def make(params: Any, **options: Any) -> Layerwise:
        given = _without_fused({**fixed, **options})
        ours = {key: value for key, value in given.items() if key in own}
        # Where both have an option of one name, both get it; but how the base computes is not tried here.
        base_options = {key: value for key, value in given.items() if key not in own or key == "differentiable"}
        return Layerwise(base(params, **base_options), **ours)

    return make


MAKERS: dict[str, Callable[..., Any]] = {
    "LAMB": LAMB,
    "LANS": LANS,
    "LARS": partial(LARS, lr=1e-3),
    "LARS 2017": partial(LARS, lr=1e-3, rule="2017"),
    "LARS outside": partial(LARS, lr=1e-3, rule="2017-lr-outside"),
    "Layerwise AdamW": layerwise_over(AdamW, eps=1e-6, weight_decay=0.01),
    "Layerwise SGD": layerwise_over(SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4),
}
"""Every optimizer as something that takes parameters and options, for tests of what they have in common."""


BACKENDS = ("plain", "foreach", "fused")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def how(backend: str) -> Options:
    """Return the options that choose a backend."""
    chosen: Options = {"fused": True} if backend.endswith("fused") else {"foreach": backend.endswith("foreach")}
    return {**chosen, "capturable": True} if backend.startswith("capturable") else chosen
