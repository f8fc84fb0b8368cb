"""From a batch to a run: stages, steps, learning rates and warm-up, each number with its source.

    bert_plan(32_768)     the paper's BERT runs at one batch, published or in between
    bert_mixed_plan()     batch 65,536 at length 128, then 32,768 at length 512: the 76 minutes
    nvidia_bert_plan()    the two stages as NVIDIA's scripts run them
    resnet50_plan(32_768) 90 epochs of ImageNet

A plan is data: nothing here trains, and nothing is rounded that a step count does not round.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from largebatch.batch import samples_for_epochs, steps_for_samples, whole_number
from largebatch.scaling import (
    BERT_MIXED_STAGES,
    BERT_ROWS,
    BERT_SAMPLES,
    BERT_WARMUP_STEPS,
    IMAGENET_TRAIN_IMAGES,
    LAMB_PAPER,
    NVIDIA,
    NVIDIA_STAGES,
    RESNET50_EPOCHS,
    RESNET50_ROWS,
    RESNET50_WARMUP_STEPS,
    Figure,
    PublishedRow,
    PublishedStage,
    scale_lr,
    warmup_steps_for_ratio,
)
from largebatch.schedules import Schedule, continuous

BertModel = Literal["bert-large", "bert-base"]

_SQUARE_ROOT = "square-root rule from the paper's batch 32,768"
_WARMUP = "linear-epoch warm-up: the same steps at every batch"


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of a run.

    ``sequence_length`` is None where a sample is not a sequence. ``warmup_steps`` counts the warm-up that
    happens within this stage: 0 where it continues the schedule of the one before. ``schedule`` fits
    ``steps``.
    """

    name: str
    global_batch_samples: Figure[int]
    sequence_length: Figure[int] | None
    steps: Figure[int]
    peak_lr: Figure[float]
    warmup_steps: Figure[int]
    schedule: Figure[Schedule]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a run, and in ``notes``, a sentence each, what one must know to judge their numbers."""

    name: str
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def total_steps(self) -> int:
        """T, the steps of all stages."""
        return sum(stage.steps.value for stage in self.stages)

    @property
    def total_samples(self) -> int:
        """The samples that all stages see, the sum of steps x batch."""
        return sum(stage.steps.value * stage.global_batch_samples.value for stage in self.stages)

    @property
    def schedules(self) -> tuple[tuple[Schedule, int], ...]:
        """(schedule, steps) of each stage, as ``schedules.position`` takes them."""
        return tuple((stage.schedule.value, stage.steps.value) for stage in self.stages)


def _published_row(rows: tuple[PublishedRow, ...], batch: int) -> PublishedRow | None:
    return next((row for row in rows if row.global_batch_samples == batch), None)


def published_lr(rows: tuple[PublishedRow, ...], batch: int) -> Figure[float]:
    """Return the peak rate of the row of a batch, or else what the square-root rule makes of the largest row's."""
    row = _published_row(rows, batch)
    if row is not None:
        return row.peak_lr
    largest = rows[-1]
    return Figure(scale_lr(largest.peak_lr.value, largest.global_batch_samples, batch), "D", _SQUARE_ROOT)


def _range_notes(rows: tuple[PublishedRow, ...], batch: int) -> tuple[str, ...]:
    smallest, largest = rows[0].global_batch_samples, rows[-1].global_batch_samples
    if smallest <= batch <= largest:
        return ()
    outside = f"Batch {batch:,} lies outside the published {smallest:,} to {largest:,}"
    return (f"{outside}: its rate and warm-up are extrapolated.",)


def _refuse_all_warmup(batch: int, samples: int, warmup_steps: int) -> None:
    # ceil(samples / B) > w  <=>  samples / B > w  <=>  B < samples / w
    largest = -(-samples // warmup_steps) - 1
    if batch > largest:
        raise ValueError(
            f"batch is {batch:,}, but may be at most {largest:,}: {samples:,} samples would otherwise end "
            f"within the {warmup_steps:,} steps of warm-up"
        )


def bert_plan(batch: int, model: BertModel = "bert-large") -> Plan:
    """Plan BERT pre-training with LAMB at one batch, the same 512M samples at each.

    T = ceil(512,000,000 / B); stage 1, ceil(0.9 T) steps at length 128, stage 2 the rest at length 512; peak
    lr 5e-3 * sqrt(B / 32,768); 3,125 steps of warm-up, once; one decay (1 - p)^1 over all of T.

    Raises:
        ValueError: the batch is not a whole number of at least 1, T would end within the warm-up, or there
            is no such model.
    """
    if model not in get_args(BertModel):
        raise ValueError(f"model is {model!r}, but must be one of {', '.join(get_args(BertModel))}")
    total = steps_for_samples(BERT_SAMPLES, whole_number("batch", batch))
    _refuse_all_warmup(batch, BERT_SAMPLES, BERT_WARMUP_STEPS)
    first = -(-9 * total // 10)
    if batch == 32_768:
        steps = tuple(Figure(count, "S", f"{LAMB_PAPER}, BERT at batch 32,768") for count in (first, total - first))
    else:
        steps = (
            Figure(first, "D", f"ceil(0.9 T), T = ceil(512,000,000 / {batch:,}) = {total:,}"),
            Figure(total - first, "D", "T less stage 1"),
        )
    whole = Schedule(warmup_steps=BERT_WARMUP_STEPS)
    parts = continuous(whole, (first, total - first))
    warmups = (min(BERT_WARMUP_STEPS, first), max(0, BERT_WARMUP_STEPS - first))
    stages = tuple(
        StagePlan(
            name=name,
            global_batch_samples=Figure(batch, "choice", "the batch asked for"),
            sequence_length=Figure(length, "S", LAMB_PAPER),
            steps=count,
            peak_lr=published_lr(BERT_ROWS, batch),
            warmup_steps=Figure(warmup, "D", _WARMUP if warmup else "the warm-up happens once, in stage 1"),
            schedule=Figure(part, "choice", "our reading: one schedule over both stages"),
        )
        for name, length, count, warmup, part in zip(
            ("length-128", "length-512"), (128, 512), steps, warmups, parts, strict=True
        )
    )
    notes = (
        f"T = ceil(512,000,000 / {batch:,}) = {total:,} steps.",
        "One continuous schedule over T, with its 3,125 warm-up steps once, is our reading: the paper gives one "
        "warm-up ratio for each batch, and a second warm-up only for the mixed batch.",
        *_range_notes(BERT_ROWS, batch),
        *_base_notes(model),
    )
    return Plan(name=f"{model} at batch {batch:,}", stages=stages, notes=notes)


def _base_notes(model: BertModel) -> tuple[str, ...]:
    if model == "bert-large":
        return ()
    return ("The numbers are published for BERT-Large; to use them for BERT-base unchanged is our choice.",)


def _stage_plan(name: str, stage: PublishedStage, setting: PublishedStage, decay: Figure[Schedule]) -> StagePlan:
    """Combine the steps of one published stage with the rate and the warm-up share of another or the same."""
    assert setting.peak_lr is not None
    assert setting.warmup_ratio is not None
    ratio, steps = setting.warmup_ratio, stage.steps.value
    warmup = warmup_steps_for_ratio(ratio.value, steps)
    schedule = replace(decay.value, warmup_steps=warmup)
    return StagePlan(
        name=name,
        global_batch_samples=stage.global_batch_samples,
        sequence_length=stage.sequence_length,
        steps=stage.steps,
        peak_lr=setting.peak_lr,
        warmup_steps=Figure(warmup, "D", f"{float(ratio.value)} of {steps:,} steps, from zero; share: {ratio.source}"),
        schedule=replace(decay, value=schedule),
    )


def bert_mixed_plan(model: BertModel = "bert-large") -> Plan:
    """Plan the mixed-batch run: 65,536 at length 128 for 7,037 steps, 32,768 at length 512 for 1,562.

    Each stage warms up from zero. Batches and steps are the paper's [S]; it gives no rates for this run, so
    rates and warm-up shares are NVIDIA's (6e-3 and 0.2843, 4e-3 and 0.128); the decay of power 1, continuous
    with the warm-up, is our choice. Raises ValueError if there is no such model.
    """
    if model not in get_args(BertModel):
        raise ValueError(f"model is {model!r}, but must be one of {', '.join(get_args(BertModel))}")
    decay = Figure(Schedule(), "choice", "our choice: power 1, continuous with the end of the warm-up")
    stages = tuple(
        _stage_plan(name, stage, setting, decay)
        for name, stage, setting in zip(("length-128", "length-512"), BERT_MIXED_STAGES, NVIDIA_STAGES, strict=True)
    )
    by_rule = tuple(published_lr(BERT_ROWS, stage.global_batch_samples.value).value for stage in BERT_MIXED_STAGES)
    notes = (
        "Batches and steps are published; rates and warm-up shares are NVIDIA's, tuned for a decay of power 0.5; "
        "the decay is our choice.",
        f"The square-root rule would give peak rates {by_rule[0]:.2e} and {by_rule[1]:.2e}.",
        "Stage 1 has 7,037 steps as published; nine tenths of 512,000,000 samples would be 7,032.",
        *_base_notes(model),
    )
    return Plan(name=f"{model} at batch 64K/32K", stages=stages, notes=notes)


def nvidia_bert_plan() -> Plan:
    """Plan BERT-Large as NVIDIA's scripts run it: 7,038 + 1,563 steps, power 0.5, and a jump after the warm-up.

    The decay counts from step 0, so the rate falls from its peak to sqrt(1 - 0.2843) = 0.846 of it within one
    step at the end of the first warm-up. For comparison; ``bert_mixed_plan`` is what we recommend.
    """
    decay = Figure(Schedule(power=0.5, decay_origin="start"), "S", NVIDIA)
    stages = tuple(
        _stage_plan(name, stage, stage, decay)
        for name, stage in zip(("length-128", "length-512"), NVIDIA_STAGES, strict=True)
    )
    notes = ("The rate jumps down at the end of each warm-up, because the decay counts from step 0; this hurts.",)
    return Plan(name="bert-large, NVIDIA's two stages", stages=stages, notes=notes)


def resnet50_plan(batch: int) -> Plan:
    """Plan ResNet-50 on ImageNet with LAMB: 90 epochs, peak lr 0.04 * sqrt(B / 32,768), 782 warm-up steps.

    T = ceil(90 x 1,281,167 / B); polynomial decay of power 1.

    Raises:
        ValueError: the batch is not a whole number of at least 1, or T would end within the warm-up.
    """
    samples = samples_for_epochs(RESNET50_EPOCHS, IMAGENET_TRAIN_IMAGES)
    total = steps_for_samples(samples, whole_number("batch", batch))
    _refuse_all_warmup(batch, samples, RESNET50_WARMUP_STEPS)
    row = _published_row(RESNET50_ROWS, batch)
    derived = Figure(total, "D", f"ceil(90 x 1,281,167 / {batch:,})")
    stage = StagePlan(
        name="imagenet",
        global_batch_samples=Figure(batch, "choice", "the batch asked for"),
        sequence_length=None,
        steps=derived if row is None else row.total_steps,
        peak_lr=published_lr(RESNET50_ROWS, batch),
        warmup_steps=Figure(RESNET50_WARMUP_STEPS, "D", _WARMUP) if row is None else row.warmup_steps,
        schedule=Figure(Schedule(warmup_steps=RESNET50_WARMUP_STEPS), "R", f"{LAMB_PAPER}: power 1"),
    )
    return Plan(name=f"resnet-50 at batch {batch:,}", stages=(stage,), notes=_range_notes(RESNET50_ROWS, batch))
