"""The gradient noise scale: how noisy a sample's gradient is beside the gradient, from norms that training has.

With g the expected gradient and Sigma the covariance of a single sample's gradient, a batch of B independent samples
has a gradient G_B with

    E |G_B|^2 = |g|^2 + tr(Sigma) / B            B_simple = tr(Sigma) / |g|^2        in samples

so that squared norms at two batch sizes b < B give both, each without bias:

    |g|^2     ~ (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) ~ (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

A step that is summed up from parts, microbatches on one rank or on several, has them for nothing. Part j has b_j of
the B samples and adds h_j to the step's gradient G = sum_j h_j; with q = sum_j (b_j / B)^2,

    E sum_j |h_j|^2 = q |g|^2 + tr(Sigma) / B
    |g|^2     ~ (|G|^2 - sum_j |h_j|^2) / (1 - q)
    tr(Sigma) ~ B (sum_j |h_j|^2 - q |G|^2) / (1 - q)

which for parts of one size is the same. All of it is linear in squared norms, so the estimates of layers add up to
that of the model. A single step's estimate scatters, and that of |g|^2 may be negative: average both over steps, then
divide.

Sources: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, appendix A.1, for parts of
one size; the interval is Fieller's for a ratio of means (1954).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

_LEAST_STEPS = 3


@dataclass(frozen=True)
class NoiseEstimate:
    """|g|^2 and tr(Sigma), of a step or averaged over several; of a layer or of the model."""

    gradient_square: float
    """|g|^2, the squared norm of the expected gradient; may be negative in an estimate."""
    covariance_trace: float
    """tr(Sigma), the variance of one sample's gradient, summed over the parameters; may be negative too."""

    @property
    def scale(self) -> float:
        """B_simple in samples; infinite where no gradient is seen in the noise, 0 where no noise is seen."""
        if self.gradient_square <= 0:
            return math.inf
        return max(self.covariance_trace, 0.0) / self.gradient_square

    def __add__(self, other: "NoiseEstimate") -> "NoiseEstimate":
        """Return the estimate of two layers together."""
        return NoiseEstimate(
            self.gradient_square + other.gradient_square, self.covariance_trace + other.covariance_trace
        )


def of_steps(gradient_squares: Iterable[float], covariance_traces: Iterable[float]) -> list[NoiseEstimate]:
    """Return the estimates of steps from the two columns of a ledger, without those that were not finite."""
    pairs = zip(gradient_squares, covariance_traces, strict=True)
    return [NoiseEstimate(*pair) for pair in pairs if all(map(math.isfinite, pair))]


def from_two_batches(small_batch: float, small_square: float, large_batch: float, large_square: float) -> NoiseEstimate:
    """Estimate from the mean squared norms of the gradients of two batches.

    Args:
        small_batch: samples b.
        small_square: |G_b|^2, G_b being the mean gradient of b samples.
        large_batch: samples B > b.
        large_square: |G_B|^2.

    Raises:
        ValueError: unless 0 < b < B, and all are finite.
    """
    if not all(map(math.isfinite, (small_square, large_square))):
        raise ValueError(f"the squared norms are {small_square} and {large_square}, allowed are finite ones")
    if not 0 < small_batch < large_batch < math.inf:
        raise ValueError(f"the batches are {small_batch} and {large_batch}, allowed are finite ones, 0 < b < B")
    return NoiseEstimate(
        gradient_square=(large_batch * large_square - small_batch * small_square) / (large_batch - small_batch),
        covariance_trace=(small_square - large_square) / (1 / small_batch - 1 / large_batch),
    )


def from_parts(samples: float, squared_sizes: float, part_squares: float, square: float) -> NoiseEstimate:
    """Estimate from the parts of one step.

    Args:
        samples: B, of the step.
        squared_sizes: sum_j b_j^2 over its parts.
        part_squares: sum_j |h_j|^2, where h_j is what part j adds to the gradient.
        square: |G|^2, of the whole gradient.

    Raises:
        ValueError: a single part has all samples, or the sizes cannot be those of parts.
    """
    if not 0 < squared_sizes < samples**2:
        raise ValueError(
            f"the squared sizes of the parts of {samples} samples add up to {squared_sizes}, allowed is more than 0 "
            f"and less than {samples**2}: a step needs two parts at least"
        )
    q = squared_sizes / samples**2
    return NoiseEstimate(
        gradient_square=(square - part_squares) / (1 - q),
        covariance_trace=samples * (part_squares - q * square) / (1 - q),
    )


@dataclass(frozen=True)
class NoiseScale:
    """B_simple over a stretch of steps."""

    mean: NoiseEstimate
    interval: tuple[float, float]
    """Of B_simple; infinite at its upper end where |g|^2 is not told apart from zero."""
    level: float
    steps: int

    @property
    def scale(self) -> float:
        """B_simple in samples."""
        return self.mean.scale

    def __str__(self) -> str:
        """As a sentence has it."""
        low, high = self.interval
        bound = f"{high:,.0f}" if math.isfinite(high) else "no upper bound"
        value = f"{self.scale:,.0f}" if math.isfinite(self.scale) else "beyond what these steps can tell"
        return f"noise scale {value} samples ({self.level:.0%}: {low:,.0f} to {bound}; {self.steps} steps)"


def over_steps(estimates: Sequence[NoiseEstimate], level: float = 0.95) -> NoiseScale:
    """Average |g|^2 and tr(Sigma) over steps, then divide; with Fieller's interval of the ratio.

    The interval holds all r with (mean(s) - r mean(a))^2 <= t^2 var(s - r a) / n, a and s being the two estimates of
    each step and t Student's quantile with n - 1 degrees of freedom. Steps are taken for independent, which their
    samples are, and the ratio for the same in all of them.

    Args:
        estimates: of single steps.
        level: of the interval.

    Raises:
        ValueError: fewer than three steps, one that is not finite (`of_steps` leaves such out), or a level that is no
            share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, allowed is more than 0 and less than 1")
    n = len(estimates)
    if n < _LEAST_STEPS:
        raise ValueError(f"there are estimates of {n} steps, allowed are {_LEAST_STEPS} or more")
    if not all(math.isfinite(one.gradient_square) and math.isfinite(one.covariance_trace) for one in estimates):
        raise ValueError("an estimate is not finite, allowed are finite ones")
    a = [one.gradient_square for one in estimates]
    s = [one.covariance_trace for one in estimates]
    mean = NoiseEstimate(math.fsum(a) / n, math.fsum(s) / n)
    interval = _fieller(a, s, _student((1 + level) / 2, n - 1))
    return NoiseScale(mean=mean, interval=interval, level=level, steps=n)


def _student(share: float, freedom: int) -> float:
    """Return Student's quantile, by its expansion about the normal one: within 3 % from two degrees of freedom on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _fieller(a: Sequence[float], s: Sequence[float], t: float) -> tuple[float, float]:
    """Return the least and the largest ratio mean(s) / mean(a) within t standard errors, cut at 0."""
    n = len(a)
    mean_a, mean_s = math.fsum(a) / n, math.fsum(s) / n
    error = t * t / (n * (n - 1))
    aa = error * math.fsum((x - mean_a) ** 2 for x in a)
    ss = error * math.fsum((y - mean_s) ** 2 for y in s)
    at = error * math.fsum((x - mean_a) * (y - mean_s) for x, y in zip(a, s, strict=True))
    # (mean_s - r mean_a)^2 <= ss - 2 r at + r^2 aa, a quadratic in r.
    square, linear, constant = mean_a**2 - aa, mean_s * mean_a - at, mean_s**2 - ss
    if square > 0 and mean_a > 0:
        root = math.sqrt(max(linear**2 - square * constant, 0.0))
        return max((linear - root) / square, 0.0), max((linear + root) / square, 0.0)
    # |g|^2 is not told apart from zero: what is left of the interval is where it begins.
    if constant <= 0:
        return 0.0, math.inf
    rest = linear**2 - square * constant
    roots = [] if rest < 0 or square == 0 else [(linear + sign * math.sqrt(rest)) / square for sign in (-1, 1)]
    if square == 0 and linear > 0:
        roots = [constant / (2 * linear)]
    return min((r for r in roots if r > 0), default=0.0), math.inf


class RunningNoise:
    """Moving averages of |g|^2 and tr(Sigma), with weights that halve every so many steps; exact from the first one on.

    The average after n steps is sum_t w^(n - t) x_t / sum_t w^(n - t), w = 2^(-1 / half_life).
    """

    def __init__(self, half_life: float) -> None:
        """Begin with nothing.

        Args:
            half_life: in steps.

        Raises:
            ValueError: it is not above zero.
        """
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life} steps, allowed is more than 0")
        self._kept = 2.0 ** (-1.0 / half_life)
        self._weight = self._square = self._trace = 0.0

    def add(self, step: NoiseEstimate) -> NoiseEstimate:
        """Take in the estimate of a step, and return the average."""
        self._weight = self._kept * self._weight + 1.0
        self._square = self._kept * self._square + step.gradient_square
        self._trace = self._kept * self._trace + step.covariance_trace
        return NoiseEstimate(self._square / self._weight, self._trace / self._weight)
