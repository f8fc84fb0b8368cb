"""What all layerwise optimizers share: gathering of layers, the state contract, clipping, the choice of kernels.

A step is: gather the layers that have a gradient, measure the gradients where they are clipped, then for each list
of layers norms, ratios, weights (`kernels/contract.py`). A rule (`lamb.py`) brings its kernels and its options.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from largebatch.optim.gathering import Place, alike, dense, layers_of, portions, real_blocks, taking_part
from largebatch.optim.kernels import foreach
from largebatch.optim.kernels.contract import Layers, Phases
from largebatch.optim.options import HOW_COMPUTED, check_common, check_names, check_parameter, option_defaults
from largebatch.optim.state import FOREIGN_OPTIONS, HALF, Unloaded, check_state, master_of, new_state, restore
from largebatch.optim.trust_ratio import norms_from_sums, trust_ratios

_log = logging.getLogger("largebatch.optim")
_logged: set[tuple[str, str, str]] = set()


@dataclass(slots=True)
class _Call:
    """Layers that the kernels take in one call, and where they come from."""

    group: dict[str, Any]
    phases: Phases
    layers: Layers
    places: list[Place]


class TrustRatioOptimizer(Optimizer, ABC):
    """A rule that scales each layer's direction to the norm of its weights; `LAMB` says what the options mean."""

    _moments: ClassVar[tuple[str, ...]]
    """Keys of the state tensors that have the parameter's shape, zero at first."""
    _directions: ClassVar[int] = 1
    _phases: ClassVar[dict[str, Phases]]
    """Kernels by backend: "plain", "foreach"."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._record: list[tuple[list[Place], Tensor]] = []
        super().__init__(params, defaults)

    @abstractmethod
    def _check_rule(self, group: dict[str, Any]) -> None:
        """Raise ValueError if one of the rule's own options is out of range."""

    @abstractmethod
    def _rule(self, group: dict[str, Any]) -> Any:
        """Return the options that the kernels need."""

    # ---- the step -------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients as they are; parameters without one are left alone.

        Args:
            closure: called first, with gradients enabled, to compute the loss and the gradients.

        Returns:
            What the closure returned.

        Raises:
            ValueError: an option was set out of range since the last step.
            RuntimeError: a gradient is sparse. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        calls = list(self._gather())
        self._clip(calls)
        self._record = []
        for call in calls:
            group, rule = call.group, self._rule(call.group)
            sums = call.phases.norms_(call.layers, rule)
            ratios = trust_ratios(
                sums,
                adapt=group["adapt"],
                norm=group["norm"],
                phi_bounds=group["phi_bounds"],
                ratio_bounds=group["ratio_bounds"],
            )
            lr = group["lr"]
            lr = _on(ratios.device, lr.reshape(())) if isinstance(lr, Tensor) else float(lr)
            call.phases.apply_(call.layers, rule, ratios, lr)
            self._record.append((call.places, ratios.detach()))
        return loss

    def _gather(self) -> Iterator[_Call]:
        """Yield the layers that have a gradient, alike ones together; count their step. Checks come first."""
        for group in self.param_groups:
            self._check_group(group, look_at_tensors=False)
        for group, members in list(taking_part(self.param_groups)):
            for device, native, some in alike(members):
                phases = self._phases[self._backend(group, device, native)]
                for portion in portions(some, phases.elements_at_once(device)):
                    steps = [self._state_of(p, group)["step"] for _, p, _ in portion]
                    torch._foreach_add_(steps, torch.ones((), dtype=torch.float32, device="cpu"), alpha=1.0)
                    layers, places = layers_of(
                        portion,
                        self.state,
                        moments=self._moments,
                        stacked=group["stacked"],
                        detach=not group["differentiable"],
                    )
                    if places:
                        yield _Call(group, phases, layers, places)

    def _clip(self, calls: list[_Call]) -> None:
        """Set the scale of the clipped gradients: ``min(1, max_grad_norm / norm)``, one norm for all of them."""
        clipped = [call for call in calls if call.group["max_grad_norm"] is not None]
        if not clipped:
            return
        device = clipped[0].layers.g[0].device
        sums = [_on(device, call.phases.squares(call.layers.g)) for call in clipped]
        norm = norms_from_sums(torch.stack(sums).sum(), 2)
        for call in clipped:
            # A zero norm makes the quotient infinite, which the clamp takes back to 1.
            scale = (call.group["max_grad_norm"] / norm).clamp(max=1)
            call.layers.g_scale = _on(call.layers.g[0].device, scale)

    def _backend(self, group: dict[str, Any], device: torch.device, native: bool) -> str:
        if group["differentiable"] or group["foreach"] is False:
            return "plain"
        if group["foreach"]:
            return "foreach"
        # A subclass of Tensor may lack the multi-tensor operations.
        choice = "foreach" if native else "plain"
        key = (type(self).__name__, device.type, choice)
        if key not in _logged:
            _logged.add(key)
            _log.info("%s on %s: %s kernels (the default; foreach=... chooses)", *key)
        return choice

    # ---- what can be asked ----------------------------------------------------------------------------------

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Return the l2 norm of all gradients as they are now, a float64 0-dim tensor; no synchronisation.

        It is the norm over every parameter that has a gradient, unscaled and unclipped, 0 if none has.
        """
        gradients: dict[Any, list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.numel():
                    grad = dense(p.grad)
                    gradients.setdefault((grad.device, grad.dtype), []).extend(real_blocks(grad))
        if not gradients:
            parameters = (p for group in self.param_groups for p in group["params"])
            return torch.zeros((), dtype=torch.float64, device=next(parameters).device)
        device, _ = next(iter(gradients))
        sums = [_on(device, foreach.squares(grads)) for grads in gradients.values()]
        return torch.stack(sums).sum().sqrt()

    def trust_ratios(self) -> dict[str, Tensor]:
        """Return the ratios of the last step by parameter name, on the parameter's device; no synchronisation.

        Each is a float64 tensor [directions, blocks]: one direction for LAMB, one block unless stacked; 1 where
        the layer is not adapted, NaN where it took no step. Without names, or where names repeat, the keys are
        the numbers of the state dict.
        """
        taken: dict[int, Tensor] = {}
        for places, ratios in self._record:
            blocks = ratios.split([place.blocks for place in places])
            taken.update((place.number, some.T) for place, some in zip(places, blocks, strict=True))
        found: dict[str, Tensor] = {}
        numbered = ((group, p) for group in self.param_groups for p in group["params"])
        for n, (name, (group, p)) in enumerate(zip(self._names(), numbered, strict=True)):
            if n in taken:
                found[name] = taken[n]
            else:
                shape = (self._directions, group["stacked"][1] if group["stacked"] else 1)
                found[name] = torch.full(shape, math.nan, dtype=torch.float64, device=p.device)
        return found

    def _names(self) -> list[str]:
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        count = sum(len(group["params"]) for group in self.param_groups)
        return names if len(set(names)) == count else [str(n) for n in range(count)]

    # ---- groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options default to the optimizer's. The dict itself is not changed.

        Raises:
            ValueError: an option out of range or misspelt, a parameter given twice, a shape that `stacked` does
                not divide.
            NotImplementedError: an option or a kind of parameter that this version does not have.
        """
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            if not isinstance(param_group["params"], (Tensor, set)):
                param_group["params"] = list(param_group["params"])
                given = [p[1] if isinstance(p, tuple) else p for p in param_group["params"]]
                if len({id(p) for p in given}) != len(given):
                    raise ValueError("a parameter group names the same parameter twice")
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            check_names(group, self.defaults)
            self._check_group(group, look_at_tensors=True)
            names = group.get("param_names", range(len(group["params"])))
            if len(names) != len(group["params"]):
                raise ValueError(f"a parameter group has {len(group['params'])} parameters, {len(names)} names")
            for name, p in zip(names, group["params"], strict=True):
                check_parameter(str(name), p, group["stacked"])
        except Exception:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any], *, look_at_tensors: bool) -> None:
        check_common(group, look_at_tensors=look_at_tensors)
        self._check_rule(group)
        if group["differentiable"] != self.defaults["differentiable"]:
            raise ValueError("differentiable must be the same for all groups; give it to the optimizer")

    # ---- state ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_state(self) -> None:
        """Create the state of all parameters that take gradients, as before a first step; checkpoints want it."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad or p.grad is not None:
                    self._state_of(p, group)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        if "step" not in state:
            state.update(new_state(p, self._moments))
        if group["master_weights"] and p.dtype in HALF:
            if "master" not in state:
                state["master"] = master_of(p)
        else:
            state.pop("master", None)  # it would go stale
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or, for LAMB, of torch's Adam and AdamW; tensors are copied.

        Dtypes follow the state contract whatever the file has. Options that the file lacks keep the value of the
        live group; so do those that say how to compute (foreach, fused, capturable, differentiable).

        Raises:
            ValueError: groups, shapes or keys do not fit, an option is out of range, or AdamW had amsgrad on.
                Nothing has changed then.
        """
        # The hook is registered last, so that it sees what the user's own hooks have made of the state dict.
        handle = self.register_load_state_dict_pre_hook(_prepare)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_record"):
            self._record = []
        for name, value in option_defaults(type(self)).items():
            self.defaults.setdefault(name, value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for p, values in self.state.items():
            if isinstance(values, dict):
                for key, value in values.items():
                    if isinstance(value, Unloaded):
                        values[key] = restore(p, key, value.value)


def _prepare(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check a state dict against the optimizer, complete its groups, and hide its tensors from torch's casts."""
    assert isinstance(optimizer, TrustRatioOptimizer)
    live, loaded = optimizer.param_groups, [dict(group) for group in state_dict["param_groups"]]
    states = dict(state_dict["state"])
    if [len(group["params"]) for group in live] != [len(group["params"]) for group in loaded]:
        return state_dict  # torch says what is wrong
    for old, new in zip(live, loaded, strict=True):
        if new.get("amsgrad"):
            raise ValueError("the state dict was written with amsgrad=True, which this optimizer does not have")
        for name in FOREIGN_OPTIONS:
            new.pop(name, None)
        for name in optimizer.defaults:
            if name not in new or name in HOW_COMPUTED:
                new[name] = old[name]
        for key, p in zip(new["params"], old["params"], strict=True):
            if isinstance(state := states.get(key), dict):
                check_state(str(key), p, state, optimizer._moments)
                states[key] = {name: Unloaded(value) for name, value in state.items()}
        optimizer._check_group(new, look_at_tensors=True)
        for key, p in zip(new["params"], old["params"], strict=True):
            check_parameter(str(key), p, new["stacked"])
    return {**state_dict, "state": states, "param_groups": loaded}


def _on(device: torch.device, a: Tensor) -> Tensor:
    # Without waiting, except for what the CPU is to read: that could be read before it has come.
    return a.to(device, non_blocking=device.type != "cpu")
