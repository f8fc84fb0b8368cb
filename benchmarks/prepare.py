"""MB/s of `prepare`, from compressed text to a finished corpus, beside bare `tokenizers` on the same sentences.

Bare means that the sentences are in memory already and their encodings are thrown away: no reading, no ids copied
out, no files. Both use all cores, and take turns; the goal is a median ratio of at least 0.7. The peak of memory is
the largest sum of the resident sets of all processes, sampled in a run of its own.

    python benchmarks/prepare.py --source TEXT --vocabulary VOCAB.TXT

writes benchmarks/results/prepare.json.
"""

import os
import re
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tokenizers import Tokenizer

from certificate import write_result
from largebatch.text.corpus import open_source
from largebatch.text.documents import documents_of
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.processes import WorkerPool, usable_cores
from largebatch.text.wordpiece import encoder, load

BATCH_SENTENCES = 1_000
_RESIDENT = re.compile(r"(Rss(?:Anon|File|Shmem)):\s+(\d+) kB")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    source: str
    """Text to prepare, a path as for `largebatch prepare`."""
    vocabulary: str
    """A vocab.txt or tokenizer.json; training one is not part of the measurement."""
    rounds: int = 5
    """Pairs of measurements."""
    name: str = "prepare"
    """The result is written to results/NAME.json."""


class PeakMemory:
    """Samples the memory of this process and its children until the end of the `with` block."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        """Peak of the sum of the resident sets."""
        self.mapped_megabytes = 0.0
        """Of that peak, the pages of files, which the system takes back when it needs them."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.05):
            processes = [str(os.getpid())]
            resident = mapped = 0.0
            for process in processes:
                try:
                    status = Path(f"/proc/{process}/status").read_text()
                    for children in Path(f"/proc/{process}/task").glob("*/children"):
                        processes += children.read_text().split()
                except OSError:  # it has ended meanwhile
                    continue
                kilobytes = {name: int(size) for name, size in _RESIDENT.findall(status)}
                resident += sum(kilobytes.values()) * 1024 / 1e6
                mapped += kilobytes.get("RssFile", 0) * 1024 / 1e6
            if resident > self.megabytes:
                self.megabytes, self.mapped_megabytes = resident, mapped


def prepare_seconds(options: PrepareOptions) -> float:
    """Prepare into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        prepare(options, Path(folder) / "corpus")
        return time.perf_counter() - began


def bare_seconds(tokenizer: Tokenizer, sentences: list[str]) -> float:
    """Encode all sentences, a batch at a time, and drop the encodings."""
    began = time.perf_counter()
    for start in range(0, len(sentences), BATCH_SENTENCES):
        tokenizer.encode_batch_fast(sentences[start : start + BATCH_SENTENCES], add_special_tokens=False)
    return time.perf_counter() - began


def main(chosen: Options) -> None:
    """Measure in turns, print and record."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # for the bare encoding; the workers of `prepare` set their own
    options = PrepareOptions(source=chosen.source, vocabulary=chosen.vocabulary)
    with PeakMemory() as peak:
        prepare_seconds(options)
    with tempfile.TemporaryDirectory() as folder:
        load(Path(chosen.vocabulary), lowercase=True).save(Path(folder))
        tokenizer = encoder(Path(folder) / "tokenizer.json")
    with WorkerPool(1) as pool:
        units = open_source(options).units(1 << 21, pool)
        sentences = [sentence for _, unit in units for document in documents_of(unit) for sentence in document]
    megabytes = sum(len(sentence.encode()) + 1 for sentence in sentences) / 1e6
    rounds = []
    for turn in range(chosen.rounds):
        bare_first = turn % 2 == 0
        before = bare_seconds(tokenizer, sentences) if bare_first else 0.0
        ours = prepare_seconds(options)
        bare = before if bare_first else bare_seconds(tokenizer, sentences)
        rounds.append({"prepare_mb_per_second": megabytes / ours, "bare_mb_per_second": megabytes / bare})
        print(f"prepare {megabytes / ours:.2f} MB/s, bare tokenizers {megabytes / bare:.2f} MB/s", flush=True)
    ratio = statistics.median(turn["prepare_mb_per_second"] / turn["bare_mb_per_second"] for turn in rounds)
    result = {
        "what": "MB/s of text, prepare end to end beside bare tokenizers on the same sentences",
        "ratio": ratio,
        "text_megabytes": megabytes,
        "sentences": len(sentences),
        "cores": usable_cores(),
        "peak_megabytes_of_all_processes": peak.megabytes,
        "of_these_mapped_files": peak.mapped_megabytes,
        "rounds": rounds,
    }
    path = write_result(chosen.name, result)
    print(f"median of {chosen.rounds} paired ratios {ratio:.3f}, peak {peak.megabytes:,.0f} MB, written to {path}")


if __name__ == "__main__":
    main(tyro.cli(Options))
