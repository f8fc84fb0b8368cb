"""Scaling rules and published settings as tables of numbers; wrong rules that the tables catch."""

import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from largebatch import scaling

BERT_TABLE = [  # batch, T, lr as printed, warm-up share of T
    (512, 1_000_000, 0.000625, Fraction(1, 320)),
    (1_024, 500_000, 0.000883883, Fraction(1, 160)),
    (2_048, 250_000, 0.00125, Fraction(1, 80)),
    (4_096, 125_000, 0.00176777, Fraction(1, 40)),
    (8_192, 62_500, 0.0025, Fraction(1, 20)),
    (16_384, 31_250, 0.00353553, Fraction(1, 10)),
    (32_768, 15_625, 0.005, Fraction(1, 5)),
]
RESNET50_TABLE = [  # batch, T, lr as printed, epochs of warm-up
    (512, 225_206, 0.005, 0.3125),
    (1_024, 112_603, 0.00707107, 0.625),
    (2_048, 56_302, 0.01, 1.25),
    (4_096, 28_151, 0.0141421, 2.5),
    (8_192, 14_076, 0.02, 5),
    (16_384, 7_038, 0.0282843, 10),
    (32_768, 3_519, 0.04, 20),
]
LR_TABLES = [(BERT_TABLE, 5e-3), (RESNET50_TABLE, 0.04)]


def test_the_published_rows_are_the_tables() -> None:
    bert = [
        (
            row.global_batch_samples,
            row.total_steps.value,
            row.peak_lr.value,
            row.warmup_ratio and row.warmup_ratio.value,
        )
        for row in scaling.BERT_ROWS
    ]
    assert bert == [pytest.approx(expected, rel=5e-6) for expected in BERT_TABLE]
    resnet50 = [
        (
            row.global_batch_samples,
            row.total_steps.value,
            row.peak_lr.value,
            row.warmup_epochs and float(row.warmup_epochs.value),
        )
        for row in scaling.RESNET50_ROWS
    ]
    assert resnet50 == [pytest.approx(expected, rel=5e-6) for expected in RESNET50_TABLE]


def test_a_float_comparison_of_rows_would_notice_a_wrong_one() -> None:
    assert pytest.approx(0.000625, rel=5e-6) != 0.000626


@pytest.mark.parametrize(("table", "lr_at_32k"), LR_TABLES)
def test_the_square_root_rule_gives_every_published_rate(table: list, lr_at_32k: float) -> None:
    derived = [scaling.scale_lr(lr_at_32k, 32_768, batch, "square-root") for batch, *_ in table]
    assert derived == pytest.approx([lr for _, _, lr, _ in table], rel=5e-6)


@pytest.mark.parametrize(("table", "lr_at_32k"), LR_TABLES)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda lr, batch: scaling.scale_lr(lr, 32_768, batch, "linear"),
        lambda lr, batch: scaling.scale_lr(lr, 32_768, batch, "none"),
        lambda lr, batch: lr * (batch / 32_768) ** (1 / 3),
        lambda lr, batch: lr * math.sqrt(32_768 / batch),
    ],
    ids=["linear", "none", "cube root", "inverted"],
)
def test_the_table_of_rates_catches(wrong: Callable[[float, int], float], table: list, lr_at_32k: float) -> None:
    assert [wrong(lr_at_32k, batch) for batch, *_ in table] != pytest.approx([row[2] for row in table], rel=0.01)


@pytest.mark.parametrize(("rule", "expected"), [("square-root", 0.2), ("linear", 0.4), ("none", 0.1)])
def test_rules(rule, expected: float) -> None:
    assert scaling.scale_lr(0.1, 256, 1_024, rule) == pytest.approx(expected)
    assert scaling.scale_lr(0.1, 256, 256, rule) == 0.1  # exactly
    assert scaling.scale_lr(expected, 1_024, 256, rule) == pytest.approx(0.1)


# --- warm-up ----------------------------------------------------------------------------------------


def test_linear_epoch_warmup_keeps_the_steps() -> None:
    for _, total, _, ratio in BERT_TABLE:
        assert scaling.warmup_steps_for_ratio(ratio, total) == 3_125
        assert scaling.warmup_ratio(3_125, total) == ratio
    for batch, _, _, epochs in RESNET50_TABLE:
        assert scaling.linear_epoch_warmup(0.3125, 512, batch) == Fraction(epochs)
        assert scaling.warmup_steps_for_epochs(epochs, 1_281_167, batch) == 782
    assert {row.warmup_steps.value for row in scaling.BERT_ROWS} == {3_125}
    assert {row.warmup_steps.value for row in scaling.RESNET50_ROWS} == {782}


@pytest.mark.parametrize(
    "wrong",
    [lambda batch: 20, lambda batch: Fraction(0.3125), lambda batch: 0.3125 * math.sqrt(batch / 512)],
    ids=["epochs of the largest", "epochs of the smallest", "square root"],
)
def test_the_table_of_warmups_catches_other_epochs(wrong) -> None:
    steps = [scaling.warmup_steps_for_epochs(wrong(batch), 1_281_167, batch) for batch, *_ in RESNET50_TABLE]
    assert steps != [782] * 7


def test_a_constant_share_of_the_steps_would_be_another_rule() -> None:
    steps = [scaling.warmup_steps_for_ratio(Fraction(1, 5), total) for _, total, _, _ in BERT_TABLE]
    assert steps[-1] == 3_125
    assert steps[:-1] != [3_125] * 6


@pytest.mark.parametrize(
    ("ratio", "total", "steps"),
    [(0.2843, 7_037, 2_001), (0.2843, 7_038, 2_001), (0.128, 1_562, 200), (0.128, 1_563, 200), (0, 5, 0), (1, 5, 5)],
)
def test_warmup_steps_for_ratio(ratio: float, total: int, steps: int) -> None:
    assert scaling.warmup_steps_for_ratio(ratio, total) == steps


# --- betas and eps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("betas", "base", "batch", "expected_lr", "expected_betas", "expected_eps"),
    [
        ((0.9, 0.999), 256, 256, 1e-3, (0.9, 0.999), 1e-6),
        ((0.9, 0.999), 256, 1_024, 2e-3, (0.6, 0.996), 5e-7),
        ((0.9, 0.999), 256, 64, 5e-4, (0.975, 0.99975), 2e-6),
        ((0.0, 0.999), 256, 128, 1e-3 / math.sqrt(2), (0.5, 0.9995), 1e-6 * math.sqrt(2)),
    ],
)
def test_scale_adam(betas, base: int, batch: int, expected_lr: float, expected_betas, expected_eps: float) -> None:
    scaled = scaling.scale_adam(1e-3, betas, 1e-6, base, batch)
    assert scaled.lr == pytest.approx(expected_lr, rel=1e-14)
    assert scaled.betas == pytest.approx(expected_betas, rel=1e-14)
    assert scaled.eps == pytest.approx(expected_eps, rel=1e-14)
    wrong_betas = (betas[0] ** (batch / base), betas[1] ** (batch / base))  # the exponential rule, close but other
    assert batch == base or scaled.betas != pytest.approx(wrong_betas, rel=1e-6)


def test_scaling_there_and_back_changes_nothing() -> None:
    there = scaling.scale_adam(1e-3, (0.9, 0.999), 1e-6, 256, 1_024)
    back = scaling.scale_adam(there.lr, there.betas, there.eps, 1_024, 256)
    assert back.lr == pytest.approx(1e-3, rel=1e-14)
    assert back.betas == pytest.approx((0.9, 0.999), rel=1e-13)
    assert back.eps == pytest.approx(1e-6, rel=1e-14)


def test_a_batch_that_leaves_no_average_is_refused() -> None:
    assert scaling.scale_adam(1e-3, (0.9, 0.999), 1e-6, 512, 5_119).betas[0] == pytest.approx(1 / 5_120, rel=1e-9)
    with pytest.raises(
        ValueError, match=r"beta1 0.9 cannot be scaled from batch 512 to 5,120: .* 5,119 is the largest"
    ):
        scaling.scale_adam(1e-3, (0.9, 0.999), 1e-6, 512, 5_120)  # k * (1 - beta1) is 1; in floats it is below
    assert 10 * (1 - 0.9) < 1
    with pytest.raises(ValueError, match=r"beta2 0\.5 cannot"):
        scaling.scale_adam(1e-3, (0.9, 0.5), 1e-6, 512, 1_024)


# --- certainty and refusals -------------------------------------------------------------------------


def figures(row: object) -> list[scaling.Figure]:
    return [value for value in vars(row).values() if isinstance(value, scaling.Figure)]


def test_every_published_number_has_a_mark_and_a_source() -> None:
    rows = [*scaling.BERT_ROWS, *scaling.RESNET50_ROWS, *scaling.BERT_MIXED_STAGES, *scaling.NVIDIA_STAGES]
    for row in rows:
        assert len(figures(row)) >= 3
        for figure in figures(row):
            assert figure.certainty in scaling.CERTAINTY_MEANING
            assert figure.certainty != "choice"  # a published row holds nothing of ours
            assert figure.source


def test_marks_of_the_published_rows() -> None:
    last = scaling.BERT_ROWS[-1]
    assert (last.total_steps.certainty, last.peak_lr.certainty, last.warmup_steps.certainty) == ("S", "R", "D")
    assert scaling.BERT_ROWS[0].total_steps.certainty == "R"
    last = scaling.RESNET50_ROWS[-1]
    assert (last.total_steps.certainty, last.peak_lr.certainty, last.warmup_steps.certainty) == ("S", "S", "S")
    first = scaling.RESNET50_ROWS[0]
    assert (first.total_steps.certainty, first.peak_lr.certainty, first.warmup_steps.certainty) == ("D", "R", "D")


def test_the_two_stage_settings() -> None:
    numbers = [
        tuple(figure.value for figure in figures(stage))
        for stage in (*scaling.BERT_MIXED_STAGES, *scaling.NVIDIA_STAGES)
    ]
    assert numbers == [
        (65_536, 128, 7_037),
        (32_768, 512, 1_562),
        (65_536, 128, 7_038, 6e-3, Fraction(2_843, 10_000)),
        (32_768, 512, 1_563, 4e-3, Fraction(128, 1_000)),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.scale_lr(0.0, 1, 1), "base_lr is 0.0, but must be a finite number above 0"),
        (lambda: scaling.scale_lr(math.nan, 1, 1), "base_lr is nan, but"),
        (lambda: scaling.scale_lr(math.inf, 1, 1), "base_lr is inf, but"),
        (lambda: scaling.scale_lr(1.0, 0, 1), "base_batch is 0, but"),
        (lambda: scaling.scale_lr(1.0, 1, 1.5), "batch is 1.5, but"),  # type: ignore[arg-type]
        (lambda: scaling.scale_lr(1.0, 1, 1, "sqrt"), "rule is 'sqrt', but must be one of square-root, linear, none"),  # type: ignore[arg-type]
        (lambda: scaling.linear_epoch_warmup(-1, 1, 1), "base_epochs is -1, but"),
        (lambda: scaling.warmup_steps_for_epochs(math.inf, 1, 1), "epochs is inf, but"),
        (lambda: scaling.warmup_steps_for_ratio(1.01, 10), "ratio is 1.01, but must lie between 0 and 1"),
        (lambda: scaling.warmup_ratio(11, 10), "warmup_steps is 11, but there are only 10 steps"),
        (lambda: scaling.scale_adam(1e-3, (1.0, 0.9), 1e-6, 1, 1), "beta1 is 1.0, but must be at least 0 and below 1"),
        (lambda: scaling.scale_adam(1e-3, (0.9, math.nan), 1e-6, 1, 1), "beta2 is nan, but"),
        (lambda: scaling.scale_adam(1e-3, (0.9, 0.9), -1e-6, 1, 1), "eps is -1e-06, but"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_formulas_need_neither_torch_nor_numpy() -> None:
    # The package itself imports torch for its public names, so a bare package of the same folder takes its place.
    code = (
        "import sys, types\n"
        "sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "package = sys.modules['largebatch'] = types.ModuleType('largebatch')\n"
        f"package.__path__ = [{str(Path(scaling.__file__).parent)!r}]\n"
        "import largebatch.plans\n"
        "print(largebatch.plans.bert_plan(32768).total_steps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "15625", done.stderr
