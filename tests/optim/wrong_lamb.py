"""LAMB done wrong, one mistake a class: what a test of LAMB has to catch. Several of them are or were shipped."""

import inspect
import sys
from collections.abc import Sequence

import numpy as np

from oracle import Array, Lamb, Options, norm_of


class NoRatio(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return 1.0


class RatioUpsideDown(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return 1 / super().lamb_ratio(x, u, r, g, group)


class DecayOutsideTheRatio(Lamb):
    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        return x - group["lr"] * (ratio * r + group["weight_decay"] * x)


class DecayOutsideTheNorm(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return super().lamb_ratio(x, r, r, g, group)


class DecayInTheGradient(Lamb):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return super().seen_gradient(g, x, scale, group) + group["weight_decay"] * x


class DecayForgotten(Lamb):
    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        return x - group["lr"] * ratio * r


class NoBiasCorrection(Lamb):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, {**group, "bias_correction": False}, ahead=ahead)


class AlwaysBiasCorrection(Lamb):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, {**group, "bias_correction": True}, ahead=ahead)


class CorrectionAfterTheRatio(NoBiasCorrection):
    """A hidden second warm-up: the uncorrected ratio, then the rate times the corrections."""

    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        beta1, beta2 = group["betas"]
        late = np.sqrt(1 - beta2**t) / (1 - beta1**t)
        return x - late * (x - super().moved(x, u, r, ratio, t, group))


class RateOverCorrection(Lamb):
    def moved(self, x: Array, u: Array, r: Array, ratio: float, t: int, group: Options) -> Array:
        return x - (x - super().moved(x, u, r, ratio, t, group)) / (1 - group["betas"][0] ** t)


class StepCountedLate(Lamb):
    def step_count(self, i: int) -> int:
        return self.t[i] + 1


class OneStepCountForAll(Lamb):
    """Layers thawed late are then corrected as if they had been there from the start."""

    def step_count(self, i: int) -> int:
        return max(self.t)


class MissingGradientIsZero(Lamb):
    def step(self, gradients: Sequence[Array | None]) -> None:
        super().step([np.zeros_like(x) if g is None else g for g, x in zip(gradients, self.x, strict=True)])


class EpsInsideTheRoot(Lamb):
    def adam_direction(self, g: Array, m: Array, v: Array, t: int, group: Options) -> Array:
        inside = v + (1 - group["betas"][1] ** t) * group["eps"]
        return super().adam_direction(g, m, inside, t, {**group, "eps": 0.0})


class EpsBeforeTheCorrection(Lamb):
    def adam_direction(self, g: Array, m: Array, v: Array, t: int, group: Options) -> Array:
        early = group["eps"] / np.sqrt(1 - group["betas"][1] ** t)
        return super().adam_direction(g, m, v, t, {**group, "eps": early})


class BetasSwapped(Lamb):
    def moments(self, m: Array, v: Array, g: Array, group: Options) -> tuple[Array, Array]:
        return super().moments(m, v, g, {**group, "betas": group["betas"][::-1]})


class WeightNormClampedToTen(Lamb):
    def phi(self, z: float, group: Options) -> float:
        return min(super().phi(z, group), 10.0)


class PhiIgnored(Lamb):
    def phi(self, z: float, group: Options) -> float:
        return z


class RatioBoundsIgnored(Lamb):
    def bounded(self, ratio: float, group: Options) -> float:
        return ratio


class ZeroLayersClamped(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return self.bounded(super().lamb_ratio(x, u, r, g, group), group)


class ZeroLayersNeverMove(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return 0.0 if norm_of(x, 2) == 0 else super().lamb_ratio(x, u, r, g, group)


class NoRatioWithoutDecay(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return super().lamb_ratio(x, u, r, g, group) if group["weight_decay"] else 1.0


class EveryLayerAdapted(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return super().lamb_ratio(x, u, r, g, {**group, "adapt": True})


class RatioOverTheGradient(Lamb):
    """The rule of LARS."""

    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return super().lamb_ratio(x, g, r, g, group)


class AlwaysTheEuclideanNorm(Lamb):
    def lamb_ratio(self, x: Array, u: Array, r: Array, g: Array, group: Options) -> float:
        return super().lamb_ratio(x, u, r, g, {**group, "norm": 2})


class BlocksTakenTogether(Lamb):
    def move_tensor(self, i: int, g: Array, group: Options) -> None:
        super().move_tensor(i, g, {**group, "stacked": None})


class LookAheadForgotten(Lamb):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, group, ahead=False)


class LookAheadInOneMomentOnly(Lamb):
    def adam_direction(self, g: Array, m: Array, v: Array, t: int, group: Options) -> Array:
        return super().adam_direction(g, m, v, t, {**group, "nesterov": group["nesterov"] and "first"})


class MaximizeForgotten(Lamb):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return scale * g


class ClipForgotten(Lamb):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        return 1.0


class ClipPerLayer(Lamb):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        norm = norm_of(g, 2) if g.size else 0.0
        own = min(1.0, group["max_grad_norm"] / norm) if group["max_grad_norm"] and norm else 1.0
        return super().seen_gradient(g, x, own, group)


class ClipByEachGroupsOwnNorm(Lamb):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        alone = [g if i in group["members"] else None for i, g in enumerate(gradients)]
        return super().clip_scale(alone, group)


class ClipOverEveryGroup(Lamb):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        if group["max_grad_norm"] is None:
            return 1.0
        norm = np.sqrt(sum(float(np.sum(g * g)) for g in gradients if g is not None))
        return min(1.0, group["max_grad_norm"] / norm) if norm else 1.0


class ClipThresholdOfTheFirstGroup(Lamb):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        first = self.groups[0]["max_grad_norm"]
        return super().clip_scale(gradients, {**group, "max_grad_norm": group["max_grad_norm"] and first})


class SmallGradientsScaledUp(Lamb):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        square = 0.0
        for other in self.groups:
            for i in other["members"]:
                g = gradients[i]
                if other["max_grad_norm"] is not None and g is not None:
                    square += float(np.sum(g * g))
        return group["max_grad_norm"] / np.sqrt(square) if group["max_grad_norm"] and square else 1.0


class RateOfTheStepBefore(Lamb):
    def __init__(self, tensors: Sequence[Array], groups: Sequence[Options]) -> None:
        super().__init__(tensors, groups)
        self.late = [0.0] * len(self.groups)

    def step(self, gradients: Sequence[Array | None]) -> None:
        now = [group["lr"] for group in self.groups]
        for group, rate in zip(self.groups, self.late, strict=True):
            group["lr"] = rate
        super().step(gradients)
        self.late = now


WRONG_LAMB: list[type[Lamb]] = [
    kind
    for _, kind in inspect.getmembers(sys.modules[__name__], inspect.isclass)
    if issubclass(kind, Lamb) and kind is not Lamb
]
