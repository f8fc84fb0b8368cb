"""BERT pre-trained from scratch with LAMB, in two stages: short sequences, then long ones."""

from dataclasses import replace

from largebatch.bert.pretraining import BertPretraining
from largebatch.errors import InputError
from largebatch.plans import BertModel, Plan, bert_mixed_plan, bert_plan, nvidia_bert_plan
from largebatch.recipes.optimizers import Lamb
from largebatch.scaling import scale_lr
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage

PretrainingRun = Run[BertPretraining, Lamb]

_MAX_PREDICTIONS = {128: 20, 512: 80}
"""Masked positions at most in a sequence, by its length: 15 % of it and a little more, as BERT's scripts have it."""

_BASE = BertPretraining(
    corpus="corpora/books-and-wikipedia",
    hidden_size=768,
    layers=12,
    attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
)
_TINY = BertPretraining(
    corpus="corpora/mine",
    hidden_size=128,
    layers=2,
    attention_heads=2,
    intermediate_size=512,
    max_position_embeddings=256,
    dropout=0.0,
    attention_dropout=0.0,
)
_LARGE = replace(_BASE, hidden_size=1024, layers=24, attention_heads=16, intermediate_size=4096)


def _stages(plan: Plan) -> tuple[Stage, ...]:
    stages = []
    for stage in plan.stages:
        assert stage.sequence_length is not None
        length = stage.sequence_length.value
        stages.append(
            Stage(
                name=stage.name,
                global_batch_samples=stage.global_batch_samples.value,
                steps=stage.steps.value,
                peak_lr=stage.peak_lr.value,
                schedule=stage.schedule.value,
                task_options={"sequence_length": length, "max_predictions": _MAX_PREDICTIONS[length]},
            )
        )
    return tuple(stages)


def _pretraining(task: BertPretraining, plan: Plan) -> PretrainingRun:
    return Run(
        task=task,
        stages=_stages(plan),
        optimizer=Lamb(),
        evaluate_every_steps=500,
        checkpoint_every_steps=250,
    )


def _bert(model: BertModel, batch: int) -> PretrainingRun:
    try:
        plan = bert_plan(batch, model)
    except ValueError as error:
        raise InputError(str(error)) from error
    return _pretraining(_LARGE if model == "bert-large" else _BASE, plan)


DEMO_BATCH, DEMO_LR, DEMO_STEPS = 256, 0.015, (800, 88)
"""Chosen on one seed among the rates 0.015, 0.02 and 0.03: 0.03 stays on the plateau of the unigram loss."""


def bert_demo(batch: int = DEMO_BATCH, samples: int | None = None) -> PretrainingRun:
    """BERT of 2 layers and 128 units on the documentation at hand, in minutes on two CPU cores.

    Source: the paper's two stages in miniature. Stage 1: length 64 at ``batch``; stage 2: length 128 at half of it,
    warmed up again from zero. The rate follows the square-root rule from batch 256. Steps do not: a larger batch sees
    more samples, unless ``samples`` says how many stage 1 sees; stage 2 has its usual share of them.

    Expected: held-out masked-token loss 5.15 nat where unigrams give 6.15, accuracy 18 % where the commonest token
    gives 6 %, on seed 0 alone; under 7 minutes on two cores of an AMD EPYC with AVX512-BF16. Command: ``make demo``.
    Status: reproduced.
    """
    if batch < 2:
        raise InputError(f"batch is {batch}, allowed is 2 or more")
    if samples is not None and samples < batch:
        raise InputError(f"samples is {samples}, allowed is a batch or more, {batch}")
    steps_of_first = DEMO_STEPS[0] if samples is None else round(samples / batch)
    all_steps = (steps_of_first, max(1, round(steps_of_first * DEMO_STEPS[1] / DEMO_STEPS[0])))
    return Run(
        task=replace(_TINY, corpus="corpora/pydocs", max_position_embeddings=128),
        stages=tuple(
            Stage(
                name=f"length-{length}",
                global_batch_samples=samples,
                steps=steps,
                peak_lr=scale_lr(DEMO_LR, DEMO_BATCH, samples),
                schedule=Schedule(warmup_steps=steps // 10),
                task_options={"sequence_length": length, "max_predictions": length * 10 // 64},
            )
            for length, samples, steps in zip((64, 128), (batch, batch // 2), all_steps, strict=True)
        ),
        optimizer=Lamb(),
        evaluate_every_steps=100,
        checkpoint_every_steps=100,
        layers_every_steps=10,
    )


_TINY_LENGTHS, _TINY_WARMUP_STEPS = (16, 128), 200
"""Warm-up is the same at every batch: linear-epoch rule."""


def bert_tiny(
    batch: int = 256, last_batch: int | None = None, samples: int = 500_000, lr_at_32: float = 0.0018
) -> PretrainingRun:
    """BERT of 2 layers and 128 units in two stages, the same samples at every batch: the paper's table in miniature.

    ``samples`` sequences of 16 tokens at ``batch``, which is where so small a network learns to use context at all;
    then as many of 128 at ``last_batch``, or half of ``batch``, warmed up again from zero. The rate is ``lr_at_32`` at
    batch 32 and follows the square-root rule; warm-up has the same steps at every batch (linear-epoch rule). Fine-tuned
    on SQuAD with ``--squad-train`` and ``--squad-dev``. Status: run at batch 256 and 32, with the scores that stand in
    reports/bert-tiny/README.md.
    """
    last = max(1, batch // 2) if last_batch is None else last_batch
    for name, value in (("batch", batch), ("last_batch", last), ("samples", samples)):
        if value < 1:
            raise InputError(f"{name} is {value}, allowed is 1 or more")
    stages = []
    for length, size in zip(_TINY_LENGTHS, (batch, last), strict=True):
        steps = samples // size
        if steps <= _TINY_WARMUP_STEPS:
            raise InputError(
                f"{samples:,} samples at batch {size:,} are {steps:,} steps, of which {_TINY_WARMUP_STEPS} are "
                "warm-up: give more --samples or a smaller batch"
            )
        stages.append(
            Stage(
                name=f"length-{length}",
                global_batch_samples=size,
                steps=steps,
                peak_lr=scale_lr(lr_at_32, 32, size),
                schedule=Schedule(warmup_steps=_TINY_WARMUP_STEPS),
                task_options={"sequence_length": length, "max_predictions": length * 20 // 128},
            )
        )
    return Run(
        task=replace(
            _TINY,
            attention_heads=4,
            max_position_embeddings=128,
            encoder_init_std=0.088,
            whole_word_masking=True,
        ),
        stages=tuple(stages),
        optimizer=Lamb(),
        evaluate_every_steps=1000,
        checkpoint_every_steps=500,
        layers_every_steps=100,
    )


def bert_base(batch: int = 32_768) -> PretrainingRun:
    """BERT-base with LAMB at one batch, the same 512M samples at each; rates published for BERT-Large.

    Status: not yet run.
    """
    return _bert("bert-base", batch)


def bert_base_mixed() -> PretrainingRun:
    """BERT-base at batch 65,536 for short and 32,768 for long sequences; rates published for BERT-Large.

    Status: not yet run.
    """
    return _pretraining(_BASE, bert_mixed_plan("bert-base"))


def bert_large(batch: int = 32_768) -> PretrainingRun:
    """BERT-Large with LAMB at one batch from 512 to 32,768, as in the paper's table.

    Source: arXiv 1904.00962, table of BERT results, rows 512 to 32K. Expected after SQuAD fine-tuning: v1.1 dev F1
    91.752 at 512, 91.475 at 32K; 101.2 minutes on 1,024 TPUv3 chips at 32K. Status: not yet run.
    """
    return _bert("bert-large", batch)


def bert_large_mixed() -> PretrainingRun:
    """BERT-Large at batch 65,536 for short and 32,768 for long sequences, the second stage warmed up again from zero.

    Source: arXiv 1904.00962, mixed-batch row: 8,599 steps, SQuAD v1.1 dev F1 90.584, 76.19 minutes on 1,024 TPUv3
    chips; rates and warm-up are NVIDIA's. Status: not yet run.
    """
    return _pretraining(_LARGE, bert_mixed_plan())


def bert_large_nvidia() -> PretrainingRun:
    """BERT-Large with NVIDIA's two-stage settings, decay of power 0.5 and its jump after the warm-up included.

    Source: NVIDIA's BERT pre-training scripts. Status: not yet run.
    """
    return _pretraining(_LARGE, nvidia_bert_plan())
