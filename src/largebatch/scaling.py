"""The learning rate, the warm-up and the betas from the batch, and the published settings as data.

Rules, for a setting tuned at batch B0 and carried to batch B = k * B0 (arXiv 1904.00962, section 4.3):

    square root   eta(B) = eta(B0) * sqrt(k)          linear   eta(B) = eta(B0) * k          none   eta(B0)
    warm-up       epochs(B) = epochs(B0) * k          "linear-epoch warm-up": its *steps* stay the same, since
                  a step then stands for k times the epochs, and its share of T = ceil(samples / B) grows by k

and for Adam's other numbers, as an option (arXiv 2205.10287): 1 - beta -> k * (1 - beta), eps -> eps / sqrt(k).

Each number of a published row is a ``Figure``: its value, how certain it is and where it comes from. All of
them belong to LAMB. ``plans.py`` makes runs of them.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

from largebatch.batch import exact_fraction, round_half_up, steps_for_epochs, whole_number

Rule = Literal["square-root", "linear", "none"]

Certainty = Literal["S", "S2", "R", "D", "choice"]
CERTAINTY_MEANING = MappingProxyType(
    {
        "S": "seen in a primary source: a paper's table, its author's code or log, an official README",
        "S2": "quoted by a second source",
        "R": "remembered and not confirmed",
        "D": "derived by a rule",
        "choice": "our choice",
    }
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Figure(Generic[Value]):
    """A value with its birth certificate: how certain it is (see ``CERTAINTY_MEANING``) and its source."""

    value: Value
    certainty: Certainty
    source: str


# ---------------------------------------------------------------------------------------------- the rules


def scale_lr(base_lr: float, base_batch: int, batch: int, rule: Rule = "square-root") -> float:
    """Carry a learning rate from batch B0 to batch B: times sqrt(B / B0), times B / B0, or unchanged.

    Args:
        base_lr: peak learning rate that suits ``base_batch``, finite and above 0.
        base_batch: B0, in samples per optimizer step.
        batch: B, in the same unit.
        rule: "square-root" (LAMB, arXiv 1904.00962), "linear" (SGD, arXiv 1706.02677) or "none".

    Raises:
        ValueError: an argument is out of range, or there is no such rule.
    """
    if not 0.0 < base_lr < math.inf:
        raise ValueError(f"base_lr is {base_lr!r}, but must be a finite number above 0")
    ratio = whole_number("batch", batch) / whole_number("base_batch", base_batch)
    if rule == "square-root":
        return base_lr * math.sqrt(ratio)
    if rule == "linear":
        return base_lr * ratio
    if rule == "none":
        return base_lr
    raise ValueError(f"rule is {rule!r}, but must be one of {', '.join(get_args(Rule))}")


def linear_epoch_warmup(base_epochs: float | Fraction, base_batch: int, batch: int) -> Fraction:
    """Return the epochs of warm-up at batch B: epochs(B0) * B / B0, exactly.

    ResNet-50 warms up for 0.3125 epochs at batch 512 and so for 20 at 32,768. Raises ValueError if an
    argument is out of range.
    """
    ratio = Fraction(whole_number("batch", batch), whole_number("base_batch", base_batch))
    return exact_fraction("base_epochs", base_epochs) * ratio


def warmup_steps_for_epochs(epochs: float | Fraction, dataset_samples: int, batch: int) -> int:
    """Return the whole number of steps nearest to ``epochs`` over ``dataset_samples`` samples at a batch.

    Raises ValueError if an argument is out of range.
    """
    samples = exact_fraction("epochs", epochs) * whole_number("dataset_samples", dataset_samples)
    return round_half_up(samples / whole_number("batch", batch))


def warmup_ratio(warmup_steps: int, total_steps: int) -> Fraction:
    """Return the share of T that is warm-up, exactly; ValueError if it would be more than all of it."""
    ratio = Fraction(whole_number("warmup_steps", warmup_steps, at_least=0), whole_number("total_steps", total_steps))
    if ratio > 1:
        raise ValueError(f"warmup_steps is {warmup_steps:,}, but there are only {total_steps:,} steps")
    return ratio


def warmup_steps_for_ratio(ratio: float | Fraction, total_steps: int) -> int:
    """Return the whole number of steps nearest to ``ratio`` of T; ValueError unless 0 <= ratio <= 1."""
    share = exact_fraction("ratio", ratio)
    if share > 1:
        raise ValueError(f"ratio is {ratio!r}, but must lie between 0 and 1")
    return round_half_up(share * whole_number("total_steps", total_steps))


class AdamNumbers(NamedTuple):
    """What ``scale_adam`` scales together."""

    lr: float
    betas: tuple[float, float]
    eps: float


def scale_adam(lr: float, betas: tuple[float, float], eps: float, base_batch: int, batch: int) -> AdamNumbers:
    """Carry Adam's numbers from batch B0 to B = k * B0: lr * sqrt(k), 1 - k * (1 - beta), eps / sqrt(k).

    One step then averages over as many samples as before (arXiv 2205.10287).

    Raises:
        ValueError: a number is out of range, or k * (1 - beta) is 1 or more: a batch so large has no
            moving average left to scale.
    """
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps is {eps!r}, but must be a finite number of at least 0")
    scaled_lr = scale_lr(lr, base_batch, batch, "square-root")
    ratio = Fraction(batch, base_batch)
    scaled_betas = []
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name} is {beta!r}, but must be at least 0 and below 1")
        weight = 1 - exact_fraction(name, beta)  # exactly 1/10 for 0.9, so that k = 10 is refused, not 9.99...
        if ratio * weight >= 1:
            largest = math.ceil(base_batch / weight) - 1
            raise ValueError(
                f"{name} {beta} cannot be scaled from batch {base_batch:,} to {batch:,}: k * (1 - {name}) must be "
                f"below 1, so batch {largest:,} is the largest"
            )
        scaled_betas.append(float(1 - ratio * weight))
    return AdamNumbers(scaled_lr, (scaled_betas[0], scaled_betas[1]), eps / math.sqrt(ratio))


# ------------------------------------------------------------------------------------- the published rows

LAMB_PAPER = "You et al., arXiv 1904.00962"
NVIDIA = "NVIDIA's BERT pre-training scripts, two-stage LAMB settings"

BERT_SAMPLES = 512_000_000
BERT_WARMUP_STEPS = 3_125
RESNET50_EPOCHS = 90
RESNET50_WARMUP_STEPS = 782
IMAGENET_TRAIN_IMAGES = 1_281_167


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One column of the paper's table of LAMB settings: a batch, its steps, rate and warm-up.

    ``total_steps`` counts both of BERT's stages; ``warmup_ratio`` is the share of T, ``warmup_epochs`` the
    passes over ImageNet. A row has the one that its table gives, and None for the other.
    """

    global_batch_samples: int
    total_steps: Figure[int]
    peak_lr: Figure[float]
    warmup_steps: Figure[int]
    warmup_ratio: Figure[Fraction] | None = None
    warmup_epochs: Figure[Fraction] | None = None


def _bert_row(batch: int, total_steps: int, peak_lr: float, ratio: Fraction) -> PublishedRow:
    table = f"{LAMB_PAPER}, BERT-Large settings"
    return PublishedRow(
        global_batch_samples=batch,
        total_steps=Figure(total_steps, "S" if batch == 32_768 else "R", table),
        peak_lr=Figure(peak_lr, "R", table),
        warmup_steps=Figure(BERT_WARMUP_STEPS, "D", "warm-up ratio of the row x T"),
        warmup_ratio=Figure(ratio, "R", table),
    )


def _resnet50_row(batch: int, peak_lr: float, epochs: Fraction, total_steps: Figure[int]) -> PublishedRow:
    table = f"{LAMB_PAPER}, ResNet-50 settings"
    largest = batch == 32_768
    return PublishedRow(
        global_batch_samples=batch,
        total_steps=total_steps,
        peak_lr=Figure(peak_lr, "S" if largest else "R", table),
        warmup_steps=Figure(
            RESNET50_WARMUP_STEPS,
            "S" if largest else "D",
            "the author's script for batch 32,768" if largest else "warm-up epochs of the row x images / batch",
        ),
        warmup_epochs=Figure(epochs, "S" if largest else "R", table),
    )


def _resnet50_steps(batch: int) -> Figure[int]:
    steps = steps_for_epochs(RESNET50_EPOCHS, IMAGENET_TRAIN_IMAGES, batch)
    return Figure(steps, "D", "ceil(90 epochs x 1,281,167 images / batch)")


# The rates stand as the table prints them, 5 / (2^x * 10^3) and 4 / (2^x * 100), not as our rule gives them.
BERT_ROWS: tuple[PublishedRow, ...] = (
    _bert_row(512, 1_000_000, 5 / (2**3.0 * 10**3), Fraction(1, 320)),
    _bert_row(1_024, 500_000, 5 / (2**2.5 * 10**3), Fraction(1, 160)),
    _bert_row(2_048, 250_000, 5 / (2**2.0 * 10**3), Fraction(1, 80)),
    _bert_row(4_096, 125_000, 5 / (2**1.5 * 10**3), Fraction(1, 40)),
    _bert_row(8_192, 62_500, 5 / (2**1.0 * 10**3), Fraction(1, 20)),
    _bert_row(16_384, 31_250, 5 / (2**0.5 * 10**3), Fraction(1, 10)),
    _bert_row(32_768, 15_625, 5 / (2**0.0 * 10**3), Fraction(1, 5)),
)
BERT_SQUAD_F1: dict[tuple[int, int], Figure[float]] = {
    batches: Figure(f1, "S", f"{LAMB_PAPER}, SQuAD v1.1 dev, batch {name}")
    for name, batches, f1 in (
        ("512", (512, 512), 91.752),
        ("1K", (1_024, 1_024), 91.761),
        ("2K", (2_048, 2_048), 91.946),
        ("4K", (4_096, 4_096), 91.137),
        ("8K", (8_192, 8_192), 91.263),
        ("16K", (16_384, 16_384), 91.345),
        ("32K", (32_768, 32_768), 91.475),
        ("64K/32K", (65_536, 32_768), 90.584),
    )
}
"""BERT-Large's F1 after fine-tuning, by the batches of the two stages of its pre-training with LAMB."""
RESNET50_ROWS: tuple[PublishedRow, ...] = (
    _resnet50_row(512, 4 / (2**3.0 * 100), Fraction(5, 16), _resnet50_steps(512)),
    _resnet50_row(1_024, 4 / (2**2.5 * 100), Fraction(5, 8), _resnet50_steps(1_024)),
    _resnet50_row(2_048, 4 / (2**2.0 * 100), Fraction(5, 4), _resnet50_steps(2_048)),
    _resnet50_row(4_096, 4 / (2**1.5 * 100), Fraction(5, 2), _resnet50_steps(4_096)),
    _resnet50_row(8_192, 4 / (2**1.0 * 100), Fraction(5), _resnet50_steps(8_192)),
    _resnet50_row(16_384, 4 / (2**0.5 * 100), Fraction(10), _resnet50_steps(16_384)),
    _resnet50_row(32_768, 4 / (2**0.0 * 100), Fraction(20), Figure(3_519, "S", "the author's script for batch 32,768")),
)


@dataclass(frozen=True, kw_only=True)
class PublishedStage:
    """One stage of a two-stage BERT run as published; None where the source gives no number."""

    global_batch_samples: Figure[int]
    sequence_length: Figure[int]
    steps: Figure[int]
    peak_lr: Figure[float] | None = None
    warmup_ratio: Figure[Fraction] | None = None


_MIXED = f"{LAMB_PAPER}, mixed-batch run of 76 minutes"
BERT_MIXED_STAGES: tuple[PublishedStage, PublishedStage] = (
    PublishedStage(
        global_batch_samples=Figure(65_536, "S", _MIXED),
        sequence_length=Figure(128, "S", _MIXED),
        steps=Figure(7_037, "S", _MIXED),
    ),
    PublishedStage(
        global_batch_samples=Figure(32_768, "S", _MIXED),
        sequence_length=Figure(512, "S", _MIXED),
        steps=Figure(1_562, "S", _MIXED),
    ),
)
NVIDIA_STAGES: tuple[PublishedStage, PublishedStage] = (
    PublishedStage(
        global_batch_samples=Figure(65_536, "S", NVIDIA),
        sequence_length=Figure(128, "S", NVIDIA),
        steps=Figure(7_038, "S", NVIDIA),
        peak_lr=Figure(6e-3, "S", NVIDIA),
        warmup_ratio=Figure(Fraction("0.2843"), "S", NVIDIA),
    ),
    PublishedStage(
        global_batch_samples=Figure(32_768, "S", NVIDIA),
        sequence_length=Figure(512, "S", NVIDIA),
        steps=Figure(1_563, "S", NVIDIA),
        peak_lr=Figure(4e-3, "S", NVIDIA),
        warmup_ratio=Figure(Fraction("0.128"), "S", NVIDIA),
    ),
)
