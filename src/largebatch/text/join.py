"""Corpora that were prepared apart, on several machines, become one: shards are linked, not made again.

Each machine prepares its share of the input with the same given vocabulary, without knowing of the others:

    machine i    largebatch prepare --source 'dump/part-i*.jsonl.zst' --vocabulary vocab.txt --out parts/i
    anywhere     largebatch join parts/0 parts/1 parts/2 --out corpora/all

Which document is held out depends on its text and the seed alone, so that equal documents of two parts stand on the
same side. The documents of the whole are those of the parts, in the order in which these are given.
"""

import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from largebatch.errors import InputError
from largebatch.text.partial import rename_whole, writing
from largebatch.text.shards import (
    MANIFEST,
    SHARD_FILE,
    TOKEN_COUNTS,
    PreparedCorpus,
    file_record,
    read_manifest,
    special_ids,
    write_manifest,
)

_TOKENIZER = "tokenizer.json"
_OF_THE_VOCABULARY = {"vocabulary", "vocabulary_size", "vocabulary_megabytes", "lowercase"}
"""Options that say where the vocabulary came from and how it writes text; the tokenizers themselves are compared."""


def join(parts: Sequence[Path | str], out: Path | str) -> PreparedCorpus:
    """Join prepared corpora in the folder `out` and open it; the parts may be removed afterwards.

    A folder that already holds the same parts is opened as it is. The files are hard links where the file system has
    them, else copies; each is compared with its checksum. Joining is done in `out.partial`, which is renamed.

    Raises:
        InputError: fewer than two parts, one that is damaged, given twice or prepared with other options than the
            first, or a place that holds other files or cannot be written to.
    """
    folders = [Path(part).resolve() for part in parts]
    out = Path(out).resolve()
    if len(folders) < 2:
        raise InputError(f"join takes two corpora or more, {len(folders)} was given")
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"the corpus {twice} is given twice: its documents would stand in the whole twice")
    corpora = [PreparedCorpus.open(folder) for folder in folders]
    for corpus in corpora[1:]:
        _check_alike(corpora[0], corpus)
    for one, other in combinations(corpora, 2):
        if _documents_of(one) == _documents_of(other):
            raise InputError(f"{other.folder} holds the documents of {one.folder}: they would stand in the whole twice")
    found = [_described(corpus) for corpus in corpora]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (out / MANIFEST).is_file() and read_manifest(out).get("parts") == found:
            return PreparedCorpus.open(out)
        raise InputError(f"{out} holds other files: choose a new or an empty folder")
    aside = out.with_name(out.name + ".partial")
    if aside.exists() and not (aside / ".joining").is_file():
        raise InputError(f"{aside}, where the corpus is to grow, holds other files: remove it first")
    with writing(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        (aside / ".joining").touch()
        try:
            _fill(aside, corpora)
        except InputError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        first = corpora[0]
        write_manifest(
            aside,
            vocabulary_size=first.vocabulary_size,
            special_ids=special_ids(first.manifest),
            source=" ".join(str(corpus.manifest.get("source", "")) for corpus in corpora),
            options=first.manifest.get("options", {}),
            facts={"parts": found, "tokenizers": version("tokenizers")},
        )
        (aside / ".joining").unlink()
        rename_whole(aside, out)
    return PreparedCorpus.open(out)


def _fill(folder: Path, corpora: Sequence[PreparedCorpus]) -> None:
    """Link the tokenizer of the first corpus and the shards of all, numbered on."""
    number = 0
    for place, corpus in enumerate(corpora):
        last = -1
        for name in corpus.manifest["files"]:
            shard = SHARD_FILE.fullmatch(name)
            if shard is not None:
                own = int(shard["number"])
                last = max(last, own)
                _take(corpus, name, folder / f"{shard['split']}-{number + own:05d}.{shard['array']}.npy")
            elif place == 0 and name != TOKEN_COUNTS:
                _take(corpus, name, folder / name)
        number += last + 1


def _take(corpus: PreparedCorpus, name: str, to: Path) -> None:
    """Link or copy a file of a corpus, and compare it with its checksum."""
    source = corpus.folder / name
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, to)
        with to.open("rb+") as file:
            os.fsync(file.fileno())
    if file_record(to) != corpus.manifest["files"][name]:
        raise InputError(f"{source} differs from its checksum in the manifest: prepare {corpus.folder} again")


def _described(corpus: PreparedCorpus) -> dict[str, Any]:
    """Return what a part is known by."""
    manifest = corpus.manifest
    return {"source": manifest.get("source"), "input": manifest.get("input"), "counts": manifest["counts"]}


def _documents_of(corpus: PreparedCorpus) -> dict[str, Any]:
    """Return the checksums of a corpus's shards."""
    return {name: file for name, file in corpus.manifest["files"].items() if SHARD_FILE.fullmatch(name)}


def _check_alike(first: PreparedCorpus, other: PreparedCorpus) -> None:
    """Raise InputError unless two corpora may be parts of one."""
    ours, theirs = first.manifest, other.manifest
    if ours["files"].get(_TOKENIZER) != theirs["files"].get(_TOKENIZER):
        raise InputError(
            f"{other.folder} has another vocabulary than {first.folder}: prepare all parts with the same --vocabulary"
        )
    options, others = (dict(manifest.get("options", {})) for manifest in (ours, theirs))
    for name in sorted((options.keys() | others.keys()) - _OF_THE_VOCABULARY):
        if json.dumps(options.get(name)) != json.dumps(others.get(name)):
            raise InputError(
                f"{other.folder} was prepared with {name} {others.get(name)}, {first.folder} with {options.get(name)}: "
                "parts of one corpus are prepared alike"
            )
    if options.get("deduplicate_lines") is True:
        raise InputError("the parts were prepared with deduplicate_lines, which cannot see the lines of other parts")
