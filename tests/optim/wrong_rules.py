"""LANS, LARS and the general strategy done wrong, one mistake a class: what their tests have to catch."""

import inspect
import sys
from collections.abc import Sequence

import numpy as np

from oracle import Array, General, Lans, Lars, Options, Oracle, State, norm_of

# ---- LANS -----------------------------------------------------------------------------------------------------


class GradientNotNormalised(Lans):
    def normalised(self, g: Array, group: Options) -> Array:
        return g


class GradientNormalisedByTheOptionsNorm(Lans):
    def normalised(self, g: Array, group: Options) -> Array:
        norm = norm_of(g, group["norm"])
        return g / norm if norm else g


class GradientNormalisedOnlyWhereAdapted(Lans):
    def normalised(self, g: Array, group: Options) -> Array:
        return super().normalised(g, group) if group["adapt"] else g


class GradientNormalisedOverTheStack(Lans):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return super().normalised(super().seen_gradient(g, x, scale, group), group)

    def normalised(self, g: Array, group: Options) -> Array:
        return g


class LongGradientsOnlyShortened(Lans):
    def normalised(self, g: Array, group: Options) -> Array:
        return g / max(1.0, norm_of(g, 2))


class SharesSwapped(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        return super().moved(x, c, r, ratio_c, ratio_r, group)


class OnlyTheMomentumsPart(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        return x - group["lr"] * ratio_r * r


class OnlyTheGradientsPart(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        return x - group["lr"] * ratio_c * c


class OneRatioForBoth(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        return super().moved(x, r, c, ratio_r, ratio_r, group)


class RatioOfTheSum(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        beta1 = group["betas"][0]
        u = beta1 * r + (1 - beta1) * c
        return x - group["lr"] * self.ratio(x, u, group) * u


class SecondNormAfterTheFirstPart(Lans):
    def moved(self, x: Array, r: Array, c: Array, ratio_r: float, ratio_c: float, group: Options) -> Array:
        beta1 = group["betas"][0]
        halfway = x - group["lr"] * beta1 * ratio_r * r
        return halfway - group["lr"] * (1 - beta1) * self.ratio(halfway, c, group) * c


class GradientsPartWithoutDecay(Lans):
    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        r, c = super().directions(x, g, m, v, t, group)
        return r, c - group["weight_decay"] * x


class MomentumsPartWithoutDecay(Lans):
    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        r, c = super().directions(x, g, m, v, t, group)
        return r - group["weight_decay"] * x, c


class GradientsPartCorrected(Lans):
    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        r, _ = super().directions(x, g, m, v, t, group)
        _, c = super().directions(x, g / (1 - group["betas"][0] ** t), m, v, t, group)
        return r, c


class GradientsPartOverItsOwnSize(Lans):
    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        r, _ = super().directions(x, g, m, v, t, group)
        return r, g / (np.abs(g) + group["eps"]) + group["weight_decay"] * x


class LansEpsInsideTheRoot(Lans):
    def directions(self, x: Array, g: Array, m: Array, v: Array, t: int, group: Options) -> tuple[Array, Array]:
        inside = v + (1 - group["betas"][1] ** t) * group["eps"]
        return super().directions(x, g, m, inside, t, {**group, "eps": 0.0})


class LansWithoutCorrection(Lans):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, {**group, "bias_correction": False}, ahead=ahead)


class LansAlwaysCorrected(Lans):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, {**group, "bias_correction": True}, ahead=ahead)


class LansLookAheadForgotten(Lans):
    def corrected(self, m: Array, new: Array, beta: float, t: int, group: Options, *, ahead: bool) -> Array:
        return super().corrected(m, new, beta, t, group, ahead=False)


class LansBetasSwapped(Lans):
    def moments(self, m: Array, v: Array, g: Array, group: Options) -> tuple[Array, Array]:
        return super().moments(m, v, g, {**group, "betas": group["betas"][::-1]})


class LansStepCountedLate(Lans):
    def step_count(self, i: int) -> int:
        return self.t[i] + 1


class LansMaximizeForgotten(Lans):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return scale * g


# ---- LARS -----------------------------------------------------------------------------------------------------


class LarsNoRatio(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return 1.0


class TrustCoefficientIgnored(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return super().fraction(x_norm, u_norm, {**group, "trust_coefficient": None})


class TrustCoefficientOfTheWrongPaper(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        c = group["trust_coefficient"]
        return super().fraction(x_norm, u_norm, {**group, "trust_coefficient": 0.001 if c is None else c})


class TrustCoefficientAlsoWithoutARatio(Lars):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return super().ratio(x, u, group) * (1.0 if group["adapt"] else 0.001)


class RateOutsideTheMomentum(Lars):
    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        rule = "2017-lr-outside" if group["rule"] == "2017" else group["rule"]
        return super().move_block(x, g, state, t, {**group, "rule": rule})


class RateInsideTheMomentum(Lars):
    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        rule = "2017" if group["rule"] == "2017-lr-outside" else group["rule"]
        return super().move_block(x, g, state, t, {**group, "rule": rule})


class RatioOutsideTheMomentum(Lars):
    """The buffer holds plain gradients, and the newest ratio scales all of it."""

    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        if group["rule"] != "2017-lr-outside":
            return super().move_block(x, g, state, t, group)
        d = self.decayed(g, x, group)
        ratio = self.ratio(x, g, group)
        v = state["momentum_buffer"] = group["momentum"] * state["momentum_buffer"] + d
        step = self.looked_ahead(v, d, group) if group["nesterov"] else v
        return x - group["lr"] * ratio * step, [ratio]


class DecayInTheMeasuredGradient(Lars):
    def measured(self, g: Array, d: Array) -> Array:
        return d


class WeightsForgottenInTheDenominator(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return super().fraction(x_norm, u_norm, {**group, "weight_decay": 0.0})


class LarsDecayForgotten(Lars):
    def decayed(self, g: Array, x: Array, group: Options) -> Array:
        return g


class LarsDecayDecoupled(Lars):
    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        moved, ratios = super().move_block(x, g, state, t, {**group, "weight_decay": 0.0})
        return moved - group["lr"] * group["weight_decay"] * x, ratios


class MomentumUndamped(Lars):
    def averaged(self, m: Array, d: Array, group: Options) -> Array:
        return group["momentum"] * m + d


class FirstStepUndamped(Lars):
    def averaged(self, m: Array, d: Array, group: Options) -> Array:
        return super().averaged(m, d, group) if m.any() else d


class RatioOverTheGradientInTheFirstAlgorithm(Lars):
    def first_algorithm(self, x: Array, d: Array, state: State, group: Options) -> tuple[Array, list[float]]:
        m = state["momentum_buffer"] = self.averaged(state["momentum_buffer"], d, group)
        mu = group["momentum"]
        ratio = self.ratio(x, d, group)
        return x - group["lr"] * ratio * (mu * m + (1 - mu) * d if group["nesterov"] else m), [ratio]


class NormBeforeTheLookAhead(Lars):
    def first_algorithm(self, x: Array, d: Array, state: State, group: Options) -> tuple[Array, list[float]]:
        m = state["momentum_buffer"] = self.averaged(state["momentum_buffer"], d, group)
        mu = group["momentum"]
        ratio = self.ratio(x, m, group)
        return x - group["lr"] * ratio * (mu * m + (1 - mu) * d if group["nesterov"] else m), [ratio]


class LarsLookAheadForgotten(Lars):
    def move_block(self, x: Array, g: Array, state: State, t: int, group: Options) -> tuple[Array, list[float]]:
        return super().move_block(x, g, state, t, {**group, "nesterov": False})


class LookAheadTwice(Lars):
    def looked_ahead(self, v: Array, newest: Array, group: Options) -> Array:
        return group["momentum"] * super().looked_ahead(v, newest, group) + newest


class LarsEpsForgotten(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return super().fraction(x_norm, u_norm, {**group, "eps": 0.0})


class LarsPhiIgnored(Lars):
    def phi(self, z: float, group: Options) -> float:
        return z


class PhiInTheDenominatorToo(Lars):
    def fraction(self, x_norm: float, u_norm: float, group: Options) -> float:
        return super().fraction(self.phi(x_norm, group), u_norm, group)


class LarsBoundsIgnored(Lars):
    def bounded(self, ratio: float, group: Options) -> float:
        return ratio


class LarsEveryLayerAdapted(Lars):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return super().ratio(x, u, {**group, "adapt": True})


class LarsZeroLayersNeverMove(Lars):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return 0.0 if norm_of(x, 2) == 0 else super().ratio(x, u, group)


class LarsMaximizeForgotten(Lars):
    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return scale * g


class LarsClipForgotten(Lars):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        return 1.0


class LarsBlocksTakenTogether(Lars):
    def move_tensor(self, i: int, g: Array, group: Options) -> None:
        super().move_tensor(i, g, {**group, "stacked": None})


class LarsMissingGradientIsZero(Lars):
    def step(self, gradients: Sequence[Array | None]) -> None:
        super().step([np.zeros_like(x) if g is None else g for g, x in zip(gradients, self.x, strict=True)])


# ---- the general strategy -------------------------------------------------------------------------------------


class GeneralNoRatio(General):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return 1.0


class BaseAtTheOptimizersRate(General):
    """The base steps at lr, and its step is scaled by lr again; a normalised direction would not show it."""

    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        return group["lr"] * super().base_direction(x, g, state, t, group)


class NormOfTheSteppedWeights(General):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return super().ratio(x - u, u, group)


class DirectionFromTheGradient(General):
    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        super().base_direction(x, g, state, t, group)
        return g + group["weight_decay"] * x


class DecayLeftOutOfTheDirection(General):
    def base_direction(self, x: Array, g: Array, state: State, t: int, group: Options) -> Array:
        return super().base_direction(x, g, state, t, {**group, "weight_decay": 0.0})


class StartedFromTheSteppedWeights(General):
    def moved(self, x: Array, u: Array, ratio: float, group: Options) -> Array:
        return super().moved(x - u, u, ratio, group)


class GeneralEveryLayerAdapted(General):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return super().ratio(x, u, {**group, "adapt": True})


class GeneralZeroLayersNeverMove(General):
    def ratio(self, x: Array, u: Array, group: Options) -> float:
        return 0.0 if norm_of(x, 2) == 0 else super().ratio(x, u, group)


class GeneralMaximizedTwice(General):
    """By the base and around it, so that it minimises."""

    def seen_gradient(self, g: Array, x: Array, scale: float, group: Options) -> Array:
        return scale * g


class GeneralClipForgotten(General):
    def clip_scale(self, gradients: Sequence[Array | None], group: Options) -> float:
        return 1.0


class GeneralBlocksTakenTogether(General):
    def move_tensor(self, i: int, g: Array, group: Options) -> None:
        super().move_tensor(i, g, {**group, "stacked": None})


def _wrong(right: type[Oracle]) -> list[type[Oracle]]:
    everything = inspect.getmembers(sys.modules[__name__], inspect.isclass)
    return [kind for _, kind in everything if issubclass(kind, right) and kind is not right]


WRONG_LANS = _wrong(Lans)
WRONG_LARS = _wrong(Lars)
WRONG_GENERAL = _wrong(General)
