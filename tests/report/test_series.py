"""Thin curves keep their extremes; averages and names are tables of numbers."""

import itertools
import math

import numpy as np
import pytest
from made_run import LAYERS

from largebatch.report import wording
from largebatch.report.heat_map import _round_ratios, narrow_names, short_names
from largebatch.report.markup import Markup, asset, element, join, script_data
from largebatch.report.series import most_extreme, moving_average, plain, thin

NAN = math.nan


def spiky(count: int = 100_000) -> np.ndarray:
    values = np.sin(np.arange(count) / 1_000.0)
    values[12_345], values[77_777] = 50.0, -50.0
    return values


def keeps_spikes(kept: np.ndarray) -> bool:
    values = spiky()
    return values[kept].max() == 50.0 and values[kept].min() == -50.0


def test_a_thin_curve_keeps_its_ends_and_spikes() -> None:
    kept = thin(spiky(), 500)
    assert len(kept) <= 500
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert keeps_spikes(kept)
    # In every piece of the curve, not only where it is highest.
    values = spiky()
    for start in range(0, 100_000, 1_000):
        inside = kept[(kept >= start) & (kept < start + 1_000)]
        assert values[inside].max() >= values[start : start + 1_000].max() - 1e-9 or len(inside) >= 2


@pytest.mark.parametrize(
    "wrong",
    [np.arange(0, 100_000, 200), np.linspace(0, 99_999, 500).astype(int), np.arange(500)],
    ids=["every 200th", "evenly spaced", "the first ones"],
)
def test_the_spikes_catch_plain_sampling(wrong: np.ndarray) -> None:
    assert not keeps_spikes(wrong)


def test_short_curves_and_gaps() -> None:
    assert thin(np.array([3.0, NAN, 1.0]), 10).tolist() == [0, 1, 2]
    assert thin(np.array([]), 10).tolist() == []
    assert thin(np.full(1_000, NAN), 10).tolist() == [0, 999]
    values = np.full(1_000, NAN)
    values[500] = 7.0
    assert 500 in thin(values, 10)


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1, [1, 2, 3, 4, 9]), (3, [1.5, 2, 3, 16 / 3, 6.5]), (5, [2, 2.5, 19 / 5, 4.5, 16 / 3]), (99, [19 / 5] * 5)],
)
def test_moving_average(window: int, expected: list[float]) -> None:
    assert moving_average(np.array([1.0, 2, 3, 4, 9]), window).tolist() == pytest.approx(expected)


def test_moving_average_passes_over_gaps() -> None:
    averaged = moving_average(np.array([1.0, NAN, 3.0, NAN, NAN, NAN, 5.0]), 3)
    assert averaged.tolist() == pytest.approx([1, 2, 3, 3, NAN, 5, 5], nan_ok=True)


def test_the_most_unusual_value_of_each_cell() -> None:
    rows = np.array([[1.0, 1.1, 1.0, 9.0, 1.0, 1.2], [NAN, NAN, 2.0, 2.0, 2.0, -5.0], [NAN] * 6])
    first, short = most_extreme(rows, 3)
    assert first.tolist() == [0, 2, 4]
    assert short[0].tolist() == [1.1, 9.0, 1.2] or short[0].tolist() == [1.0, 9.0, 1.2]
    assert short[1].tolist() == pytest.approx([NAN, 2.0, -5.0], nan_ok=True)
    assert np.isnan(short[2]).all()
    averages = rows[0].reshape(3, 2).mean(axis=1)
    assert averages.max() < 9.0  # what a mean would have hidden


def test_plain_numbers() -> None:
    assert plain(np.array([1.0, 0.1234567, NAN, math.inf, 1e6, 12_345_678.9, 2.0**60])) == [
        1,
        0.123457,
        None,
        None,
        1_000_000,
        12_345_700.0,
        1.15292e18,
    ]
    assert isinstance(plain(np.array([7.0]))[0], int)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (wording.count(1_234_567.0), "1,234,567"),
        (wording.count(NAN), "–"),
        (wording.rounded_count(4_416_000), "4.42 million"),
        (wording.rounded_count(9_999), "9,999"),
        (wording.rounded_count(12_345), "12.3 thousand"),
        (wording.rounded_count(3.3e9), "3.3 billion"),
        (wording.significant(0.000883883), "0.0008839"),
        (wording.significant(0.00001234), "1.234e-05"),
        (wording.significant(123_456.0, 3), "123,000"),
        (wording.significant(0.0), "0"),
        (wording.significant(NAN), "–"),
        (wording.fixed(-1.23456, 3), "−1.235"),
        (wording.percent(0.2043), "20.4 %"),
        (wording.duration(3.21), "3.2 s"),
        (wording.duration(59.6), "1 min 0 s"),
        (wording.duration(298), "4 min 58 s"),
        (wording.duration(7_380), "2 h 3 min"),
        (wording.duration(274_000), "3 d 4 h"),
        (wording.times(4.449), "4.4 times"),
        (wording.plural(1, "step"), "1 step"),
        (wording.plural(2_000, "step"), "2,000 steps"),
        (wording.plural(2, "process", "processes"), "2 processes"),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_wording(call: str, text: str) -> None:
    assert call == text


# --- layer names and ticks --------------------------------------------------------------------------


def test_layer_names_lose_what_all_share() -> None:
    short = short_names(LAYERS)
    assert short[0] == "embeddings.word_embeddings"
    assert short[2] == "encoder.layer.0.attention.self.query"
    assert short[-1] == "cls.predictions.transform.dense"
    assert len(set(short)) == len(LAYERS)
    narrow = narrow_names(short)
    assert narrow[2] == "0 att.sel.query"
    assert narrow[5] == "0 att.out.dense"
    assert narrow[7] == "0 out.dense"
    assert len(set(narrow)) == len(LAYERS)
    assert max(len(name) for name in narrow) <= 24


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.a.weight", "model.b.weight"], ("a", "b")),
        (["a.weight", "a.bias"], ("weight", "bias")),
        (["x.weight", "x"], ("x.weight", "x")),
        (["0.weight", "1.weight"], ("0", "1")),
        (["only.one.weight"], ("only.one",)),
    ],
)
def test_layer_names_stay_distinct(names: list[str], expected: tuple[str, ...]) -> None:
    assert short_names(names) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-3.0, 1.0, [0.001, 0.01, 0.1, 1.0, 10.0]),
        (-1.8, 1.13, [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
        (0.0, 1.0, [1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0]),
        (math.log10(0.0242), math.log10(0.167), [0.03, 0.05, 0.07, 0.1, 0.15]),
    ],
)
def test_round_ratios(low: float, high: float, expected: list[float]) -> None:
    assert _round_ratios(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(-20.0, 30.0), (0.1, 0.11), (-0.3, 0.3), (2.5, 6.0), (-1.6, -0.7)])
def test_there_are_a_few_ticks_in_any_range_and_room_between_them(low: float, high: float) -> None:
    places = [(math.log10(ratio) - low) / (high - low) for ratio in _round_ratios(low, high)]
    assert 3 <= len(places) <= 9
    assert all(-0.01 <= place <= 1.01 for place in places)
    assert all(after - before > 0.1 for before, after in itertools.pairwise(places))


# --- markup -----------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not() -> None:
    built = element("p", "a < b & c", element("b", "<i>"), None, class_="x", title='say "no"', hidden=True, id=None)
    assert built == ('<p class="x" title="say &quot;no&quot;" hidden>a &lt; b &amp; c<b>&lt;i&gt;</b></p>')
    assert isinstance(join("<", built), Markup)
    assert element("input", type="radio", aria_label="a") == '<input type="radio" aria-label="a">'


def test_data_cannot_leave_its_script_element() -> None:
    built = script_data("d", {"name": "</script><!--\u2028", "n": 1.5})
    assert built.count("<") == 2
    assert built.count(">") == 2
    assert "\u2028" not in built
    with pytest.raises(ValueError, match="Out of range float"):
        script_data("d", NAN)


def test_an_asset_that_would_end_early_is_refused() -> None:
    assert asset("style", "p { color: red }") == "<style>p { color: red }</style>"
    with pytest.raises(ValueError, match="contains </script"):
        asset("script", "x = '</SCRIPT>'")
