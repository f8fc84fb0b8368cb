"""Small real corpora for the tests of text, and a way to prepare them in another process."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import largebatch.text

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "kra", "stri", "nth")
# Imports the text part without the package's own __init__, as the workers do: PyTorch is not needed here.
_SCRIPT = """
import json, os, signal, sys, types
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts its children deaf to it
folder, options, out, more = json.loads(sys.argv[1])
package = sys.modules["largebatch"] = types.ModuleType("largebatch")
package.__path__ = [folder]
from largebatch.errors import InputError
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
if "fsize" in more:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (more["fsize"], more["fsize"]))
calls = 0
def told(progress):
    global calls
    print(progress.phase, progress.read_bytes, flush=True)
    calls += 1
    if calls == more.get("calls"):
        tasks = Path("/proc/self/task").glob("*/children")
        print("workers", *(child for task in tasks for child in task.read_text().split()), flush=True)
        os.kill(os.getpid(), more["signal"])
try:
    prepare(PrepareOptions(**options), out, progress=told, shard_bytes=more.get("shard_bytes", 1 << 26))
except InputError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
"""


def asked(defaults: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return options over defaults; a vocabulary that is given has its own size."""
    merged = {**defaults, **options}
    if "vocabulary" in options:
        del merged["vocabulary_size"]
    return merged


def words(count: int, seed: int) -> list[str]:
    """Return words in which the first ones are frequent, as in text."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices(_SYLLABLES, k=generator.randint(1, 4))) for _ in range(400)]
    weights = [1 / (1 + rank) for rank in range(len(vocabulary))]
    return generator.choices(vocabulary, weights, k=count)


def documents(count: int, seed: int = 0) -> list[list[str]]:
    """Return documents of 1 to 8 sentences with capitals, accents, digits and marks."""
    generator = random.Random(seed)
    made = []
    for number in range(count):
        sentences = []
        for _ in range(generator.randint(1, 8)):
            text = words(generator.randint(3, 14), generator.randrange(1 << 30))
            sentences.append(f"{text[0].capitalize()} {' '.join(text[1:])} {number}, é{generator.randint(0, 99)}.")
        made.append(sentences)
    return made


def as_text(made: list[list[str]]) -> str:
    """Return one sentence a line, a blank line between documents."""
    return "\n\n".join("\n".join(document) for document in made) + "\n"


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start_preparation(
    options: dict[str, Any], out: Path, *, hash_seed: int = 0, **more: Any
) -> "subprocess.Popen[str]":
    """Start `prepare` in a process of its own, which prints a line for each progress it is told.

    `more`: `shard_bytes`; `fsize`, a limit on the size of files; `calls` and `signal`, with which the process ends
    itself at so many calls of progress, after it printed its workers.
    """
    package = str(Path(largebatch.text.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, json.dumps([package, options, str(out), more])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        start_new_session=True,
    )


def run_preparation(options: dict[str, Any], out: Path, **more: Any) -> tuple[int, str, str]:
    """Run `prepare` in a process of its own and return (exit status, output, errors)."""
    with start_preparation(options, out, **more) as process:
        output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors
