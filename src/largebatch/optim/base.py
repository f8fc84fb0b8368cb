"""What all layerwise optimizers share: gathering of layers, clipping, mixed precision, the choice of kernels.

A step is: gather the layers that have a gradient, measure the gradients where they are clipped or normalised, count
the step, then for each list of layers norms, ratios, weights (`kernels/contract.py`). A rule (`lamb.py`) brings its
kernels and its options; `state_contract.py` keeps its state.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import _use_grad_for_differentiable

from largebatch.optim.calls import Call, complete_phase_zero, complete_sums
from largebatch.optim.gathering import (
    Member,
    alike,
    is_native,
    layers_here,
    layers_of,
    parameter_names,
    portions,
    real_blocks,
    refuse_sparse,
    what_lies_here,
)
from largebatch.optim.gradient_norm import on
from largebatch.optim.kernels import cpu, gpu, pieces, plain
from largebatch.optim.kernels.contract import Phases, RatioRule, Rule
from largebatch.optim.shards import Part, complete, layout_of, local
from largebatch.optim.state_contract import RatiosTaken, StatefulOptimizer
from largebatch.optim.trust_ratio import normalising_scales, norms_from_sums, trust_ratios

_log = logging.getLogger("largebatch.optim")
_logged: set[tuple[str, str, str]] = set()
FUSED = {"fused cpu": cpu, "fused cuda": gpu}
"""Where fused kernels come from."""


class TrustRatioOptimizer(StatefulOptimizer):
    """A rule that scales each layer's direction to the norm of its weights; `LAMB` says what the options mean."""

    _directions: ClassVar[int] = 1
    _normalises_gradients: ClassVar[bool] = False
    """Whether the kernels get gradients of unit norm, layer by layer."""
    _phases: ClassVar[dict[str, Phases]]
    """Kernels by backend: "plain", "foreach" and, for the rules that have them, "fused cpu" and the like."""
    grad_scale: Tensor | None
    found_inf: Tensor | None
    """There while a GradScaler has set them for a step."""

    @abstractmethod
    def _rule(self, options: Mapping[str, Any]) -> Rule:
        """Return the options that the kernels need."""

    def _ratio_rule(self, options: Mapping[str, Any]) -> RatioRule:
        """Return what makes the ratios."""
        return RatioRule(phi_bounds=options["phi_bounds"], ratio_bounds=options["ratio_bounds"])

    def _find_directions(self, calls: list[Call], found_inf: Tensor | None) -> None:
        """For a rule whose direction comes from elsewhere, before the first phase of its kernels.

        Args:
            calls: the layers that take part, their gradients' scales known.
            found_inf: of a GradScaler, as all processes see it.
        """

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
        if not torch.compiler.is_compiling():
            self._check_all()
        calls = self._gather()
        found_inf = self._scale_gradients(calls)
        self._count_step(calls)
        self._find_directions(calls, found_inf)
        self._last.ratios = [self._move(call) for call in calls if call.spread is None and call.layers.x]
        self._last.ratios += self._move_spread([call for call in calls if call.spread is not None])
        return loss

    def _check_all(self) -> None:
        for group in self.param_groups:
            self._check_for_step(group)
        _refuse_capture(self.param_groups)

    def _gather(self) -> list[Call]:
        """Return the layers that have a gradient, alike ones together."""
        calls: list[Call] = []
        self._last.capturables = []
        for group in self.param_groups:
            options = self._options(group)
            keys = self._moments_of(options)
            numbers: list[int] = []
            params: list[Tensor] = []
            grads: list[Tensor] = []
            steps: list[Tensor] = []
            masters: list[Tensor] = []
            moments: list[list[Tensor]] = [[] for _ in keys]
            capturable = self._init_group(group, numbers, params, grads, steps, masters, *moments)
            self._last.capturables.append(capturable)
            members = [
                Member(
                    number,
                    params[i],
                    params[i],
                    grads[i],
                    steps[i] if steps else None,
                    masters[i] if masters[i] is not params[i] else None,
                    tuple([moment[i] for moment in moments]),
                )
                for i, number in enumerate(numbers)
            ]
            members = [member if is_native(member.p) else what_lies_here(member) for member in members]
            for device, native, spread, some in alike(members):
                phases = self._phases[self._backend(options, device, native)]
                # Phase 1 of all that is spread comes before phase 3 of any, so that nothing is gained by portions.
                at_once = math.inf if spread else phases.elements_at_once(device)
                for portion in portions(some, at_once):
                    layers = layers_of(
                        portion, keys=keys, stacked=options["stacked"], detach=not options["differentiable"]
                    )
                    if layers.x:
                        phases.prepare(layers)
                    calls.append(Call(options, device, phases, layers, portion, spread))
        return calls

    def _scale_gradients(self, calls: list[Call]) -> Tensor | None:
        """Phase 0: say what gradients are multiplied by, and whether the step is taken; return `found_inf` of all."""
        found_inf = getattr(self, "found_inf", None)
        over_meshes, found_inf = complete_phase_zero(
            calls, normalises=self._normalises_gradients, found_inf=None if found_inf is None else local(found_inf)
        )
        clips = any(group["max_grad_norm"] is not None for group in self.param_groups)
        norm = None
        if clips or (self._shared.process_group is not None and found_inf is not None):
            sums = [call.squares() for call in calls if call.clips and call.spread is None and call.layers.x]
            total, found_inf = self._shared.complete(sums, found_inf, self._device())
            norm = norms_from_sums(_plus(total, over_meshes), 2)
        grad_scale = getattr(self, "grad_scale", None)
        for call in calls:
            scale = self._gradient_scale(call, norm, grad_scale) if call.layers.x else None
            if found_inf is not None:
                call.layers.keep = on(call.device, found_inf) == 0
            call.layers.g_scale = call.if_kept(scale)
        return found_inf

    def _gradient_scale(self, call: Call, norm: Tensor | None, grad_scale: Tensor | None) -> Tensor | None:
        """Return what gradients are multiplied by: unscaled and clipped. Normalising them comes later."""
        if self._normalises_gradients:
            return None
        scale, threshold = None, call.options["max_grad_norm"]
        if grad_scale is not None:
            scale = on(call.device, grad_scale).to(torch.float64).reciprocal()
        if threshold is not None and norm is not None:
            own = on(call.device, norm) if scale is None else on(call.device, norm) * scale
            # A zero norm makes the quotient infinite, which the clamp takes back to 1.
            clip = (float(threshold) / own).clamp(max=1)
            scale = clip if scale is None else scale * clip
        return scale

    def _count_step(self, calls: list[Call]) -> None:
        for call in calls:
            steps = [member.step for member in call.members if member.step is not None]
            if not steps:
                continue
            layers, stacked = call.layers, call.options["stacked"]
            on_device = call.options["capturable"] or not steps[0].is_cpu or torch.compiler.is_compiling()
            if layers.keep is not None:
                taken = on(steps[0].device, layers.keep).to(steps[0].dtype)
                torch._foreach_add_(steps, [taken] * len(steps))  # one tensor alone would be read on the host
            elif on_device:
                torch._foreach_add_(steps, 1)
            else:
                # A number would be wrapped into a tensor again for each of them; fake modes can read torch.tensor.
                torch._foreach_add_(steps, torch.tensor(1.0, dtype=torch.float32, device="cpu"), alpha=1.0)
            repeated = [
                step
                for member, step in zip(call.members, steps, strict=True)
                for there in layers_here(member, stacked)
                if there
            ]
            if not on_device:
                layers.t = [float(step) for step in repeated]
            elif repeated:
                t = on(call.device, torch.stack(repeated)).to(torch.float64)
                # A step that is skipped may be the first, and 0 is no step to correct for.
                layers.t = t if layers.keep is None else t.clamp(min=1)

    def _move(self, call: Call) -> RatiosTaken:
        """Phases 1 to 3 for one list of layers that lie here whole; return the record of its ratios."""
        layers, rule = call.layers, self._rule(call.options)
        if self._normalises_gradients:  # only now, so that phase 1 finds the gradients in the cache
            layers.g_scale = call.if_kept(normalising_scales(call.squares(), layers.dtype))
        norms_, step_ = call.phases.norms_, call.phases.step_
        sums = norms_(layers, rule) if step_ is None else step_(layers, rule, call.lr, self._ratio_rule(call.options))
        ratios = self._ratios(call, sums)
        if step_ is None:
            call.phases.apply_(layers, rule, ratios, call.taken_lr())
        return call.record(ratios)

    def _move_spread(self, calls: list[Call]) -> list[RatiosTaken]:
        """Phases 1 to 3 for all layers that are spread over processes; return the records of their ratios."""
        for call in calls:
            if call.whole_squares is not None:
                scales = normalising_scales(call.whole_squares[call.rows()], call.layers.dtype)
                call.layers.g_scale = call.if_kept(scales)
        nothing = [torch.zeros(0, 1 + self._directions, dtype=torch.float64, device=call.device) for call in calls]
        sums = [
            call.phases.norms_(call.layers, self._rule(call.options)) if call.layers.x else none
            for call, none in zip(calls, nothing, strict=True)
        ]
        taken = []
        for call, whole in zip(calls, complete_sums(calls, sums), strict=True):
            ratios = self._ratios(call, whole)
            if call.layers.x:
                call.phases.apply_(call.layers, self._rule(call.options), ratios[call.rows()], call.taken_lr())
            # Kernels have changed what lies here, of which the parameter's own count of changes does not know.
            torch.autograd.graph.increment_version([member.p for member in call.members])
            taken.append(call.record(ratios))
        return taken

    def _ratios(self, call: Call, sums: Tensor) -> Tensor:
        options = call.options
        return trust_ratios(sums, self._ratio_rule(options), adapt=options["adapt"], norm=options["norm"])

    def _backend(self, options: Mapping[str, Any], device: torch.device, native: bool) -> str:
        if options["fused"]:
            return self._fused(device, native)
        if options["differentiable"] or options["foreach"] is False:
            return "plain"
        if options["foreach"] or torch.compiler.is_compiling():
            return "foreach"
        # A subclass of Tensor may lack the multi-tensor operations, and may have no memory of its own.
        choice, why = "foreach" if native else "plain", ""
        if native and options["fused"] is None and device.type == "cpu" and "fused cpu" in self._phases:
            missing = cpu.unavailable()
            choice, why = ("foreach", f"; {missing}") if missing else ("fused cpu", "")
        key = (type(self).__name__, choice.split()[0], device.type)
        if key not in _logged:
            _logged.add(key)
            _log.info("%s: %s kernels on %s (the default; fused=... or foreach=... chooses)%s", *key, why)
        return choice

    def _fused(self, device: torch.device, native: bool) -> str:
        """Return the backend that fused=True stands for."""
        name, backend = type(self).__name__, f"fused {device.type}"
        if backend not in self._phases:
            raise NotImplementedError(f"fused=True: {name} has no fused kernels for parameters on {device.type}")
        if why := FUSED[backend].unavailable():
            raise RuntimeError(f"fused=True: {why}")
        if not native:
            raise RuntimeError(
                "fused=True: fused kernels take plain tensors, in float32, float64, bfloat16 or float16 (complex ones "
                "if the gradient is too); a parameter or gradient is of a subclass of Tensor or of another dtype"
            )
        return backend

    def _check_new(self, group: dict[str, Any]) -> None:
        super()._check_new(group)
        if self._options(group)["fused"]:
            for device in {p.device for p in group["params"]}:
                self._fused(device, native=True)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler may leave unscaling and skipping to the step, which then needs no synchronisation."""
        return all(group["capturable"] or group["fused"] for group in map(self._options, self.param_groups))

    # ---- what can be asked ----------------------------------------------------------------------------------

    def kernels(self) -> tuple[str, ...]:
        """Return which kernels take a step: "fused cpu", "fused cuda", "foreach", "plain"; several if groups differ."""
        found = {
            self._backend(self._options(group), p.device, is_native(local(p)))
            for group in self.param_groups
            for p in group["params"]
        }
        return tuple(sorted(found))

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Return the l2 norm of all gradients as they are now, a float64 0-dim tensor; no synchronisation.

        It is the norm over every parameter that has a gradient, unclipped, 0 if none has; divided by `grad_scale`
        while a GradScaler has set that. With a `norm_process_group`, all of its processes have to ask.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        gradients: dict[Any, list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or not p.grad.numel():
                    continue
                refuse_sparse(p.grad)
                layout = layout_of(p)
                grad = p.grad if layout is None else layout.here(p.grad)
                # A subclass of Tensor may lack the multi-tensor operations.
                squares = pieces.squares if type(grad) is Tensor else plain.squares
                some = gradients.setdefault((squares, grad.device, grad.dtype, layout and layout.spread), [])
                some.extend(real_blocks(grad.resolve_conj()))
        sums: list[Tensor] = []
        parts: list[Part] = []
        for (squares, device, _, spread), some in gradients.items():
            found = squares(some) if some else torch.zeros(0, dtype=torch.float64, device=device)
            if spread is None:
                sums.append(found)
            else:
                parts.append(Part(spread, found.sum()))
        norm = _plus(self._shared.complete(sums, None, self._device())[0], complete(parts)).sqrt()
        grad_scale = getattr(self, "grad_scale", None)
        return norm if grad_scale is None else norm / on(norm.device, grad_scale)

    def _device(self) -> torch.device:
        """Return the device of the first parameter; where this process has none, the one that collectives use."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        return self._shared.device() if first is None else first.device

    def trust_ratios(self) -> dict[str, Tensor]:
        """Return the ratios of the last step by parameter name, on the parameter's device; no synchronisation.

        Each is a float64 tensor [directions, blocks]: two directions for LANS and else one, one block unless
        stacked; 1 where the layer is not adapted, NaN where it took no step. Without names, or where names
        repeat, the keys are the numbers of the state dict.
        """
        taken: dict[int, Tensor] = {}
        for numbers, blocks, ratios in self._last.ratios:
            taken.update({number: some.T for number, some in zip(numbers, ratios.split(blocks), strict=True)})
        found: dict[str, Tensor] = {}
        numbered = ((group, p) for group in self.param_groups for p in group["params"])
        names = parameter_names(self.param_groups)
        for n, (name, (group, p)) in enumerate(zip(names, numbered, strict=True)):
            if n in taken and taken[n].numel():
                found[name] = taken[n]
            else:
                shape = (self._directions, group["stacked"][1] if group["stacked"] else 1)
                found[name] = torch.full(shape, math.nan, dtype=torch.float64, device=p.device)
        return found


def _plus(total: Tensor, more: list[Tensor]) -> Tensor:
    return torch.stack([total, *[on(total.device, a) for a in more]]).sum() if more else total


def _refuse_capture(groups: list[dict[str, Any]]) -> None:
    """Refuse to be recorded into a CUDA graph with numbers from the host, which a replay would not see change."""
    on_cuda = any(p.is_cuda for group in groups for p in group["params"][:1])
    if not on_cuda or not torch.cuda.is_current_stream_capturing():
        return
    for group in groups:
        if not group.get("capturable"):
            raise RuntimeError("a CUDA graph is being captured, but capturable is False; it must be True in all groups")
        if isinstance(group["lr"], Tensor) and not group["lr"].is_cuda:
            raise RuntimeError("a CUDA graph is being captured, but lr is a tensor on the CPU; it must be on the GPU")
