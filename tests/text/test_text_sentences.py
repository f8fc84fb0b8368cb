"""Cutting text into sentences: a table of cases, and nothing is ever lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.text.sentences import SentenceMode, sentences, split_sentences

CASES = {
    "It rains. We stay.": ["It rains.", "We stay."],
    "Why? Because! Good… Yes.": ["Why?", "Because!", "Good…", "Yes."],
    "Dr. J. R. Smith of the U.S. Navy came. He left.": ["Dr. J. R. Smith of the U.S. Navy came.", "He left."],
    "See Fig. 3 and pp. 4 to 6. Then go.": ["See Fig. 3 and pp. 4 to 6.", "Then go."],
    "It cost 3.5 dollars. or more": ["It cost 3.5 dollars. or more"],
    '"Stop!" he said. "No." She ran.': ['"Stop!" he said.', '"No."', "She ran."],
    "(It was so.) [And more.] End": ["(It was so.)", "[And more.]", "End"],
    "Of No. 10 in St. John. No. Yes.": ["Of No. 10 in St. John.", "No.", "Yes."],
    "Wait... What?! Fine.": ["Wait...", "What?!", "Fine."],
    "今天好。明天呢？（是的！）完": ["今天好。", "明天呢？", "（是的！）", "完"],
    "e.g. this, i.e. That": ["e.g. this, i.e. That"],
    "no end": ["no end"],
    "  ": [],
    "": [],
}


@pytest.mark.parametrize("text", CASES)
def test_the_rule(text: str) -> None:
    assert split_sentences(text) == CASES[text]


@given(st.text(alphabet=st.sampled_from("aB1 .!?…。\"')(\n\t"), max_size=200))
def test_no_character_is_lost_and_none_is_moved(text: str) -> None:
    cut = split_sentences(text)
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() and sentence for sentence in cut)


HARD_WRAPPED = "A first line\nthat goes on. And\nends.\n\n  A second\r\nparagraph.\rOn\n"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("line", ["A first line", "that goes on. And", "ends.", "A second", "paragraph.", "On"]),
        ("split", ["A first line", "that goes on.", "And", "ends.", "A second", "paragraph.", "On"]),
        ("paragraph", ["A first line that goes on.", "And ends.", "A second paragraph.", "On"]),
    ],
)
def test_the_three_modes(mode: SentenceMode, expected: list[str]) -> None:
    assert sentences(HARD_WRAPPED, mode) == expected


def test_only_line_ends_end_a_line() -> None:
    odd = "one\x0btwo\x0cthree\x1cfour\x85five\u2028six"
    assert sentences(odd, "line") == [odd]


@pytest.mark.parametrize("text", ["." * 300_000 + "x", ".)" * 150_000, "a" * 300_000 + ". B", "A. b. " * 50_000])
def test_text_of_marks_takes_no_square_of_its_length(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())  # or it ends by the time limit
