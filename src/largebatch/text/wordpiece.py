"""WordPiece: a vocabulary trained to the same bytes every time, or one that is given.

Training is that of `tokenizers`. Its own alphabet comes out of a hash table: the numbers of the ``##`` forms,
and with them the order of equally frequent merges, differ from run to run. Here the alphabet is counted
first, sorted, and handed to the trainer as special tokens, which it numbers in the order given. Of the result
only the list of entries is kept; the tokenizer is built anew from it, so nothing but BERT's five tokens is
special when text is encoded.
"""

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from largebatch.errors import InputError
from largebatch.text.documents import Unit, documents_of
from largebatch.text.held_out import HeldOut
from largebatch.text.shards import SpecialIds
from largebatch.text.vocabulary import Survey, Vocabulary

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100
"""A longer word becomes [UNK], as in BERT."""
_ALPHABET = 1000
_LEAST_COUNT = 2  # of a pair that is merged


def survey(unit: Unit, held_out: HeldOut, lowercase: bool) -> Survey:
    """Return the training text of a unit and its characters, as the pre-tokeniser sees them.

    Words that are longer than any that is encoded are left out: the trainer's time grows with the square of a word.
    """
    documents = [document for document in documents_of(unit) if not held_out.holds_out(document)]
    text = "".join(f"{sentence}\n" for document in documents for sentence in document)
    tokenizer = _bare(lowercase)
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    characters: Counter[str] = Counter()
    inner: set[str] = set()
    # Space and line end separate words whatever else does, so each different piece needs one look only.
    too_long: dict[str, str] = {}
    for piece, count in Counter(text.replace("\n", " ").split(" ")).items():
        split = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(piece))
        words = [word for word, _ in split if len(word) <= LONGEST_WORD]
        if len(words) < len(split):
            too_long[piece] = " ".join(words)
        for word in words:
            for character in word:
                characters[character] += count
            inner.update(word[1:])
    if too_long:
        lines = (line.split(" ") for line in text.split("\n"))
        text = "\n".join(" ".join(too_long.get(piece, piece) for piece in line) for line in lines)
    return Survey(text.encode(), dict(characters), inner)


def train(text: Path, characters: dict[str, int], inner: set[str], vocabulary_size: int, lowercase: bool) -> Vocabulary:
    """Train WordPiece on a file of sentences.

    `characters` and `inner` sum up all surveys. At most 1,000 characters, the most frequent, enter the alphabet,
    and no more than half of the vocabulary.
    """
    most = min(_ALPHABET, (vocabulary_size - len(SPECIAL_TOKENS)) // 2)
    alphabet = sorted(sorted(characters, key=lambda character: (-characters[character], character))[:most])
    forms = [f"##{character}" for character in alphabet if character in inner]
    tokenizer = _bare(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_LEAST_COUNT,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *forms],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train([str(text)], trainer)
    return from_entries(_by_id(tokenizer), lowercase)


def from_entries(entries: list[str], lowercase: bool) -> Vocabulary:
    """Return BERT's tokenizer with this vocabulary."""
    tokenizer = _bare(lowercase, {entry: number for number, entry in enumerate(entries)})
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, entries.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    own = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    return Vocabulary(
        tokenizer_json=tokenizer.to_str(pretty=True),
        entries=entries,
        config={"tokenizer_class": "BertTokenizer", **own, **_token_names()},
        special_ids=_special_ids(entries),
    )


def load(path: Path, lowercase: bool) -> Vocabulary:
    """Read a vocab.txt, a tokenizer.json, or a folder that holds one of them; raises InputError."""
    if path.is_dir():
        names = [name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not names:
            raise InputError(f"the vocabulary folder {path} holds neither tokenizer.json nor vocab.txt")
        path /= names[0]
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the vocabulary {path} is not valid UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"the vocabulary {path} cannot be read: {error.strerror}") from None
    if path.suffix.lower() == ".json":
        return _from_json(text, path, lowercase)
    entries = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    _check(entries, path)
    _check_case(entries, path, lowercase)
    return from_entries(entries, lowercase)


def encoder(path: Path | str) -> Tokenizer:
    """Load tokenizer.json to encode plain text: text that spells a special token is text like any other."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _bare(lowercase: bool, vocabulary: dict[str, int] | None = None) -> Tokenizer:
    model = models.WordPiece(vocabulary or {}, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _from_json(text: str, path: Path, lowercase: bool) -> Vocabulary:
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises no narrower kind
        raise InputError(f"the vocabulary {path} is not a tokenizer.json: {str(error)[:200]}") from None
    if not lowercase and tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a":
        raise InputError(f"the vocabulary {path} makes letters small: leave lowercase at True")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"the vocabulary {path} leaves out ids or gives one twice: it has {len(ids)} entries")
    entries = _by_id(tokenizer)
    _check(entries, path)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return Vocabulary(
        tokenizer_json=tokenizer.to_str(pretty=True),
        entries=entries,
        config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **_token_names(),
        },
        special_ids=_special_ids(entries),
    )


def _special_ids(entries: list[str]) -> SpecialIds:
    pad, unk, cls, sep, mask = (entries.index(token) for token in SPECIAL_TOKENS)
    return SpecialIds(pad=pad, unk=unk, cls=cls, sep=sep, mask=mask)


def _by_id(tokenizer: Tokenizer) -> list[str]:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(ids, key=ids.__getitem__)


def _check(entries: list[str], path: Path) -> None:
    if len(set(entries)) != len(entries):
        twice = next(entry for entry, count in Counter(entries).items() if count > 1)
        raise InputError(f"the vocabulary {path} has the entry {twice!r} twice")
    missing = [token for token in SPECIAL_TOKENS if token not in entries]
    if missing:
        raise InputError(f"the vocabulary {path} has no {', '.join(missing)}: BERT needs {' '.join(SPECIAL_TOKENS)}")
    broken = [entry for entry in entries if not entry or "\n" in entry or "\r" in entry]
    if broken:
        raise InputError(f"the vocabulary {path} has the entry {broken[0]!r}, which a line of vocab.txt cannot hold")


def _check_case(entries: list[str], path: Path, lowercase: bool) -> None:
    """Refuse the two ways of reading a vocabulary that would give [UNK] for most words, or never use a tenth."""
    capitals = sum(entry != entry.lower() for entry in entries if entry[0] != "[")
    if lowercase and capitals > len(entries) / 10:
        raise InputError(f"the vocabulary {path} has entries in capitals: set lowercase to False to use them")
    if not lowercase and capitals == 0:
        raise InputError(f"the vocabulary {path} has no entry in capitals: leave lowercase at True")


def _token_names() -> dict[str, str]:
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return dict(zip(names, SPECIAL_TOKENS, strict=True))
