"""BERT for comparisons: any optimizer, batch and warm-up, one stage or two, small enough to be trained many times."""

from dataclasses import replace
from typing import Literal

from largebatch.bert.pretraining import BertPretraining
from largebatch.errors import InputError, check_positive
from largebatch.recipes.optimizers import Adamw, Lamb, Lars
from largebatch.scaling import Rule, scale_lr
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage

Network = Literal["tiny", "base", "large"]
Second = Literal["from-zero", "at-once", "one-decay"]
ComparedRun = Run[BertPretraining, Lamb | Adamw | Lars]

_SIZES: dict[Network, tuple[int, int, int]] = {"tiny": (128, 2, 4), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers, heads."""

_OPTIMIZERS = {"lamb": Lamb, "adamw": Adamw, "lars": Lars}
_FROM_BATCH = 32


def bert_study(
    corpus: str = "corpora/pydocs",
    network: Network = "tiny",
    optimizer: Literal["lamb", "adamw", "lars"] = "lamb",
    batch: int = 256,
    lr_at_32: float = 0.003,
    rule: Rule = "square-root",
    warmup_share: float = 0.1,
    warmup_steps: int | None = None,
    samples: int = 65_536,
    length: int = 16,
    long_batch: int | None = None,
    long_samples: int = 0,
    long_length: int = 64,
    second_warmup: Second = "from-zero",
) -> ComparedRun:
    """BERT pre-trained on a given number of samples, whatever the batch: what studies compare.

    ``samples`` sequences of ``length`` tokens at ``batch``, then ``long_samples`` of ``long_length`` at ``long_batch``
    (``batch`` if left out). The rate is ``lr_at_32`` at batch 32, carried by ``rule``. Warm-up is a share of the steps,
    or ``warmup_steps``, which are then the same at every batch (linear-epoch rule). The second stage is warmed up
    ``from-zero``, as in the paper, begins at its peak ``at-once``, or has the rest of ``one-decay`` over both. Status:
    run with 2 layers, reports/studies.
    """
    for name, value, least in (
        ("batch", batch, 1),
        ("samples", samples, 1),
        ("length", length, 8),
        ("long_batch", long_batch, 1),
        ("long_samples", long_samples, 0),
        ("long_length", long_length, 8),
        ("warmup_steps", warmup_steps, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}, allowed is {least} or more")
    check_positive(lr_at_32=lr_at_32)
    if not 0 <= warmup_share < 1:
        raise InputError(f"warmup_share is {warmup_share}, allowed is 0 or more and less than 1")
    sizes = [(batch, samples, length)]
    if long_samples:
        sizes.append((long_batch or batch, long_samples, long_length))
    steps = [max(1, count // size) for size, count, _ in sizes]
    total = sum(steps)
    stages = []
    for number, ((size, _, tokens), own) in enumerate(zip(sizes, steps, strict=True)):
        one_decay = second_warmup == "one-decay" and len(sizes) > 1
        warmup = round(warmup_share * (total if one_decay else own)) if warmup_steps is None else warmup_steps
        if warmup >= own and not (one_decay and number):
            raise InputError(
                f"stage {number + 1} has {own:,} steps, of which {warmup:,} are warm-up: allowed are fewer"
            )
        if one_decay:
            schedule = Schedule(warmup_steps=warmup, offset_steps=sum(steps[:number]), span_steps=total)
        else:
            schedule = Schedule(warmup_steps=warmup if number == 0 or second_warmup == "from-zero" else 0)
        stages.append(
            Stage(
                name=f"length-{tokens}",
                global_batch_samples=size,
                steps=own,
                peak_lr=scale_lr(lr_at_32, _FROM_BATCH, size, rule),
                schedule=schedule,
                task_options={"sequence_length": tokens, "max_predictions": max(1, tokens * 20 // 128)},
            )
        )
    width, layers, heads = _SIZES[network]
    task = BertPretraining(
        corpus=corpus,
        hidden_size=width,
        layers=layers,
        attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max(tokens for _, _, tokens in sizes),
    )
    if network == "tiny":
        task = replace(task, dropout=0.0, attention_dropout=0.0, encoder_init_std=0.088, whole_word_masking=True)
    return Run(
        task=task,
        stages=tuple(stages),
        optimizer=_OPTIMIZERS[optimizer](),
        evaluate_every_steps=max(1, total // 10),
        checkpoint_every_steps=max(1, total // 4),
        layers_every_steps=max(1, total // 20),
    )
