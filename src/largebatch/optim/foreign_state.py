"""State dicts of other makers, put into our words before they are checked and loaded.

- LAMB takes over torch's Adam and AdamW: the same keys; amsgrad and decay in the gradient have no counterpart here.
- LAMB takes over timm's Lamb: it counts steps in the group instead of in each state, and says with other options what
  we can say.
- LARS takes over timm's Lars, which is its rule "2017-lr-outside".

What was written by another rule is refused, for its moments are of other units though they may have the same names: so
are LAMB's for LANS, and SGD's momentum for LARS. An option that would change the steps to come and that we do not
have is refused too.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

MARK = "algorithm"
"""The key of a parameter group that says which rule its state is of."""
_LOADED = {
    "LAMB": ("LAMB", "torch's Adam", "timm's Lamb"),
    "LANS": ("LANS",),
    "LARS": ("LARS", "timm's Lars"),
}
_ADAM = {"amsgrad": False}
_TIMM_LAMB = {
    "grad_averaging": True,
    "caution": False,
    "decoupled_decay": False,
    "corrected_weight_decay": False,
}
_TIMM_LARS = {"dampening": 0, "trust_clip": False}
"""Options of others that we do not have, with the value at which their rule is ours."""
_SIGNS = {
    "timm's Lamb": ("grad_averaging",),
    "timm's Lars": ("trust_coeff",),
    "torch's Adam": ("amsgrad",),
    "torch's SGD": ("dampening",),
    "an optimizer that is not known here": (
        "decoupled_weight_decay",
        "momentum_decay",
        "lr_decay",
        "alpha",
        "rho",
        "lambd",
        "etas",
        "ns_steps",
        "beta2_decay",
    ),
}
"""Options by which the groups of others are told, the first maker that has one of them first."""


def translated(
    algorithm: str, group: Mapping[str, Any], states: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a packed group and the states of its parameters in our words; both as they are if they are ours.

    Args:
        algorithm: the rule that is to go on with them.
        group: of a state dict, without parameters.
        states: of the group's parameters.

    Raises:
        ValueError: the group was written by another rule, or with an option that changes the step and that we do
            not have.
    """
    group = dict(group)
    maker = group.get(MARK) or next((name for name, signs in _SIGNS.items() if set(signs) & set(group)), None)
    if maker is not None and maker not in _LOADED[algorithm]:
        raise ValueError(
            f"the state dict is of {maker}, whose state {algorithm} cannot go on with; it loads those of "
            f"{', '.join(_LOADED[algorithm])}"
        )
    if maker == "timm's Lamb":
        group, states = _from_timm_lamb(group, states)
    elif maker == "timm's Lars":
        group = _from_timm_lars(group)
    elif maker == "torch's Adam":
        group = _from_adam(group)
    return group, states


def _from_adam(group: dict[str, Any]) -> dict[str, Any]:
    _refuse_others(group, _ADAM, "torch's Adam")
    if not group.pop("decoupled_weight_decay", True) and group["weight_decay"]:
        raise ValueError(
            f"the state dict of torch's Adam has weight_decay={group['weight_decay']!r} in the gradient; here it has "
            "to be 0, or decoupled as AdamW's"
        )
    group["betas"] = tuple(float(beta) if isinstance(beta, Tensor) else beta for beta in group["betas"])
    return group


def _from_timm_lamb(group: dict[str, Any], states: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    _refuse_others(group, _TIMM_LAMB, "timm's Lamb")
    group.pop("max_lr_snapshot", None)
    # There, no decay means no ratio unless always_adapt says otherwise.
    group["adapt"] = bool(group.pop("always_adapt", False)) or group["weight_decay"] != 0
    group["ratio_bounds"] = (0.0, 1.0) if group.pop("trust_clip", False) else None
    step = group.pop("step", None)
    if step is not None:
        states = [{"step": step, **state} if state else state for state in states]
    return group, states


def _from_timm_lars(group: dict[str, Any]) -> dict[str, Any]:
    _refuse_others(group, _TIMM_LARS, "timm's Lars")
    group["adapt"] = bool(group.pop("always_adapt", False)) or group["weight_decay"] != 0
    return {"rule": "2017-lr-outside", "trust_coefficient": group.pop("trust_coeff"), **group}


def _refuse_others(group: dict[str, Any], ours: Mapping[str, Any], maker: str) -> None:
    for name, value in ours.items():
        if (given := group.pop(name, value)) != value:
            raise ValueError(f"the state dict of {maker} has {name}={given!r}; here it has to be {value!r}")
