"""The tokenizer of a Hugging Face folder, as the fast one of `tokenizers`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(folder: Path) -> "Tokenizer":
    """Return the tokenizer of a folder, without truncation and padding.

    Raises:
        InputError: the folder has none that is fast.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{folder} has no tokenizer: no tokenizer.json and no vocab.txt")
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = loaded.backend_tokenizer
    except Exception as error:  # of two libraries and of no common kind
        raise InputError(f"the tokenizer of {folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
