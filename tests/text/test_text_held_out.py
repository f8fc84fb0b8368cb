"""Which documents are held out: a fair share, by content alone; and which lines count as repeated."""

import pytest
from text_corpora import documents

from largebatch.text.documents import as_unit, documents_of
from largebatch.text.duplicates import without_repeated_lines
from largebatch.text.held_out import HeldOut
from largebatch.text.processes import WorkerPool

MADE = documents(4000)


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.999])
def test_the_share_is_the_fraction(fraction: float) -> None:
    share = sum(map(HeldOut.of_fraction(7, fraction).holds_out, MADE)) / len(MADE)
    assert abs(share - fraction) <= 4 * (fraction * (1 - fraction) / len(MADE)) ** 0.5


def test_the_choice_depends_on_content_and_seed_alone() -> None:
    chosen = [[HeldOut.of_fraction(seed, 0.3).holds_out(list(document)) for document in MADE] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    agree = sum(a == b for a, b in zip(chosen[0], chosen[2], strict=True)) / len(MADE)
    assert abs(agree - (0.3**2 + 0.7**2)) < 0.05  # two seeds choose independently


def test_where_a_line_ends_is_part_of_the_content() -> None:
    rule = HeldOut(0, 0)
    assert rule.hash(["a", "b"]) != rule.hash(["ab"]) != rule.hash(["a b"])
    assert 0 <= rule.hash([]) < 1 << 64
    assert HeldOut(2**64 - 1, 0).hash(["a"]) != rule.hash(["a"])


def test_the_lowest_hash_holds_out_its_document() -> None:
    rule = HeldOut.of_fraction(3, 0.0)
    lowest = min(map(rule.hash, MADE))
    assert [d for d in MADE if rule.with_lowest(lowest).holds_out(d)] == [min(MADE, key=rule.hash)]


@pytest.mark.parametrize("units", [1, 5])
def test_only_the_first_of_equal_lines_is_kept(units: int) -> None:
    made = [["One.", "Two.", "one ."], ["TWO."], ["Three.", "Ońe."], ["Three!"], ["One.", "Four."]]
    expected = [["One.", "Two."], ["Three."], ["Three!"], ["Four."]]
    size = len(made) // units
    pieces = [made[start : start + size] for start in range(0, len(made), size)]
    numbered = [(number, as_unit(piece, "made")) for number, piece in enumerate(pieces)]
    with WorkerPool(1) as pool:
        found = list(without_repeated_lines(numbered, pool, lowercase=True))
        cased = list(without_repeated_lines(numbered, pool, lowercase=False))
    assert [document for _, unit in found for document in documents_of(unit)] == expected
    assert sum(len(document) for _, unit in cased for document in documents_of(unit)) == 8
