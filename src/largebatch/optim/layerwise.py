r"""The general layerwise strategy: any optimizer's step, scaled layer by layer to the norm of the weights.

Section 3 of *Large Batch Optimization for Deep Learning* (You et al., ICLR 2020, arXiv 1904.00962v5). A base
algorithm A would move the weights by ``x <- x - eta * u``. For each layer x, with A's step taken at some rate:

    u    = (start - stepped) / rate
    x   <- start - lr * phi(||start||) / ||u|| * u

A = momentum SGD gives algorithm 1 of LARS, A = AdamW gives LAMB. The plain implementation below has the same letters.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.base import TrustRatioOptimizer
from largebatch.optim.base_probe import BASE_RATE, check_base, state_can_be_made_ahead, widened
from largebatch.optim.base_step import create_base_state, take_base_step
from largebatch.optim.calls import Call
from largebatch.optim.gathering import has_master
from largebatch.optim.gradient_norm import SharedSums
from largebatch.optim.kernels import foreach as multi_tensor
from largebatch.optim.kernels import pieces
from largebatch.optim.kernels.contract import Layers, LayerwiseRule, Norm, Phases
from largebatch.optim.kernels.plain import any_number_of_elements, partial_sums, squares, write_back_
from largebatch.optim.options import HOW_COMPUTED, check_flag, check_names, check_parameter, given_options
from largebatch.optim.state import HALF, check_state, master_of
from largebatch.optim.state_contract import LastStep, around_loading, check_state_dict

_OF_GROUPS = (
    "adapt",
    "norm",
    "phi_bounds",
    "ratio_bounds",
    "max_grad_norm",
    "stacked",
    "master_weights",
)
"""Our options that stand in the base's parameter groups."""
_TAKEN = "_is_base_of_layerwise"
"""The attribute of a base that has a Layerwise: two of them would share its groups, and with them their options."""


def layerwise_norms_(layers: Layers, rule: LayerwiseRule) -> Tensor:
    """Return float64 [layers, 2]: the sums for ``||start||`` and ``||u||``."""
    sums = []
    for start, stepped in zip(layers.state["start"], layers.state["stepped"], strict=True):
        u = (start.to(layers.dtype) - stepped) / rule.base_rate
        sums.append(partial_sums(rule.norm, start, u))
    return torch.stack(sums)


def layerwise_apply_(layers: Layers, rule: LayerwiseRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Move each layer: ``x <- start - lr * ratio * u``, with ratios float64 [layers, 1]."""
    lengths = layers.lengths(lr, ratios[:, 0]).unbind()
    for i, (start, stepped) in enumerate(zip(layers.state["start"], layers.state["stepped"], strict=True)):
        start = start.to(layers.dtype)
        u = (start - stepped) / rule.base_rate
        write_back_(layers, i, start - lengths[i] * u)


class Layerwise(TrustRatioOptimizer):
    r"""The general layerwise strategy over any optimizer.

    .. math::
        u_t = \frac{x_t - A(x_t, g_t; \rho)}{\rho}, \qquad
        x_{t+1} = x_t - \eta \, \frac{\phi(\lVert x_t \rVert)}{\lVert u_t \rVert} \, u_t

    for each layer (parameter) x, with A the base's step at a large rate :math:`\rho` = 65,536, at which a float32
    difference loses no more than a bit of u wherever an element of u is not below 1/65,536 of that of x. The ratio is 1
    where x or u is zero and in groups with ``adapt=False``, where the base's step is taken as it is.
    ``Layerwise(AdamW(...))`` is LAMB and ``Layerwise(SGD(..., momentum=...))`` moves adapted layers as algorithm 1 of
    LARS. Source: section 3 of arXiv 1904.00962v5.

    Parameter groups and state are the base's own: its learning rate is ours, a scheduler may drive either, and its
    weight decay and momentum act inside the direction. The base steps in float32 also where parameters are
    half-precision, on stand-ins of them. Parameters without a gradient it does not see. What a base does beside a step
    along a direction is scaled with it: one that takes all weights somewhere else now and then (Lookahead) is taken,
    and is not what it was. Hooks on all optimizers run for the base's step and for ours.

    Args:
        base_optimizer: any optimizer whose step is proportional to its learning rate; that is tried, on a copy,
            when it is given. Its groups may already have the options below, as those of `layer_groups` do.
        maximize: handed on to a base that knows the option, and done here for one that does not.
        foreach: kernels of the ratios and of the last phase; the base chooses its own. One value for all groups.
        capturable: needs a base that is capturable in all groups; nothing else here reads from the device.
        differentiable: needs a base that is differentiable.
        fused: True raises: there are no fused kernels of this strategy. The base may have its own.

    The other options are those of `LAMB`, per group of the base; a base that has one of the same name is refused,
    for it clips or scales by itself. Whether a GradScaler may leave unscaling to the step is as the base says.

    State per parameter: the base's, in float32 for half-precision parameters, and `master`. A state dict is the
    base's, with our options in its groups; one of the base alone loads too.

    Raises:
        ValueError: an option outside its range, a stacked parameter that does not divide, or a base that needs a
            closure, keeps the rate in its state, is layerwise itself, wraps another or has a `Layerwise` already.
        NotImplementedError: an option or a kind of parameter that this version does not have.
        RuntimeError: in `step`: a sparse gradient, a GradScaler's `found_inf` that the base cannot skip by, or
            half-precision parameters that the base keeps elsewhere than in its groups.

    Example:
        >>> import torch
        >>> from largebatch.optim import Layerwise
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Layerwise(torch.optim.RMSprop([("x", x)], lr=0.1))
        >>> (x**2).sum().backward()
        >>> optimizer.step()  # moves x by exactly lr * ||x|| = 0.5
        >>> round(float((x.detach() - torch.tensor([3.0, 4.0])).norm()), 6)
        0.5
    """

    _algorithm: ClassVar[str] = "Layerwise"
    _moments: ClassVar[tuple[str, ...]] = ()
    _counts_steps: ClassVar[bool] = False
    _phases: ClassVar[dict[str, Phases]] = {
        "plain": Phases(squares, layerwise_norms_, layerwise_apply_, any_number_of_elements),
        "foreach": Phases(
            pieces.squares, multi_tensor.layerwise_norms_, multi_tensor.layerwise_apply_, pieces.kept_elements
        ),
    }

    def __init__(
        self,
        base_optimizer: Optimizer,
        *,
        adapt: bool = True,
        norm: Norm = 2,
        phi_bounds: tuple[float, float] | None = None,
        ratio_bounds: tuple[float, float] | None = None,
        max_grad_norm: float | None = None,
        stacked: tuple[int, int] | None = None,
        master_weights: bool = False,
        norm_process_group: Any = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if isinstance(base_optimizer, TrustRatioOptimizer):
            raise ValueError(f"base_optimizer is a {type(base_optimizer).__name__}, which is layerwise already")
        self._own = given_options(Layerwise, locals())
        self._shared = SharedSums(self._own.pop("norm_process_group"))
        check_flag("maximize", maximize)
        check_base(base_optimizer)
        if known := [name for name in _OF_GROUPS if name in base_optimizer.defaults]:
            raise ValueError(
                f"{type(base_optimizer).__name__} has an option {known[0]} of its own; a base optimizer has to "
                "leave clipping and scaling to Layerwise"
            )
        if getattr(base_optimizer, _TAKEN, False):
            raise ValueError(f"this {type(base_optimizer).__name__} is the base of a Layerwise already; make another")
        self.base_optimizer = base_optimizer
        self._last = LastStep()
        # What Optimizer.__init__ does but for the groups and the state, which the base has made.
        Optimizer.__setstate__(self, {"defaults": {**base_optimizer.defaults, **self._own}})
        # Copies first: where one is refused, the base stays as it was.
        completed = [dict(group) for group in self.param_groups]
        for group in completed:
            self._complete(group, self._own)
            self._check_new(group)
        for group, own in zip(self.param_groups, completed, strict=True):
            group.update(own)
        setattr(base_optimizer, _TAKEN, True)

    # ---- groups and state are the base's --------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base's parameter groups, with our options in them."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.base_optimizer.state = state

    def _complete(self, group: dict[str, Any], values: Mapping[str, Any]) -> None:
        """Give a group those of our options that it lacks."""
        for name in (*_OF_GROUPS, "maximize"):
            group.setdefault(name, values[name])
        if self._own["maximize"]:
            group["maximize"] = True

    def _base_maximizes(self) -> bool:
        return "maximize" in self.base_optimizer.defaults

    def _options(self, group: dict[str, Any]) -> Mapping[str, Any]:
        how = {name: self._own[name] for name in HOW_COMPUTED}
        # What the base does with the gradient is not to be done twice.
        return {**group, **how, "maximize": group["maximize"] and not self._base_maximizes()}

    def _append_group(self, param_group: dict[str, Any]) -> None:
        self.base_optimizer.add_param_group(param_group)
        self._complete(self.param_groups[-1], self._own)

    def _check_names(self, group: dict[str, Any]) -> None:
        check_names(group, {**self.base_optimizer.defaults, **self._own})

    def _check_rule(self, options: Mapping[str, Any]) -> None:
        pass  # the base's options are the base's to check

    def _check_group(self, group: dict[str, Any], *, look_at_tensors: bool) -> None:
        super()._check_group(group, look_at_tensors=look_at_tensors)
        for name in ("capturable", "differentiable"):
            if self._own[name] and not group.get(name):
                raise ValueError(f"{name}=True: the base optimizer has to have it too, in all of its groups")
        if group.get("differentiable") and not self._own["differentiable"]:
            raise ValueError("the base optimizer has differentiable=True; Layerwise has to have it too")

    def _rule(self, options: Mapping[str, Any]) -> LayerwiseRule:
        return LayerwiseRule(options["maximize"], options["adapt"], options["norm"], BASE_RATE)

    def _has_master(self, p: Tensor, options: Mapping[str, Any]) -> bool:
        return False  # masters are handled where the base steps, for its state must not hold one before its own

    def _state_of(self, p: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
        return self.state.get(p, {})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return bool(getattr(self.base_optimizer, "_step_supports_amp_scaling", False))

    # ---- the base's step ------------------------------------------------------------------------------------

    def _find_directions(self, calls: list[Call], found_inf: Tensor | None) -> None:
        """Let the base step, and hand the kernels both ends of its step."""
        if found_inf is not None and not self._step_supports_amp_scaling:
            name = type(self.base_optimizer).__name__
            raise RuntimeError(f"found_inf is set, but the step of {name} cannot be skipped by it")
        take_base_step(self.base_optimizer, calls, self._last.capturables, found_inf)

    @torch.no_grad()
    def init_state(self) -> None:
        """Create the state of all parameters that take gradients, as before a first step; checkpoints want it.

        A base makes its state in its first step. It is made to take one of zeros at zero, whose count is then
        taken back; whether that leaves it as good as new is tried before.

        Raises:
            NotImplementedError: it does not.
        """
        members = [
            (p, group) for group in self.param_groups for p in group["params"] if p.requires_grad or p.grad is not None
        ]
        wanting = [p for p, _ in members if not set(self.state.get(p, ())) - {"master"}]
        if wanting and not state_can_be_made_ahead(self.base_optimizer):
            raise NotImplementedError(
                f"the state of {type(self.base_optimizer).__name__} cannot be created without a step that it would "
                "remember; torch.distributed.checkpoint.state_dict, or a first step, creates it"
            )
        if wanting:
            create_base_state(self.base_optimizer, wanting)
        for p, group in members:
            if p.dtype in HALF and p in self.state:
                self.state[p] = widened(self.state[p])
            if has_master(p, group) and "master" not in self.state.get(p, ()):
                self.state[p]["master"] = master_of(p)

    # ---- state dicts ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict, with our options in its groups."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self.base_optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of its base alone; tensors are copied.

        Float32 states of half-precision parameters stay float32. Those of our options that the file lacks keep the
        value of the live group, and so do those of the base that say how to compute.

        Raises:
            ValueError: groups or shapes do not fit, or an option is out of range. Nothing has changed then.
        """
        check_state_dict(state_dict)
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        with around_loading(self.base_optimizer, self._prepared, counts=False):
            self.base_optimizer.load_state_dict(state_dict)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _prepared(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict with our options in its groups, checked against this optimizer."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            return state_dict  # torch says what is wrong
        for group, live in zip(groups, self.param_groups, strict=True):
            self._complete(group, live)
            group.update({name: live[name] for name in HOW_COMPUTED if name in live})
            self._check_group(group, look_at_tensors=True)
            for number, p in zip(group["params"], live["params"], strict=True):
                check_parameter(str(number), p, group["stacked"])
                check_state(str(number), p, state_dict["state"].get(number, {}), ())
        return {**state_dict, "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        return {
            "defaults": self.defaults,
            "_own": self._own,
            "_shared": self._shared,
            "base_optimizer": self.base_optimizer,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)
        self._last = LastStep()

    def __repr__(self) -> str:
        return f"{type(self).__name__} over {self.base_optimizer!r}"
