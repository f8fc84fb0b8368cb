"""Peak memory of `prepare` by the size of its input: the goal is less than 2 GB for any.

The text is made of the words of a real one, drawn anew for every sentence. One file, one vocabulary trained on the
way, the default options (repeated lines are not looked for). Memory is the largest sum of the resident sets of all
processes, mapped files included.

    python benchmarks/prepare_memory.py --source TEXT --gigabytes 0.5 5

writes benchmarks/results/prepare_memory.json.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from certificate import write_result
from largebatch.text.corpus import open_source
from largebatch.text.documents import documents_of
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.processes import WorkerPool
from prepare import PeakMemory

SENTENCES_A_DOCUMENT = 60
DOCUMENTS_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    source: str
    """Real text, a path as for `largebatch prepare`, whose words and lengths of sentences are taken."""
    gigabytes: tuple[float, ...] = (0.5, 5.0)
    """Sizes of the texts that are made."""
    folder: str | None = None
    """Where they and the corpora go meanwhile; the system's folder for temporary files if not given."""


def write_text(path: Path, words: np.ndarray, lengths: np.ndarray, gigabytes: float) -> None:
    """Write documents of random sentences until the file has its size."""
    draws = np.random.default_rng(0)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < gigabytes * 1e9:
            counts = draws.choice(lengths, SENTENCES_A_DOCUMENT * DOCUMENTS_AT_ONCE)
            drawn = draws.choice(words, int(counts.sum()))
            ends = np.cumsum(counts)
            lines = [
                " ".join(drawn[end - count : end]) + ("\n" if (number + 1) % SENTENCES_A_DOCUMENT else "\n\n")
                for number, (end, count) in enumerate(zip(ends, counts, strict=True))
            ]
            text = "".join(lines)
            file.write(text)
            size += len(text.encode())


def main(chosen: Options) -> None:
    """Measure each size, print and record."""
    with WorkerPool(1) as pool:
        units = open_source(PrepareOptions(source=chosen.source)).units(1 << 21, pool)
        _, first = next(iter(units))
        sentences = [sentence.split() for document in documents_of(first) for sentence in document]
    words = np.array([word for sentence in sentences for word in sentence], dtype=object)
    lengths = np.array([len(sentence) for sentence in sentences])
    sizes = []
    for gigabytes in chosen.gigabytes:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            source = Path(folder) / "made.txt"
            write_text(source, words, lengths, gigabytes)
            began = time.perf_counter()
            with PeakMemory() as peak:
                corpus = prepare(PrepareOptions(source=str(source)), Path(folder) / "corpus")
            sizes.append(
                {
                    "gigabytes": source.stat().st_size / 1e9,
                    "sentences": corpus.train.sentences,
                    "tokens": corpus.train.tokens,
                    "peak_megabytes_of_all_processes": peak.megabytes,
                    "of_these_mapped_files": peak.mapped_megabytes,
                    "minutes": (time.perf_counter() - began) / 60,
                }
            )
        print(sizes[-1], flush=True)
    result = {"what": "peak memory of prepare, by the size of its input", "sizes": sizes}
    print(f"written to {write_result('prepare_memory', result)}")


if __name__ == "__main__":
    main(tyro.cli(Options))
