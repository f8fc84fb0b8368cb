"""WordPiece: trained to the same entries every time, special in five tokens only, and readable elsewhere."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from text_corpora import as_text, documents
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from largebatch.errors import InputError
from largebatch.text import wordpiece
from largebatch.text.documents import as_unit
from largebatch.text.held_out import HeldOut
from largebatch.text.wordpiece import SPECIAL_TOKENS, Vocabulary

EVERYTHING = HeldOut(0, 0)
MADE = documents(150)
LINES = [line for document in MADE for line in document]
STRANGE = [
    "Ünïcode ÀÉ",
    "中文字 and more",
    "don't stop-me_now",
    "## [MASK] [SEP] [nothing]",
    "x" * 101,
    "\u200b \x01",
    "",
]


def train(folder: Path, *, size: int = 400, lowercase: bool = True, made: list[list[str]] = MADE) -> Vocabulary:
    """Train on documents as `prepare` does."""
    found = wordpiece.survey(as_unit(made, "made"), EVERYTHING, lowercase)
    (folder / "text").write_bytes(found.text)
    return wordpiece.train(folder / "text", found.characters, found.inner, size, lowercase)


def plain(entries: list[str], lowercase: bool = True) -> Tokenizer:
    """Return WordPiece with a vocabulary and nothing special at all."""
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def ordinary_training(text: Path, size: int) -> list[str]:
    """Train as `tokenizers` does by itself."""
    tokenizer = plain([])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train([str(text)], trainer)
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


def test_a_word_too_long_to_be_encoded_teaches_nothing(tmp_path: Path) -> None:
    long = "qwqwqwqw" * (wordpiece.LONGEST_WORD // 8) + "qwqwq"
    assert len(long) > wordpiece.LONGEST_WORD
    beside = [["so", f"Eat{long}\tmore,bread", f"{long[:4]},{long}"]]
    without = [["so", "more,bread", f"{long[:4]},"]]
    found = [wordpiece.survey(as_unit(part, "made"), EVERYTHING, True) for part in (beside, without)]
    assert (found[0].characters, found[0].inner) == (found[1].characters, found[1].inner)
    assert train(tmp_path, made=MADE + beside).entries == train(tmp_path, made=MADE + without).entries
    shorter = [[line.replace(long, long[: wordpiece.LONGEST_WORD]) for line in beside[0]]]
    assert train(tmp_path, made=MADE + shorter).entries != train(tmp_path, made=MADE + without).entries


def test_training_gives_the_same_entries_where_the_librarys_own_does_not(tmp_path: Path) -> None:
    ours = [train(tmp_path).entries for _ in range(4)]
    assert all(entries == ours[0] for entries in ours)
    theirs = [ordinary_training(tmp_path / "text", 400) for _ in range(4)]
    assert any(entries != theirs[0] for entries in theirs)
    assert len(ours[0]) == len(set(ours[0])) == 400
    assert ours[0][:5] == list(SPECIAL_TOKENS)


def test_training_finds_what_the_librarys_own_finds(tmp_path: Path) -> None:
    ours = set(train(tmp_path, size=300).entries)
    theirs = set(ordinary_training(tmp_path / "text", 300))
    assert len(ours & theirs) > 0.97 * len(ours)  # not all: ties between equally frequent pairs


def test_a_survey_counts_what_the_pre_tokeniser_sees() -> None:
    made = [*MADE[:40], STRANGE]
    found = wordpiece.survey(as_unit(made, "made"), EVERYTHING, True)
    characters: Counter[str] = Counter()
    inner: set[str] = set()
    tokenizer = plain([])
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    for line in (line for document in made for line in document):
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(line)):
            if len(word) <= wordpiece.LONGEST_WORD:
                characters.update(word)
                inner.update(word[1:])
    assert (found.characters, found.inner) == (dict(characters), inner)


def test_a_survey_leaves_out_what_is_held_out() -> None:
    rule = HeldOut.of_fraction(1, 0.3)
    found = wordpiece.survey(as_unit(MADE, "made"), rule, True)
    kept = [document for document in MADE if not rule.holds_out(document)]
    assert 0 < len(kept) < len(MADE)
    assert found.text.decode().split("\n")[:-1] == [line for document in kept for line in document]


def test_encoding_is_that_of_a_plain_wordpiece(tmp_path: Path) -> None:
    vocabulary = train(tmp_path)
    vocabulary.save(tmp_path)
    ours, expected = wordpiece.encoder(tmp_path / "tokenizer.json"), plain(vocabulary.entries)
    for line in [*LINES, *STRANGE]:
        assert ours.encode(line, add_special_tokens=False).ids == expected.encode(line).ids


def test_the_tokenizer_that_was_trained_would_split_words_into_letters(tmp_path: Path) -> None:
    entries = train(tmp_path).entries
    spoiled = plain(entries)
    spoiled.add_special_tokens([entry for entry in entries if len(entry) == 1])
    assert spoiled.encode(LINES[0]).ids != plain(entries).encode(LINES[0]).ids


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_loads_the_folder_and_gives_the_same_ids(tmp_path: Path, lowercase: bool) -> None:
    from transformers import AutoTokenizer

    vocabulary = train(tmp_path, lowercase=lowercase)
    vocabulary.save(tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    for line in [*LINES[:200], *STRANGE]:
        assert theirs(line)["input_ids"] == ours.encode(line).ids
    pair = theirs("one", "two three")
    assert pair["input_ids"] == ours.encode("one", "two three").ids
    assert pair["token_type_ids"] == ours.encode("one", "two three").type_ids
    named = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    assert named == (0, 1, 2, 3, 4) == tuple(vars(vocabulary.special_ids).values())
    assert set(theirs.all_special_tokens) == set(SPECIAL_TOKENS)
    assert len(theirs) == len(vocabulary.entries)
    assert theirs.decode(ours.encode("ba ce").ids, skip_special_tokens=True) == "ba ce"
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == vocabulary.entries


def test_case_is_kept_where_it_was_asked_for(tmp_path: Path) -> None:
    entries = train(tmp_path, lowercase=False).entries
    assert any(entry != entry.lower() for entry in entries if entry not in SPECIAL_TOKENS)
    assert all(entry == entry.lower() for entry in train(tmp_path).entries if entry not in SPECIAL_TOKENS)


def test_only_the_most_frequent_characters_enter_a_small_vocabulary(tmp_path: Path) -> None:
    rare = "".join(map(chr, range(0x4E00, 0x4E80)))
    vocabulary = train(tmp_path, size=100, made=[*MADE, list(rare)])
    single = [entry for entry in vocabulary.entries if len(entry) == 1]
    assert len(single) == (100 - 5) // 2
    assert set("aeiou") <= set(single)  # frequent in the text; of the 128 that occur once only some fit in
    assert len(vocabulary.entries) <= 100


def test_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    vocabulary = train(tmp_path)
    vocabulary.save(tmp_path)
    special = {number for name, number in vars(vocabulary.special_ids).items() if name != "unk"}
    ids = wordpiece.encoder(tmp_path / "tokenizer.json").encode("a [MASK] b [SEP]", add_special_tokens=False).ids
    assert special.isdisjoint(ids)
    ordinary = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert not special.isdisjoint(ordinary.encode("a [MASK] b [SEP]", add_special_tokens=False).ids)


def test_a_given_vocabulary_is_used_as_it_is(tmp_path: Path) -> None:
    entries = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "c"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(entries).encode())
    vocabulary = wordpiece.load(tmp_path / "vocab.txt", True)
    assert vocabulary.entries == entries
    assert wordpiece.load(tmp_path, True) == vocabulary  # the folder will do
    assert vars(vocabulary.special_ids) == {"pad": 0, "unk": 2, "cls": 3, "sep": 4, "mask": 5}


def test_a_given_tokenizer_json_keeps_its_own_rules(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    entries = train(tmp_path).entries
    given = plain(entries)
    given.normalizer = normalizers.Lowercase()  # accents stay, unlike BERT's
    given.enable_truncation(3)
    given.enable_padding(length=9)
    given.save(str(tmp_path / "given.json"))
    vocabulary = wordpiece.load(tmp_path / "given.json", lowercase=True)
    assert vocabulary.entries == entries
    vocabulary.save(tmp_path)
    ours = wordpiece.encoder(tmp_path / "tokenizer.json")
    theirs: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    given.no_truncation()
    given.no_padding()
    for line in LINES[:50]:
        assert ours.encode(line).ids == given.encode(line).ids
        assert theirs(line, add_special_tokens=False)["input_ids"] == given.encode(line).ids
    assert theirs.mask_token_id == 4


def test_letters_stay_as_they_are_where_the_tokenizer_json_leaves_them(tmp_path: Path) -> None:
    plain([*GOOD, "A"], lowercase=False).save(str(tmp_path / "given.json"))
    for lowercase in (True, False):
        wordpiece.load(tmp_path / "given.json", lowercase).save(tmp_path)
        assert wordpiece.encoder(tmp_path / "tokenizer.json").encode("A a").tokens == ["A", "a"]


GOOD = [*SPECIAL_TOKENS, "a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "lowercase", "message"),
    [
        ("v.txt", "\n".join(GOOD[:4] + GOOD[5:]), True, r"has no \[MASK\]: BERT needs \[PAD\] \[UNK\]"),
        ("v.txt", "a\nb\n", True, r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ("v.txt", "\n".join([*GOOD, "a"]), True, "has the entry 'a' twice"),
        ("v.txt", "\n".join([*GOOD, "", "c"]), True, "has the entry '', which a line"),
        ("v.txt", "", True, r"has no \[PAD\]"),
        ("v.txt", "\n".join([*GOOD, "Word", "Other"]), True, "set lowercase to False"),
        ("v.txt", "\n".join(GOOD), False, "leave lowercase at True"),
        ("v.txt", b"\xff", True, "not valid UTF-8 at byte 0"),
        ("v.json", "{", True, "is not a tokenizer.json"),
        ("v.json", "{}", True, "is not a tokenizer.json"),
        ("v.json", "no special tokens", True, r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ("v.json", "a gap", True, "leaves out ids"),
        ("v.json", "small letters", False, "makes letters small: leave lowercase at True"),
        ("missing.txt", None, True, "cannot be read: No such file"),
        (".", None, True, r"holds neither tokenizer\.json nor vocab\.txt"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | bytes | None, lowercase: bool, message: str
) -> None:
    if content == "no special tokens":
        content = plain(["[UNK]", "a"]).to_str().replace("[UNK]", "<unk>")
    elif content == "small letters":
        content = plain(GOOD).to_str()
    elif content == "a gap":
        made = json.loads(plain(GOOD).to_str())
        made["model"]["vocab"]["z"] = 99
        content = json.dumps(made)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        wordpiece.load(tmp_path / name, lowercase)
    assert "\n" not in str(caught.value)


def test_the_text_of_the_tests_has_what_they_need() -> None:
    assert "é" in as_text(MADE)
    assert any(line != line.lower() for line in LINES)
