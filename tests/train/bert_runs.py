"""A BERT run of seconds on a corpus of a few sentences, as a recipe for tests of whole processes."""

from largebatch.bert.pretraining import BertPretraining
from largebatch.recipes.optimizers import Lamb
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage


def tiny_bert(batch: int = 12) -> Run[BertPretraining, Lamb]:
    """Two stages of ten steps of a BERT with one layer and 32 units."""
    return Run(
        task=BertPretraining(
            corpus="corpus",
            hidden_size=32,
            layers=1,
            attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=48,
            dropout=0.0,
            attention_dropout=0.0,
            held_out_pairs=20,
        ),
        stages=(
            Stage(
                name="short",
                global_batch_samples=batch,
                steps=12,
                peak_lr=0.01,
                schedule=Schedule(warmup_steps=3),
                task_options={"sequence_length": 24, "max_predictions": 4},
            ),
            Stage(
                name="long",
                global_batch_samples=batch // 2,
                steps=8,
                peak_lr=0.005,
                schedule=Schedule(warmup_steps=2),
                task_options={"sequence_length": 48, "max_predictions": 8},
            ),
        ),
        optimizer=Lamb(),
        precision="fp32",
        microbatch=4,
        checkpoint_every_steps=3,
        evaluate_every_steps=5,
    )
