"""The recipe of the table in miniature: at every batch the same samples, warm-up steps, and the square-root rule."""

import pytest

from largebatch.errors import InputError
from largebatch.recipes.bert import PretrainingRun, bert_tiny


def samples(run: PretrainingRun) -> list[int]:
    return [stage.steps * stage.global_batch_samples for stage in run.stages]


def test_batches_differ_in_steps_and_rate_and_in_nothing_else() -> None:
    small, mixed = bert_tiny(32, 16, samples=512_000), bert_tiny(512, 256, samples=512_000)
    assert samples(small) == [512_000, 512_000]
    assert samples(mixed) == [512_000, 512_000]
    assert small.task == mixed.task
    assert small.optimizer == mixed.optimizer
    for one, other in zip(small.stages, mixed.stages, strict=True):
        assert one.steps == 16 * other.steps
        assert other.peak_lr == pytest.approx(4 * one.peak_lr, rel=1e-12), "square-root rule, not linear"
        assert one.schedule.warmup_steps == other.schedule.warmup_steps > 0, "linear-epoch warm-up"
        assert one.task_options == other.task_options
    assert small.stages[0].peak_lr == 0.0018
    assert bert_tiny(64).stages[1].global_batch_samples == 32


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"batch": 0}, "batch is 0, allowed is 1 or more"),
        ({"last_batch": -1}, "last_batch is -1"),
        ({"batch": 3_000}, "166 steps, of which 200 are warm-up"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_what_leaves_no_step_to_learn_in_is_refused(words: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        bert_tiny(**words)
