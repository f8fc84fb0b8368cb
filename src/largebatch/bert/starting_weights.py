"""What can be known of a Hugging Face folder of weights before they are loaded: sizes and vocabulary."""

import json
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.text.shards import PreparedCorpus

SIZES = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
}
"""Names of the sizes here and in Hugging Face's configuration."""


def sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the BERT in a folder, under the names that the pre-training task gives them.

    Raises:
        InputError: if the folder, or a BERT configuration in it, is missing.
    """
    config = configuration(folder)
    return {name: config[theirs] for name, theirs in SIZES.items()}


def configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration of the BERT in a folder; raises InputError if it has none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder} is not a folder with a Hugging Face model: no {path.name}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise InputError(f"{folder} holds a model of type {kind!r}, allowed is 'bert'")
    if config.get("type_vocab_size", 2) != 2:
        raise InputError(f"{path} has type_vocab_size {config['type_vocab_size']}, allowed is 2")
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise InputError(f"{path} has position_embedding_type {positions!r}, allowed is 'absolute'")
    lacking = [theirs for theirs in (*SIZES.values(), "vocab_size") if not isinstance(config.get(theirs), int)]
    if lacking:
        raise InputError(f"{path} does not give {', '.join(lacking)} as a whole number")
    return config


def check_vocabulary(folder: Path, corpus: PreparedCorpus) -> None:
    """Raise InputError unless a token has the same number in the folder's model and in the corpus.

    A folder without ``tokenizer.json`` and ``vocab.txt`` is compared by the size of its vocabulary alone.
    """
    size = configuration(folder)["vocab_size"]
    if size != corpus.vocabulary_size:
        raise InputError(
            f"{folder} has a vocabulary of {size} tokens and the corpus {corpus.folder} one of "
            f"{corpus.vocabulary_size}: prepare the corpus with the model's own vocabulary"
        )
    theirs = _vocabulary(folder)
    if theirs is None:
        return
    for token, number in corpus.tokenizer().get_vocab().items():
        if theirs.get(token) != number:
            raise InputError(
                f"{folder} and the corpus {corpus.folder} number their tokens differently, {token!r} for "
                "one: prepare the corpus with the model's own vocabulary"
            )


def _vocabulary(folder: Path) -> dict[str, int] | None:
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    if (folder / "vocab.txt").is_file():
        text = (folder / "vocab.txt").read_text(encoding="utf-8")
        return {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))}
    return None
