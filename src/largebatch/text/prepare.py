"""From a source to a prepared corpus: read, choose the held-out part, train or load WordPiece, encode, publish.

One process reads and cuts the text into units of half a megabyte or more; a pool of workers decodes and encodes
them; the results, in the order of reading, become shards of about 64 MB of text. What a shard holds depends on
the input and the options only: not on the number of workers, on timing, or on how often the run was interrupted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from largebatch.errors import InputError
from largebatch.text import byte_pairs, wordpiece
from largebatch.text.corpus import Source, open_source
from largebatch.text.documents import Unit, digest, unit_bytes
from largebatch.text.duplicates import without_repeated_lines
from largebatch.text.encoding import EncodedUnit, encode_unit
from largebatch.text.held_out import HeldOut
from largebatch.text.options import PYDOCS, PrepareOptions
from largebatch.text.partial import Partial, ShardRecord, Stale, writing
from largebatch.text.processes import WorkerPool, usable_cores
from largebatch.text.shards import MANIFEST, PreparedCorpus, read_manifest
from largebatch.text.vocabulary import Vocabulary

SHARD_BYTES = 1 << 26
_UNITS_PER_SHARD = 128


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a preparation has come."""

    phase: Literal["reused", "vocabulary", "encoding"]
    """reused: the folder was complete already; vocabulary: reading for WordPiece; encoding: making shards."""
    read_bytes: int = 0
    """Bytes of the source read in this phase: as stored where it is files, otherwise of text."""
    total_bytes: int | None = None
    """Bytes there are to read, None where nobody knows."""


class _Place(NamedTuple):
    """Where a unit belongs."""

    shard: int
    digest: str
    read_bytes: int


def prepare(
    options: PrepareOptions,
    out: Path | str,
    *,
    progress: Callable[[Progress], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> PreparedCorpus:
    """Prepare a corpus in the folder `out` and open it.

    A folder that already holds the same source prepared with the same options is opened as it is (`progress` is
    told so); any other folder that is not empty is refused. The corpus grows in `out.partial`; a run that was
    killed goes on from its last finished shard. `shard_bytes` is the raw text that goes into a shard.

    Raises InputError, in one sentence, for whatever is wrong with the source, the vocabulary, the options or the
    place to write to.
    """
    out = Path(out).resolve()
    report = progress or (lambda _: None)
    source = open_source(options)
    path = Path(options.vocabulary).expanduser() if options.vocabulary else None
    given = _load(path, options) if path else None
    asked = _asked(options, path, given, shard_bytes)
    if (corpus := _existing(out, options.source, asked, source)) is not None:
        report(Progress(phase="reused"))
        return corpus
    with Partial(out) as partial, WorkerPool(options.workers or usable_cores()) as pool:
        work = _Preparation(options, asked, source, partial, pool, report, shard_bytes, given)
        work.run()
    return PreparedCorpus.open(out)


@dataclass
class _Preparation:
    """One run, and what its steps share."""

    options: PrepareOptions
    asked: dict[str, Any]
    source: Source
    partial: Partial
    pool: WorkerPool
    report: Callable[[Progress], None]
    shard_bytes: int
    given: Vocabulary | None

    def run(self) -> None:
        """Do everything; where no document was held out, do it again with the rule that holds out one."""
        held_out = HeldOut.of_fraction(self.options.seed, self.options.held_out_fraction)
        vocabulary, records = self._attempt(held_out)
        documents = sum(record.documents for record in records)
        if documents == 0:
            raise self._refusal("holds no text")
        if held_out.threshold and not any(record.held_out_documents for record in records):
            if documents == 1:
                raise self._refusal(
                    "is one document, of which no part can be held out: separate documents, by blank lines for "
                    "example, or set held_out_fraction to 0"
                )
            lowest = min(record.lowest_hash for record in records)
            vocabulary, records = self._attempt(held_out.with_lowest(lowest))
        if not any(record.train_documents for record in records):
            raise self._refusal(
                f"has {documents} documents, none of which is left for training: choose a smaller held_out_fraction "
                "or add text"
            )
        self.partial.publish(
            {name for record in records for name in record.files},
            vocabulary_size=len(vocabulary.entries),
            special_ids=vocabulary.special_ids,
            source=self.options.source,
            options=self.asked,
            facts={
                "input": self.source.identity(),
                "documents_cut": self.source.documents_cut,
                "tokenizers": version("tokenizers"),
            },
        )

    def _refusal(self, reason: str) -> InputError:
        """Return the error for a source that was read to its end in vain; nothing of it is worth keeping."""
        self.partial.clear()
        return InputError(f"the source {self.options.source} {reason}")

    def _attempt(self, held_out: HeldOut) -> tuple[Vocabulary, list[ShardRecord]]:
        vocabulary = self.given or self._train(held_out)
        state = [self.options.source, self.asked, held_out, vocabulary.digest, version("tokenizers")]
        self.partial.begin(hashlib.sha256(json.dumps(state).encode()).hexdigest())
        with writing(self.partial.folder):
            vocabulary.save(self.partial.folder)
        try:
            return vocabulary, list(self._encode(vocabulary, held_out))
        except Stale:
            self.partial.clear()
            return vocabulary, list(self._encode(vocabulary, held_out))

    def _units(self) -> Iterator[tuple[int, Unit]]:
        units = self.source.units(max(1, self.shard_bytes // _UNITS_PER_SHARD), self.pool)
        if self.asked["deduplicate_lines"]:
            return without_repeated_lines(units, self.pool, lowercase=self.options.lowercase)
        return units

    def _train(self, held_out: HeldOut) -> Vocabulary:
        """Copy the training text to a file, counting its characters on the way, and train on it."""
        self._tell("vocabulary", 0)
        lowercase = self.options.lowercase
        kind = byte_pairs if self.options.tokenizer == "bpe" else wordpiece
        characters: Counter[str] = Counter()
        inner: set[str] = set()
        text = self.partial.work / "training-text"
        left = self.options.vocabulary_megabytes * 10**6
        tasks = ((read, (unit, held_out, lowercase)) for read, unit in self._units())
        with writing(text), open(text, "wb") as file:
            for read, found in self.pool.map(kind.survey, tasks):
                assert found is not None
                file.write(found.text)
                characters.update(found.characters)
                inner |= found.inner
                self._tell("vocabulary", read)
                left -= len(found.text)
                if left <= 0:
                    break
        if not characters:
            if self.options.tokenizer == "bpe":
                return byte_pairs.empty()
            return wordpiece.from_entries(list(wordpiece.SPECIAL_TOKENS), lowercase)
        # In a process of its own: it can be killed while it works, and no thread pool stays behind in ours.
        threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(self.pool.workers)}
        with WorkerPool(1, threads) as trainer:
            size = self.options.vocabulary_size
            vocabulary = trainer.submit(kind.train, text, dict(characters), inner, size, lowercase).result()
        text.unlink()
        return vocabulary

    def _encode(self, vocabulary: Vocabulary, held_out: HeldOut) -> Iterator[ShardRecord]:
        """Yield the record of each shard, made now or taken over."""
        self._tell("encoding", 0)
        places = self._reported(self.pool.map(encode_unit, self._tasks(vocabulary, held_out)))
        for number, group in groupby(places, key=lambda place: place[0].shard):
            units, encoded = zip(*group, strict=True)
            digests = [place.digest for place in units]
            made = [unit for unit in encoded if unit is not None]
            if made:
                yield self.partial.store(number, digests, made, len(vocabulary.entries))
            else:
                record = self.partial.recorded(number)
                if record is None or record.units != digests:
                    raise Stale
                yield record

    def _tasks(self, vocabulary: Vocabulary, held_out: HeldOut) -> Iterator[tuple[_Place, tuple[Any, ...] | None]]:
        """Yield each unit with its place; without arguments where a finished shard has it already."""
        tokenizer = str(self.partial.folder / "tokenizer.json")
        shard = size = position = 0
        recorded = self.partial.recorded(0)
        for read, unit in self._units():
            place = _Place(shard, digest(unit), read)
            if recorded is None:
                yield place, (unit, tokenizer, vocabulary.digest, held_out)
            elif recorded.units[position : position + 1] == [place.digest]:
                yield place, None
            else:
                raise Stale
            size += unit_bytes(unit)
            position += 1
            if size >= self.shard_bytes:
                shard, size, position = shard + 1, 0, 0
                recorded = self.partial.recorded(shard)

    def _reported(
        self, places: Iterator[tuple[_Place, EncodedUnit | None]]
    ) -> Iterator[tuple[_Place, EncodedUnit | None]]:
        for place, encoded in places:
            self._tell("encoding", place.read_bytes)
            yield place, encoded

    def _tell(self, phase: Literal["vocabulary", "encoding"], read_bytes: int) -> None:
        self.report(Progress(phase=phase, read_bytes=read_bytes, total_bytes=self.source.total_bytes))


def _load(path: Path, options: PrepareOptions) -> Vocabulary:
    if options.tokenizer == "bpe":
        return byte_pairs.load(path)
    return wordpiece.load(path, options.lowercase)


def _asked(options: PrepareOptions, path: Path | None, given: Vocabulary | None, shard_bytes: int) -> dict[str, Any]:
    """Return, as JSON values, everything but the source that the bytes of the corpus depend on."""
    asked = asdict(options)
    del asked["source"], asked["workers"]
    if options.tokenizer == "bpe":
        del asked["lowercase"]
    else:
        del asked["tokenizer"]  # corpora that were prepared before there was a choice stay what they are
    if asked["deduplicate_lines"] == "auto":
        asked["deduplicate_lines"] = options.source == PYDOCS
    if path is not None and given is not None:
        asked["vocabulary"] = {"name": path.name, "sha256": given.digest}
        del asked["vocabulary_size"], asked["vocabulary_megabytes"]
    return {**asked, "shard_bytes": shard_bytes}


def _existing(out: Path, source_name: str, asked: dict[str, Any], source: Source) -> PreparedCorpus | None:
    """Return the corpus in `out` if it is the one asked for, None if there is nothing; raises InputError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise InputError(f"{out} is a file: choose a new or an empty folder")
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out} holds other files: choose a new or an empty folder")
    manifest = read_manifest(out)
    unsaid = {"tokenizer": "wordpiece"}
    held = {"source": manifest.get("source"), **unsaid, **manifest.get("options", {})}
    for name, value in {"source": source_name, **unsaid, **asked}.items():
        if held.get(name) != value:
            raise InputError(
                f"{out} holds a corpus prepared with {name} {_shown(held.get(name))}, not {_shown(value)}: choose "
                "another folder or remove this one"
            )
    if not source.is_unchanged(manifest.get("input", {})):
        raise InputError(f"{out} holds a corpus prepared from another state of {source_name}: remove it first")
    return PreparedCorpus.open(out)


def _shown(value: object) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else str(value)
