"""The recipes of the table in miniature and of the demo: batches at the same samples, and the square-root rule."""

import pytest

from largebatch.errors import InputError
from largebatch.recipes.bert import PretrainingRun, bert_demo, bert_tiny


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


def test_the_demo_takes_so_many_samples_at_every_batch_if_told() -> None:
    assert bert_demo(samples=204_800) == bert_demo()
    for batch in (64, 512, 2048):
        run = bert_demo(batch, samples=204_800)
        assert samples(run)[0] == 204_800
        assert samples(run)[1] == pytest.approx(11_264, abs=batch / 4)
        assert run.stages[0].peak_lr == pytest.approx(bert_demo().stages[0].peak_lr * (batch / 256) ** 0.5)
        assert run.stages[0].schedule.warmup_steps == run.stages[0].steps // 10
    assert [stage.steps for stage in bert_demo(512).stages] == [800, 88], "not told, a larger batch sees more"
    with pytest.raises(InputError, match="samples is 100, allowed is a batch or more, 256"):
        bert_demo(samples=100)


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
