"""Byte-level BPE, as GPT-2 has it: trained, or read from a tokenizer.json.

The text of a document is its sentences with a space between them; the space belongs to the word that follows. There is
one special token, which stands between documents. Any text can be encoded, and comes back to the byte.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from largebatch.errors import InputError
from largebatch.text.documents import Unit, documents_of
from largebatch.text.held_out import HeldOut
from largebatch.text.shards import EndId
from largebatch.text.vocabulary import Survey, Vocabulary

END = "<|endoftext|>"
_LEAST_COUNT = 2  # of a pair that is merged
LONGEST_WORD = 1000
"""A longer word is encoded like any other, but no pairs are learned from it."""
# A run is tried from its first character only: a page without spaces must not cost its square.
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{LONGEST_WORD + 1},}}|(?<!\s)\s{{{LONGEST_WORD + 1},}}")


def survey(unit: Unit, held_out: HeldOut, lowercase: bool) -> Survey:
    """Return the training text of a unit, a sentence a line; `lowercase` is not for this tokenizer to know.

    Words that are very long are left out: the trainer's time grows with the square of a word.
    """
    del lowercase
    documents = [document for document in documents_of(unit) if not held_out.holds_out(document)]
    text = "".join(f"{sentence}\n" for document in documents for sentence in document)
    text = _LONG_RUN.sub(lambda run: _shorter_words(run[0]), text)
    return Survey(text.encode(), {" ": len(text)} if text else {}, set())


def _shorter_words(run: str) -> str:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    places = (place for _, place in splitter.pre_tokenize_str(run))
    return "".join(run[first:end] if end - first <= LONGEST_WORD else " " for first, end in places)


def train(text: Path, characters: dict[str, int], inner: set[str], vocabulary_size: int, lowercase: bool) -> Vocabulary:
    """Train on a file of sentences; of what a survey finds, nothing more is needed than the text."""
    del characters, inner, lowercase
    tokenizer = _bare()
    # Most words of a text have a space before them; so do the first ones of lines while pairs are counted.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_LEAST_COUNT,
        show_progress=False,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train([str(text)], trainer)
    return _vocabulary(json.loads(tokenizer.to_str())["model"])


def empty() -> Vocabulary:
    """Return a vocabulary of bytes."""
    alphabet = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return _vocabulary({"vocab": {token: number for number, token in enumerate(alphabet)}, "merges": []})


def load(path: Path) -> Vocabulary:
    """Read a tokenizer.json of byte-level BPE, or a folder that holds one; raises InputError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the vocabulary {file} cannot be read: {error.strerror}") from None
    except Exception as error:  # tokenizers raises no narrower kind
        raise InputError(f"the vocabulary {file} is not a tokenizer.json: {str(error)[:200]}") from None
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("type") != "BPE" or not set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"]):
        raise InputError(f"the vocabulary {file} is {model.get('type')}, a byte-level BPE is needed")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if END not in ids:
        raise InputError(f"the vocabulary {file} has no {END}, which stands between documents")
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"the vocabulary {file} leaves out ids or gives one twice: it has {len(ids)} entries")
    model["vocab"] = ids
    return _vocabulary(model)


def _bare() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _vocabulary(model: dict[str, Any]) -> Vocabulary:
    """Build the tokenizer anew from its entries and merges."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merges = [(str(left), str(right)) for left, right in pairs]
    tokenizer = _bare()
    tokenizer.model = models.BPE(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens([END])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return Vocabulary(
        tokenizer_json=tokenizer.to_str(pretty=True),
        entries=sorted(ids, key=ids.__getitem__),
        config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END),
        },
        special_ids=EndId(end=ids[END]),
    )
