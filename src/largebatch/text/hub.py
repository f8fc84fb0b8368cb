"""Hugging Face datasets: from the hub, from local files, or from a folder that one was saved to."""

import os
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.text.options import HUGGING_FACE


def dataset_name(source: str) -> str | None:
    """Return the name or the folder of the Hugging Face dataset that a source is; None if it is none."""
    if source.startswith(HUGGING_FACE) and not source.startswith("hf://"):
        return source.removeprefix(HUGGING_FACE)
    return source if is_saved_dataset(source) else None


def is_saved_dataset(source: str) -> bool:
    """Return whether a path is a folder that ``save_to_disk`` wrote."""
    folder = Path(source).expanduser()
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def open_dataset(name: str, config: str | None, split: str) -> Any:
    """Return a split of a dataset, to be streamed where it is not a saved folder.

    Raises:
        InputError: `datasets` is not installed, there is no such dataset, or it has no such split or configuration.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading a Hugging Face dataset needs datasets: install it with `pip install largebatch[train]`"
        ) from None
    path = os.path.expanduser(name)
    try:
        if not is_saved_dataset(name):
            local = path if os.path.exists(path) else name
            return datasets.load_dataset(local, config, split=split, streaming=True)
        dataset = datasets.load_from_disk(path)
    except Exception as error:  # of many libraries and of no common kind
        raise InputError(f"the dataset {name} cannot be opened: {one_line(error)}") from None
    splits = dataset if isinstance(dataset, datasets.DatasetDict) else {str(dataset.split or "train"): dataset}
    if split not in splits:
        raise InputError(f"the dataset {name} has no split {split!r}: it has {', '.join(map(str, splits))}")
    return splits[split]


def one_line(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
