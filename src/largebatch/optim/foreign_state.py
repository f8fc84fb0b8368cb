"""State dicts of other makers, put into our words before they are checked and loaded.

- torch's Adam and AdamW: the same keys; amsgrad, decay in the gradient and NAdam's momentum have no counterpart here.
- timm's Lamb: counts steps in the group instead of in each state, and says with other options what we can say.
- torch's SGD and timm's Lars: a momentum buffer that may be None.

An option that would change the steps to come and that we do not have is refused.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_ADAM = {"amsgrad": False, "momentum_decay": None}
"""Options of torch's Adam and NAdam that we do not have, with the value at which the rule is ours."""
_TIMM_LAMB = {
    "grad_averaging": True,
    "caution": False,
    "decoupled_decay": False,
    "corrected_weight_decay": False,
}
"""Options of timm's Lamb that we do not have, with the value at which its rule is ours."""


def translated(group: Mapping[str, Any], states: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a packed group and the states of its parameters in our words; both as they are if they are ours.

    Raises:
        ValueError: the group was written with an option that changes the step and that we do not have.
    """
    group = dict(group)
    _refuse_others(group, _ADAM, "Adam")
    if not group.pop("decoupled_weight_decay", True) and group.get("weight_decay"):
        raise ValueError(
            f"the state dict of Adam has weight_decay={group['weight_decay']!r} in the gradient; here it has to be 0, "
            "or decoupled as AdamW's"
        )
    if isinstance(betas := group.get("betas"), (tuple, list)):
        group["betas"] = tuple(float(beta) if isinstance(beta, Tensor) else beta for beta in betas)
    if "grad_averaging" in group:
        group, states = _from_timm_lamb(group, states)
    elif "dampening" in group:
        group = _from_momentum(group)
    return group, [{key: value for key, value in state.items() if value is not None} for state in states]


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


def _from_momentum(group: dict[str, Any]) -> dict[str, Any]:
    if "trust_coeff" not in group:
        _refuse_others(group, {"dampening": 0}, "SGD")
        return group
    _refuse_others(group, {"dampening": 0, "trust_clip": False}, "timm's Lars")
    group["adapt"] = bool(group.pop("always_adapt", False)) or group["weight_decay"] != 0
    return {"rule": "2017-lr-outside", "trust_coefficient": group.pop("trust_coeff"), **group}


def _refuse_others(group: dict[str, Any], ours: Mapping[str, Any], maker: str) -> None:
    for name, value in ours.items():
        if (given := group.pop(name, value)) != value:
            raise ValueError(f"the state dict of {maker} has {name}={given!r}; here it has to be {value!r}")
