"""SQuAD: a pre-trained BERT is fine-tuned to point at the answers to questions."""

from pathlib import Path

from largebatch.batch import samples_for_epochs, steps_for_samples
from largebatch.bert import starting_weights
from largebatch.bert.squad_finetuning import SquadFineTuning
from largebatch.bert.squad_windows import WindowSizes
from largebatch.errors import InputError
from largebatch.recipes.optimizers import Adamw
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage

SquadRun = Run[SquadFineTuning, Adamw]

SQUAD_GRID = {"batch": (16, 32), "lr": (5e-5, 3e-5, 2e-5), "epochs": (2, 3, 4)}
"""What BERT was fine-tuned over (Devlin et al., NAACL 2019, appendix A.3)."""

_WARMUP_SHARE = 0.1
_V1_TRAINING_QUESTIONS = 87_599


def squad(
    train: str = "squad/train-v1.1.json",
    dev: str = "squad/dev-v1.1.json",
    init_from: str = "runs/bert-large/model",
    batch: int = 32,
    epochs: float = 2.0,
    lr: float = 3e-5,
    train_questions: int | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    question_length: int | None = None,
) -> SquadRun:
    """BERT fine-tuned on SQuAD v1.1 or v2 with AdamW, from a pre-training run or any Hugging Face folder.

    Source: Devlin et al., NAACL 2019, sections 4.2 and A.3: batch 16 or 32, rate 5e-5, 3e-5 or 2e-5, 2 to 4 epochs,
    a tenth of the steps as warm-up, linear decay to zero. ``--train`` and ``--dev`` are JSON files or
    hf:rajpurkar/squad; an epoch is every window once; windows have 384 tokens, or what the model allows, and begin
    ``stride`` tokens after one another. Expected for BERT-Large: dev F1 90.9 on v1.1. Status: not yet run at that size.
    """
    for name, value in (("batch", batch), ("epochs", epochs)):
        if not value > 0:
            raise InputError(f"{name} is {value}, allowed is more than 0")
    sizes = _window_sizes(init_from, sequence_length, stride, question_length)
    task = SquadFineTuning(
        train=train,
        dev=dev,
        init_from=init_from,
        train_questions=train_questions,
        sequence_length=sizes.sequence_length,
        stride=sizes.stride,
        question_length=sizes.question_length,
    )
    steps = steps_for_samples(samples_for_epochs(epochs, _windows(task)), batch)
    stage = Stage(
        name="squad",
        global_batch_samples=batch,
        steps=steps,
        peak_lr=lr,
        schedule=Schedule(warmup_steps=round(_WARMUP_SHARE * steps)),
    )
    return Run(task=task, stages=(stage,), optimizer=Adamw(), evaluate_every_steps=1000, checkpoint_every_steps=500)


def _window_sizes(
    folder: str, sequence_length: int | None, stride: int | None, question_length: int | None
) -> WindowSizes:
    """Return the sizes of windows for a model; where it cannot be read, which the run's check will tell, BERT's."""
    try:
        longest = starting_weights.sizes(Path(folder))["max_position_embeddings"]
    except InputError:
        longest = WindowSizes.sequence_length
    return WindowSizes.for_model(
        longest, sequence_length=sequence_length, stride=stride, question_length=question_length
    )


def _windows(task: SquadFineTuning) -> int:
    """Return the windows of an epoch; where the data cannot be read, which the run's check will tell, v1.1's number."""
    try:
        return task.training_windows()
    except InputError:
        return _V1_TRAINING_QUESTIONS
