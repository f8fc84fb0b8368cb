"""An optimizer that keeps the state contract (`state.py`): groups with checked options, states, state dicts."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from largebatch.optim.foreign_state import MARK, translated
from largebatch.optim.gathering import has_master, refuse_sparse
from largebatch.optim.gradient_norm import SharedSums
from largebatch.optim.options import (
    HOW_COMPUTED,
    check_common,
    check_names,
    check_parameter,
    check_stacked_shape,
    option_defaults,
)
from largebatch.optim.shards import is_sharded
from largebatch.optim.state import (
    check_state,
    counts_on_device,
    master_of,
    new_count,
    new_moment,
    restore,
    restore_count,
)


class RatiosTaken(NamedTuple):
    """The trust ratios of one call of the kernels."""

    numbers: list[int]
    """The numbers of its parameters."""
    blocks: list[int]
    """How many layers each of them holds."""
    ratios: Tensor
    """Float64 [layers, directions]."""


class LastStep:
    """What is remembered of the last step; an object of its own, because a compiled step can only change such."""

    def __init__(self) -> None:
        self.ratios: list[RatiosTaken] = []
        self.capturables: list[bool | None] = []
        """The option of that name in each group, as `_init_group` has read it. A compiler that traces a step shows the
        option as true in all groups, so that it can choose what it traces; where the trace writes to a group, as
        `Layerwise` does to give its base a rate, the true would be written down with it."""


class StatefulOptimizer(Optimizer, ABC):
    """Groups, states and state dicts of all layerwise optimizers; `TrustRatioOptimizer` takes their steps."""

    _algorithm: ClassVar[str]
    """The name by which state dicts tell whose they are."""
    _moments: ClassVar[tuple[str, ...]]
    """Keys of the state tensors that have the parameter's shape, zero at first."""
    _counts_steps: ClassVar[bool] = True
    """Whether the state has the number of steps, which a rule with bias correction needs."""
    _last: LastStep
    _shared: SharedSums

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._last = LastStep()
        self._shared = SharedSums(defaults.pop("norm_process_group"))
        super().__init__(params, defaults)

    @abstractmethod
    def _check_rule(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError if one of the rule's own options is out of range."""

    def _options(self, group: dict[str, Any]) -> Mapping[str, Any]:
        """Return the options of a group, as the step is to read them."""
        return group

    def _moments_of(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the moments that a rule with these options needs."""
        return self._moments

    def _has_master(self, p: Tensor, options: Mapping[str, Any]) -> bool:
        return has_master(p, options)

    # ---- groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options default to the optimizer's. The dict itself is not changed.

        Raises:
            ValueError: an option out of range or misspelt, a parameter given twice, a shape that `stacked` does
                not divide.
            NotImplementedError: an option or a kind of parameter that this version does not have.
        """
        if isinstance(param_group, dict):
            if "params" not in param_group:
                raise ValueError(
                    f"a parameter group has {', '.join(map(repr, param_group)) or 'nothing'} but not 'params'"
                )
            param_group = dict(param_group)
            if not isinstance(param_group["params"], (Tensor, set)):
                param_group["params"] = list(param_group["params"])
                given = [p[1] if isinstance(p, tuple) else p for p in param_group["params"]]
                if len({id(p) for p in given}) != len(given):
                    raise ValueError("a parameter group names the same parameter twice")
        self._append_group(param_group)
        try:
            self._check_new(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _append_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1][MARK] = self._algorithm

    def _check_new(self, group: dict[str, Any]) -> None:
        """Check a group that is new here, and let it name no process group."""
        self._check_names(group)
        self._check_group(group, look_at_tensors=True)
        self._shared.take_from(group)
        names = group.get("param_names", range(len(group["params"])))
        if len(names) != len(group["params"]):
            if not _within_zero_redundancy():  # which shares parameters out and leaves the names
                raise ValueError(f"a parameter group has {len(group['params'])} parameters, {len(names)} names")
            names = range(len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            check_parameter(str(name), p, group["stacked"])
            if self._options(group)["differentiable"] and is_sharded(p):
                raise NotImplementedError(f"differentiable=True: parameter {name} is a DTensor, whose step is not")

    def _check_names(self, group: dict[str, Any]) -> None:
        check_names(group, self.defaults)

    def _check_group(self, group: dict[str, Any], *, look_at_tensors: bool) -> None:
        options = self._options(group)
        check_common(options, look_at_tensors=look_at_tensors)
        self._check_rule(options)
        _refuse_local_clipping(options, self._shared)
        if options["differentiable"] != self.defaults["differentiable"]:
            raise ValueError("differentiable must be the same for all groups; give it to the optimizer")

    def _check_for_step(self, group: dict[str, Any]) -> None:
        """Check a group again, for a schedule may have written anything into it, and its gradients."""
        self._check_group(group, look_at_tensors=False)
        for i, p in enumerate(group["params"]):
            if group["stacked"]:
                check_stacked_shape(f"parameter {i} of a group", p, group["stacked"])
            if p.grad is not None:
                refuse_sparse(p.grad)

    # ---- state ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_state(self) -> None:
        """Create the state of all parameters that take gradients, as before a first step; checkpoints want it."""
        for group in self.param_groups:
            options = self._options(group)
            for p in group["params"]:
                if p.requires_grad or p.grad is not None:
                    self._state_of(p, options)

    def _init_group(
        self,
        group: dict[str, Any],
        numbers: list[int],
        params: list[Tensor],
        grads: list[Tensor],
        steps: list[Tensor],
        masters: list[Tensor],
        *moments: list[Tensor],
    ) -> bool | None:
        """Append what the parameters with a gradient have, creating their state where there is none.

        `torch.compile` knows a method of this name and form: it runs it while it traces a step, instead of
        tracing it, and guards all that it has read. Parameters without a master stand in `masters` themselves.

        Returns:
            The group's option `capturable`, see `LastStep`.
        """
        options = self._options(group)
        if torch.compiler.is_compiling():  # otherwise all groups have been checked before
            self._check_for_step(group)
        number = 0
        for other in self.param_groups:
            if other is group:
                break
            number += len(other["params"])
        counts, keys = self._counts_steps, self._moments_of(options)
        complete = {*keys, "step"} if counts else {*keys}
        for p in group["params"]:
            grad = p.grad
            if grad is not None:
                if torch.compiler.is_compiling() and is_sharded(p):
                    raise NotImplementedError("a step over DTensors cannot be compiled")
                state = self.state[p]
                # Most steps find all there; what is in doubt is looked at more closely.
                there = state.keys() == complete and not self._has_master(p, options)
                if not there or (counts and not (p.is_cpu and state["step"].is_cpu)):
                    state = self._state_of(p, options)
                numbers.append(number)
                params.append(p)
                grads.append(grad)
                if counts:
                    steps.append(state["step"])
                masters.append(state.get("master", p))
                for key, values in zip(keys, moments, strict=True):
                    values.append(state[key])
            number += 1
        return group.get("capturable")

    def _state_of(self, p: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of a parameter, with what it lacks made and what it no longer needs dropped."""
        state = self.state[p]
        if self._counts_steps:
            on_device = counts_on_device(options)
            if "step" not in state:
                state["step"] = new_count(p, on_device=on_device)
            elif on_device and state["step"].device != p.device:
                state["step"] = state["step"].to(p.device)
            elif not on_device and state["step"].device.type != "cpu" and not torch.compiler.is_compiling():
                state["step"] = state["step"].cpu()  # where it is read in each step
        needed = self._moments_of(options)
        for key in self._moments:
            if key not in needed:
                state.pop(key, None)  # it would go stale
            elif key not in state:
                state[key] = new_moment(p)
        if self._has_master(p, options):
            if "master" not in state:
                state["master"] = master_of(p)
        else:
            state.pop("master", None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or, by key, one of the makers in `foreign_state.py`; tensors are copied.

        LAMB takes over torch's Adam and AdamW and timm's Lamb, LARS takes over timm's Lars. Dtypes follow the state
        contract whatever the file has. Options that the file lacks keep the value of the live
        group; so do those that say how to compute (foreach, fused, capturable, differentiable).

        Raises:
            ValueError: groups, shapes or keys do not fit, an option is out of range, or the file was written with
                an option that changes the step and that we do not have. Nothing has changed then.
        """
        check_state_dict(state_dict)
        with around_loading(self, self._prepared, counts=True):
            super().load_state_dict(state_dict)

    def _prepared(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict in our words, with complete groups, checked against this optimizer."""
        live, loaded = self.param_groups, [dict(group) for group in state_dict["param_groups"]]
        states = dict(state_dict["state"])
        if [len(group["params"]) for group in live] != [len(group["params"]) for group in loaded]:
            return state_dict  # torch says what is wrong
        for i, (old, new) in enumerate(zip(live, loaded, strict=True)):
            numbers = new["params"]
            new, own_states = translated(self._algorithm, new, [states.get(number, {}) for number in numbers])
            new[MARK] = self._algorithm
            for name in self.defaults:
                if name not in new or name in HOW_COMPUTED:
                    new[name] = old[name]
            needed = (("step",) if self._counts_steps else ()) + self._moments_of(new)
            for number, p, state in zip(numbers, old["params"], own_states, strict=True):
                check_state(str(number), p, state, needed)
                if number in states:
                    states[number] = state
            self._check_group(new, look_at_tensors=True)
            for number, p in zip(numbers, old["params"], strict=True):
                check_parameter(str(number), p, new["stacked"])
            loaded[i] = new
        return {**state_dict, "state": states, "param_groups": loaded}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._last = getattr(self, "_last", LastStep())
        self._shared = getattr(self, "_shared", SharedSums())
        # Of our own class: a subclass may have arguments that are no options.
        ours = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("largebatch."))
        for name, value in option_defaults(ours).items():
            self.defaults.setdefault(name, value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def check_state_dict(state_dict: Any) -> None:
    """Refuse what is no state dict of an optimizer.

    Raises:
        ValueError: what is missing.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        given = f"has {sorted(map(str, state_dict))}" if isinstance(state_dict, Mapping) else f"is {state_dict!r}"
        raise ValueError(f"the state dict {given}; it must be a mapping with 'state' and 'param_groups'")


@contextmanager
def around_loading(
    loading: Optimizer, prepare: Callable[[dict[str, Any]], dict[str, Any]], *, counts: bool
) -> Iterator[None]:
    """Prepare the state dict that torch is about to load, and undo the casts that torch makes of it.

    Args:
        loading: the optimizer whose `load_state_dict` is called within.
        prepare: from the state dict, as the user's own hooks have left it, to the one to load.
        counts: whether the state contract is about the counts of steps too.
    """
    prepared: dict[str, Any] = {}

    def before(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        prepared.update(prepare(given))
        return prepared

    def after(_: Optimizer) -> None:
        for group, saved in zip(loading.param_groups, prepared["param_groups"], strict=True):
            for number, p in zip(saved["params"], group["params"], strict=True):
                for key, value in prepared["state"].get(number, {}).items():
                    if key != "step":
                        loading.state[p][key] = restore(p, value)
                    elif counts:
                        loading.state[p][key] = restore_count(p, value, on_device=counts_on_device(group))

    handles = [
        loading.register_load_state_dict_pre_hook(before),
        loading.register_load_state_dict_post_hook(after, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_local_clipping(options: Mapping[str, Any], shared: SharedSums) -> None:
    """Refuse to clip by the norm of one process's share of the gradients without being told of the others."""
    if options["max_grad_norm"] is not None and shared.process_group is None and _within_zero_redundancy():
        raise ValueError(
            "max_grad_norm within ZeroRedundancyOptimizer needs norm_process_group, the process group it shares the "
            "parameters over: the norm of one process's share is not the norm of the gradient"
        )


def _within_zero_redundancy() -> bool:
    """Return whether ZeroRedundancyOptimizer is calling; its optimizer cannot see from its share that it has one."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            return True
        frame = frame.f_back
    return False
