"""Masking: rates within binomial spread, whole words, and independence of everything but the sample."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from largebatch import counter_random
from largebatch.bert import masking as module
from largebatch.bert.masking import IGNORED, Masking

VOCABULARY = 500
MASK = 4
LENGTH = 64
RULE = Masking(mask_id=MASK, vocabulary_size=VOCABULARY, max_predictions=20)
CONTINUATIONS = np.arange(VOCABULARY) % 3 == 0
WORDS = replace(RULE, continuations=CONTINUATIONS)

Result = tuple[np.ndarray, np.ndarray, np.ndarray]
Applied = Callable[[np.ndarray, np.ndarray, np.ndarray], Result]


def sequences(rows: int, length: int = LENGTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens with [CLS] and two [SEP], the candidates and a key for each row, of varying length."""
    generator = np.random.default_rng(seed)
    tokens = np.zeros((rows, length), np.int64)
    candidates = np.zeros((rows, length), bool)
    for row in range(rows):
        a, b = generator.integers(1, 31, 2)
        tokens[row, : a + b + 3] = generator.integers(5, VOCABULARY, a + b + 3)
        tokens[row, [0, a + 1, a + b + 2]] = [2, 3, 3]
        candidates[row, 1 : a + b + 2] = True
        candidates[row, a + 1] = False
    return tokens, candidates, counter_random.keys(counter_random.key(seed), np.arange(rows))


def used(result: Result) -> np.ndarray:
    return result[2] != IGNORED


def check_choice(rule: Masking, result: Result, tokens: np.ndarray, candidates: np.ndarray) -> None:
    """Assert what must hold of every row, without exception."""
    seen, positions, labels = result
    assert positions.shape == labels.shape
    assert positions.shape[1] == rule.predictions(np.array(tokens.shape[1]))
    for row in range(len(tokens)):
        chosen = positions[row][labels[row] != IGNORED]
        available = int(candidates[row].sum())
        wanted = min(rule.max_predictions, max(1, round(rule.fraction * available)))
        if rule.continuations is None:
            assert len(chosen) == wanted
        assert 1 <= len(chosen) <= wanted
        assert (np.diff(chosen) > 0).all()
        assert candidates[row, chosen].all()
        assert (tokens[row, chosen] == labels[row, : len(chosen)]).all()  # used slots come first
        assert (positions[row, len(chosen) :] == 0).all()
        others = np.setdiff1d(np.arange(tokens.shape[1]), chosen)
        assert (seen[row, others] == tokens[row, others]).all()


def check_rates(result: Result) -> None:
    """Assert 80/10/10 within five standard errors, and random tokens uniform over the vocabulary."""
    seen, positions, _ = result
    rows, columns = np.nonzero(used(result))
    shown, was = seen[rows, positions[rows, columns]], result[2][rows, columns]
    count = len(was)
    masked, kept = (shown == MASK).mean(), (shown == was).mean()
    # A random token is [MASK], or the token itself, once in so many.
    for rate, expected in ((masked, 0.8 + 0.1 / VOCABULARY), (kept, 0.1 + 0.1 / VOCABULARY)):
        assert abs(rate - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
    random = shown[(shown != MASK) & (shown != was)]
    halves = np.bincount(random * 4 // VOCABULARY, minlength=4)
    assert np.abs(halves - len(random) / 4).max() < 5 * np.sqrt(len(random) * 3 / 16)
    assert random.min() < 20
    assert random.max() >= VOCABULARY - 20


@pytest.mark.parametrize("rule", [RULE, WORDS, replace(RULE, max_predictions=3), replace(RULE, fraction=0.5)])
def test_choice_and_limits(rule: Masking) -> None:
    tokens, candidates, keys = sequences(400)
    before = tokens.copy()
    result = rule.apply(tokens, candidates, keys)
    check_choice(rule, result, tokens, candidates)
    np.testing.assert_array_equal(tokens, before)


def test_wrong_choices_are_caught() -> None:
    tokens, candidates, keys = sequences(400)

    def shifted(result: Result) -> Result:
        return result[0], result[1] + used(result), result[2]

    def replaced_elsewhere(result: Result) -> Result:
        return np.where(candidates, MASK, result[0]), result[1], result[2]

    special_too = np.ones_like(candidates)
    good = RULE.apply(tokens, candidates, keys)
    wrong = [
        RULE.apply(tokens, special_too, keys),
        replace(RULE, fraction=0.2).apply(tokens, candidates, keys),
        shifted(good),
        replaced_elsewhere(good),
    ]
    for result in wrong:
        with pytest.raises(AssertionError):
            check_choice(RULE, result, tokens, candidates)


@pytest.mark.parametrize("rule", [RULE, WORDS])
def test_rates(rule: Masking) -> None:
    check_rates(rule.apply(*sequences(4000)))


@pytest.mark.parametrize(("masked", "masked_or_random"), [(1.0, 1.0), (0.8, 1.0), (0.8, 0.85), (0.75, 0.9)])
def test_wrong_rates_are_caught(masked: float, masked_or_random: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MASKED", masked)
    monkeypatch.setattr(module, "_MASKED_OR_RANDOM", masked_or_random)
    with pytest.raises(AssertionError):
        check_rates(RULE.apply(*sequences(4000)))


def test_every_position_is_equally_likely() -> None:
    rows = 4000
    tokens = np.tile(np.arange(10, 10 + LENGTH), (rows, 1))
    candidates = np.ones_like(tokens, dtype=bool)
    _, positions, labels = RULE.apply(tokens, candidates, counter_random.keys(7, np.arange(rows)))
    share = round(0.15 * LENGTH) / LENGTH
    counts = np.bincount(positions[labels != IGNORED], minlength=LENGTH)
    spread = 5 * np.sqrt(rows * share * (1 - share))
    assert np.abs(counts - rows * share).max() < spread
    first_ones = np.where(np.arange(LENGTH) < share * LENGTH, rows, 0)  # as if the head of a sequence were masked
    assert np.abs(first_ones - rows * share).max() > spread


def independent_of_the_batch(applied: Applied) -> None:
    """Assert that a row is masked alike in another order, alone, among fewer rows, and under more padding."""
    tokens, candidates, keys = sequences(60)
    whole = applied(tokens, candidates, keys)
    order = np.random.default_rng(1).permutation(60)
    reordered = applied(tokens[order], candidates[order], keys[order])
    few = applied(tokens[10:13], candidates[10:13], keys[10:13])
    wide = [np.pad(array, ((0, 0), (0, 37))) for array in (tokens, candidates)]
    padded = applied(wide[0], wide[1], keys)
    slots = whole[1].shape[1]
    for ours, theirs in zip(whole, reordered, strict=True):
        np.testing.assert_array_equal(ours[order], theirs)
    for ours, theirs in zip(whole, few, strict=True):
        np.testing.assert_array_equal(ours[10:13], theirs)
    np.testing.assert_array_equal(padded[0][:, :LENGTH], whole[0])
    np.testing.assert_array_equal(padded[1][:, :slots], whole[1])
    np.testing.assert_array_equal(padded[2][:, :slots], whole[2])
    assert (padded[2][:, slots:] == IGNORED).all()


@pytest.mark.parametrize("rule", [RULE, WORDS])
def test_a_sample_is_masked_alike_in_any_batch(rule: Masking) -> None:
    independent_of_the_batch(rule.apply)


def test_dependence_on_the_batch_is_caught() -> None:
    generator = np.random.default_rng(0)

    def global_generator(tokens: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> Result:
        return RULE.apply(tokens, candidates, generator.integers(0, 1 << 62, len(keys)).astype(np.uint64))

    def by_row(tokens: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> Result:
        return RULE.apply(tokens, candidates, counter_random.keys(1, np.arange(len(keys))))

    def by_length(tokens: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> Result:
        return RULE.apply(tokens, candidates, keys + np.uint64(tokens.shape[1]))

    for wrong in (global_generator, by_row, by_length):
        with pytest.raises(AssertionError):
            independent_of_the_batch(wrong)


def test_other_keys_give_other_masks() -> None:
    tokens, candidates, keys = sequences(50)
    one, two = (RULE.apply(tokens, candidates, k)[1] for k in (keys, keys + np.uint64(1)))
    assert (one != two).any(axis=1).mean() > 0.9


def words_of(tokens: np.ndarray, candidates: np.ndarray) -> list[list[int]]:
    """Return the words of one row as lists of positions, one piece at a time."""
    words: list[list[int]] = []
    for position in np.flatnonzero(candidates).tolist():
        if CONTINUATIONS[tokens[position]] and candidates[position - 1]:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def check_whole_words(result: Result, tokens: np.ndarray, candidates: np.ndarray) -> None:
    """Assert that words are taken whole, that room is left only where no other word fits, and ties to the limit."""
    _, positions, labels = result
    for row in range(len(tokens)):
        chosen = set(positions[row][labels[row] != IGNORED].tolist())
        words = words_of(tokens[row], candidates[row])
        wanted = int(RULE.predictions(candidates[row].sum()))
        if all(len(word) > wanted for word in words):
            assert len(chosen) == wanted
            assert any(chosen == set(word[:wanted]) for word in words)
            continue
        taken = [word for word in words if chosen & set(word)]
        assert chosen == {position for word in taken for position in word}
        left = [len(word) for word in words if not chosen & set(word)]
        assert all(len(chosen) + size > wanted for size in left)


def test_whole_words() -> None:
    tokens, candidates, keys = sequences(600)
    result = WORDS.apply(tokens, candidates, keys)
    check_whole_words(result, tokens, candidates)
    with pytest.raises(AssertionError):
        check_whole_words(RULE.apply(tokens, candidates, keys), tokens, candidates)
    mixed_up = replace(RULE, continuations=~CONTINUATIONS).apply(tokens, candidates, keys)
    with pytest.raises(AssertionError):
        check_whole_words(mixed_up, tokens, candidates)


def test_whole_words_are_the_same_as_pieces_without_continuations() -> None:
    arguments = sequences(100)
    none = replace(RULE, continuations=np.zeros(VOCABULARY, bool))
    for ours, theirs in zip(none.apply(*arguments), RULE.apply(*arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_first_pieces_stand_in_where_no_word_fits() -> None:
    tokens = np.array([[2, 10, 30, 33, 3, 11, 36, 39, 3]])  # 30, 33, 36 and 39 go on with the word before
    candidates = np.array([[False, True, True, True, False, True, True, True, False]])
    firsts = set()
    for number in range(40):
        _, positions, labels = WORDS.apply(tokens, candidates, counter_random.keys(number, [0]))
        chosen = positions[labels != IGNORED].tolist()
        assert chosen in ([1], [5])
        firsts.update(chosen)
    assert firsts == {1, 5}


def test_a_continuation_at_the_head_of_a_part_begins_a_word() -> None:
    rule = replace(WORDS, fraction=0.5)  # 1 of 2
    tokens, candidates = np.array([[2, 10, 3, 30, 3]]), np.array([[0, 1, 0, 1, 0]], bool)
    chosen = set()
    for number in range(40):
        _, positions, labels = rule.apply(tokens, candidates, counter_random.keys(number, [0]))
        chosen.update(positions[labels != IGNORED].tolist())
    assert chosen == {1, 3}  # as one word, the two would not fit, and 1 would always stand in


@pytest.mark.parametrize(("tokens", "expected"), [(2, 1), (3, 1), (10, 2), (17, 3), (100, 15), (134, 20), (509, 20)])
def test_number_of_predictions(tokens: int, expected: int) -> None:
    assert RULE.predictions(np.array(tokens)) == expected
