"""Plans as tables of numbers: what the command line prints and the recipes run."""

from collections.abc import Callable

import pytest

from largebatch.plans import Plan, bert_mixed_plan, bert_plan, nvidia_bert_plan, resnet50_plan
from largebatch.scaling import CERTAINTY_MEANING, Figure
from largebatch.schedules import position

BERT = [  # batch, steps at length 128, steps at length 512, peak lr
    (512, 900_000, 100_000, 0.000625),
    (1_024, 450_000, 50_000, 0.000883883),
    (2_048, 225_000, 25_000, 0.00125),
    (4_096, 112_500, 12_500, 0.00176777),
    (8_192, 56_250, 6_250, 0.0025),
    (16_384, 28_125, 3_125, 0.00353553),
    (32_768, 14_063, 1_562, 0.005),
    (20_000, 23_040, 2_560, 0.00390625),  # in between: 5e-3 * sqrt(20,000 / 32,768)
    (3_000, 153_601, 17_066, 0.00151288),  # T = 170,667, 0.9 T = 153,600.3
    (65_536, 7_032, 781, 0.00707107),
]


def numbers(plan: Plan) -> list[tuple]:
    return [
        (stage.global_batch_samples.value, stage.steps.value, stage.peak_lr.value, stage.warmup_steps.value)
        for stage in plan.stages
    ]


def rate(plan: Plan, step: int) -> float:
    found = position(plan.schedules, step)
    return plan.stages[found.stage].peak_lr.value * found.factor


@pytest.mark.parametrize(("batch", "first", "second", "lr"), BERT)
@pytest.mark.parametrize("model", ["bert-large", "bert-base"])
def test_bert(batch: int, first: int, second: int, lr: float, model) -> None:
    plan = bert_plan(batch, model)
    assert numbers(plan) == [
        (batch, first, pytest.approx(lr, rel=5e-6), 3_125),
        (batch, second, pytest.approx(lr, rel=5e-6), 0),
    ]
    assert [stage.sequence_length and stage.sequence_length.value for stage in plan.stages] == [128, 512]
    assert plan.total_steps == first + second
    assert 512_000_000 <= plan.total_samples < 512_000_000 + batch
    assert (f"{model} at batch {batch:,}") == plan.name


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: (900_000 * 512 // batch, 100_000 * 512 // batch),
        lambda batch: (round(0.9 * 512_000_000 / batch), round(0.1 * 512_000_000 / batch)),
        lambda batch: (
            -(-512_000_000 // batch) * 9 // 10,
            -(-512_000_000 // batch) - -(-512_000_000 // batch) * 9 // 10,
        ),
    ],
    ids=["floor", "each rounded", "stage 1 rounded down"],
)
def test_the_table_of_steps_catches(wrong: Callable[[int], tuple[int, int]]) -> None:
    assert [wrong(batch) for batch, *_ in BERT] != [(first, second) for _, first, second, _ in BERT]


def test_bert_has_one_schedule_over_both_stages() -> None:
    plan = bert_plan(32_768)
    assert rate(plan, 0) == 0.0
    assert rate(plan, 3_125) == 5e-3
    assert rate(plan, 14_062) - rate(plan, 14_063) == pytest.approx(5e-3 / 12_500)  # no jump, no second warm-up
    assert rate(plan, 15_624) == pytest.approx(5e-3 / 12_500)
    assert any("our reading" in note for note in plan.notes)
    assert {stage.schedule.certainty for stage in plan.stages} == {"choice"}


def test_the_mixed_batch() -> None:
    plan = bert_mixed_plan()
    assert numbers(plan) == [(65_536, 7_037, 6e-3, 2_001), (32_768, 1_562, 4e-3, 200)]
    assert plan.total_steps == 8_599
    assert rate(plan, 0) == rate(plan, 7_037) == 0.0  # each stage from zero
    assert rate(plan, 2_001) == 6e-3
    assert rate(plan, 7_037 + 200) == 4e-3
    assert rate(plan, 7_036) == pytest.approx(6e-3 / (7_037 - 2_001))  # power 1, continuous
    for stage in plan.stages:
        assert stage.steps.certainty == "S"
        assert "1904.00962" in stage.steps.source
        assert "NVIDIA" in stage.peak_lr.source
        assert "NVIDIA" in stage.warmup_steps.source
        assert stage.schedule.certainty == "choice"
    assert any("7.07e-03 and 5.00e-03" in note for note in plan.notes)


def test_nvidias_plan() -> None:
    plan = nvidia_bert_plan()
    assert numbers(plan) == [(65_536, 7_038, 6e-3, 2_001), (32_768, 1_563, 4e-3, 200)]
    assert rate(plan, 2_001) == pytest.approx(6e-3 * 0.84598, rel=1e-5)  # the jump
    assert rate(plan, 2_000) == pytest.approx(6e-3 * 2_000 / 2_001)
    assert rate(plan, 7_037) == pytest.approx(6e-3 * (1 / 7_038) ** 0.5)
    assert rate(plan, 7_038) == 0.0


@pytest.mark.parametrize(
    ("batch", "steps", "lr"),
    [
        (512, 225_206, 0.005),
        (1_024, 112_603, 0.00707107),
        (2_048, 56_302, 0.01),
        (4_096, 28_151, 0.0141421),
        (8_192, 14_076, 0.02),
        (16_384, 7_038, 0.0282843),
        (32_768, 3_519, 0.04),
        (3_000, 38_436, 0.0121031),
    ],
)
def test_resnet50(batch: int, steps: int, lr: float) -> None:
    plan = resnet50_plan(batch)
    assert numbers(plan) == [(batch, steps, pytest.approx(lr, rel=5e-6), 782)]
    assert plan.stages[0].sequence_length is None
    assert rate(plan, 782) == plan.stages[0].peak_lr.value
    assert plan.notes == ()


def test_every_number_of_a_plan_has_a_mark_and_a_source() -> None:
    for plan in (bert_plan(512), bert_plan(999), bert_mixed_plan(), nvidia_bert_plan(), resnet50_plan(32_768)):
        for stage in plan.stages:
            marked = [value for value in vars(stage).values() if isinstance(value, Figure)]
            assert len(marked) >= 5
            assert all(figure.certainty in CERTAINTY_MEANING and figure.source for figure in marked)


def test_a_rate_between_published_rows_is_marked_as_derived() -> None:
    assert bert_plan(512).stages[0].peak_lr.certainty == "R"
    assert bert_plan(513).stages[0].peak_lr.certainty == "D"
    assert resnet50_plan(32_768).stages[0].peak_lr.certainty == "S"
    assert resnet50_plan(32_769).stages[0].peak_lr.certainty == "D"


def test_notes_warn_outside_the_published_range_and_for_bert_base() -> None:
    assert not any("extrapolated" in note for note in bert_plan(512).notes)
    assert any("Batch 511 lies outside the published 512 to 32,768" in note for note in bert_plan(511).notes)
    assert any("extrapolated" in note for note in resnet50_plan(40_000).notes)
    assert any("BERT-base" in note for note in bert_plan(512, "bert-base").notes)
    assert any("BERT-base" in note for note in bert_mixed_plan("bert-base").notes)


def test_the_largest_batch_is_the_largest() -> None:
    plan = bert_plan(163_839)
    assert plan.total_steps == 3_126
    assert [stage.warmup_steps.value for stage in plan.stages] == [2_814, 311]  # it goes on in stage 2
    assert rate(plan, 3_125) == plan.stages[1].peak_lr.value
    assert resnet50_plan(147_448).total_steps == 783


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bert_plan(163_840), "batch is 163,840, but may be at most 163,839"),
        (lambda: resnet50_plan(147_449), "batch is 147,449, but may be at most 147,448"),
        (lambda: bert_plan(0), "batch is 0, but must be a whole number of at least 1"),
        (lambda: resnet50_plan(-5), "batch is -5, but"),
        (lambda: bert_plan(512, "bert-huge"), "model is 'bert-huge', but must be one of bert-large, bert-base"),  # type: ignore[arg-type]
        (lambda: bert_mixed_plan("bert-huge"), "model is 'bert-huge', but"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
