"""GPT-2 from scratch with LAMB or AdamW, at any batch: does the method carry over to language models?"""

from typing import Literal

from largebatch.batch import steps_for_samples
from largebatch.errors import InputError, check_positive
from largebatch.gpt.causal import CausalLanguageModel
from largebatch.recipes.optimizers import Adamw, Lamb
from largebatch.scaling import scale_lr
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage

GptRun = Run[CausalLanguageModel, Lamb | Adamw]

_FROM_BATCH = 32
_WARMUP_SHARE = 0.1


def gpt_mini(
    batch: int = 512,
    optimizer: Literal["lamb", "adamw"] = "lamb",
    samples: int = 65_536,
    lr_at_32: float = 0.004,
    sequence_length: int = 128,
) -> GptRun:
    """GPT of 4 layers and 256 units on packed sequences, the same samples at every batch.

    The rate is ``lr_at_32`` at batch 32 and follows the square-root rule; a tenth of the steps is warm-up; linear decay
    to zero. What a smaller network wants (2 layers, 128 units, length 64): LAMB 0.016 at batch 32 and 0.004 at 512,
    AdamW 0.004 at both, see reports/gpt/README.md. Status: run at that size.
    """
    return _gpt(
        CausalLanguageModel(
            corpus="corpora/gpt",
            hidden_size=256,
            layers=4,
            attention_heads=4,
            max_position_embeddings=sequence_length,
        ),
        batch,
        optimizer,
        samples,
        lr_at_32,
        sequence_length,
    )


def gpt2(
    batch: int = 512,
    optimizer: Literal["lamb", "adamw"] = "lamb",
    samples: int = 10_000_000,
    lr_at_32: float = 0.0015,
) -> GptRun:
    """GPT-2 of 124 million parameters on packed sequences of 1,024 tokens, the same samples at every batch.

    Source of the sizes: Radford et al., 2019. The rates are guesses: tune them. Status: not yet run.
    """
    return _gpt(CausalLanguageModel(corpus="corpora/gpt"), batch, optimizer, samples, lr_at_32, 1024)


def _gpt(
    task: CausalLanguageModel,
    batch: int,
    optimizer: Literal["lamb", "adamw"],
    samples: int,
    lr_at_32: float,
    sequence_length: int,
) -> GptRun:
    for name, value in (("batch", batch), ("samples", samples), ("sequence_length", sequence_length)):
        if value < 1:
            raise InputError(f"{name} is {value}, allowed is 1 or more")
    check_positive(lr_at_32=lr_at_32)
    steps = steps_for_samples(samples, batch)
    stage = Stage(
        name=f"length-{sequence_length}",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=scale_lr(lr_at_32, _FROM_BATCH, batch),
        schedule=Schedule(warmup_steps=round(_WARMUP_SHARE * steps)),
        task_options={"sequence_length": sequence_length},
    )
    choice: Lamb | Adamw = Lamb() if optimizer == "lamb" else Adamw(betas=(0.9, 0.95), weight_decay=0.1)
    return Run(task=task, stages=(stage,), optimizer=choice, evaluate_every_steps=0, checkpoint_every_steps=500)
