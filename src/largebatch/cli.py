"""The command line: prepare, train, scale, report, recipes.

Exit codes: 0 done; 1 a run that diverged; 2 the user's error, in one line; 75 stopped by SIGTERM or SIGINT after a
checkpoint was written, so that the same command with ``--resume`` goes on.
"""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import InputError

STOPPED = 75


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a run goes and how it begins."""

    out: Path | None = None
    """Folder of the run; runs/RECIPE if left out."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder."""
    dry_run: bool = False
    """Print steps, tokens, rates, memory and expected time, and train nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"largebatch {version('largebatch')}")
        return 0
    try:
        if words[0] not in VERBS:
            raise InputError(f"there is no verb {words[0]!r}{nearest(words[0], VERBS)}: allowed are {', '.join(VERBS)}")
        return VERBS[words[0]](words[1:])
    except InputError as error:
        from largebatch.train.distributed import SaidByFirstRank

        if not isinstance(error, SaidByFirstRank):
            print(f"largebatch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("largebatch"):
            raise
        print(
            f"largebatch: {error.name} is not installed, `pip install 'largebatch[train]'` brings it", file=sys.stderr
        )
        return 2


def nearest(word: str, known: Any) -> str:
    """Return ", did you mean ...?" where a known word is near, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def _prepare(arguments: Sequence[str]) -> int:
    from largebatch.recipes.preparation import prepare_verb

    return prepare_verb(arguments)


def _train(arguments: Sequence[str]) -> int:
    from largebatch.command_line import parse_known
    from largebatch.recipes.catalogue import build_run
    from largebatch.train.distributed import join_world
    from largebatch.train.dry_run import describe
    from largebatch.train.loop import Diverged, Outcome, Training
    from largebatch.train.observers import Display, TensorBoard

    if not arguments or arguments[0].startswith("-"):
        raise InputError("train needs the name of a recipe: largebatch train RECIPE, `largebatch recipes` lists them")
    name = arguments[0]
    options, rest = parse_known(TrainOptions, arguments[1:], f"train {name}")
    run, origin = build_run(name, rest)
    folder = options.out or Path("runs") / origin.recipe_name
    with join_world(run.device) as world:
        observers = [Display(), TensorBoard(folder / "tensorboard")]
        training = Training(run, folder, world, observers, origin)
        if options.dry_run:
            for line in describe(training):
                print(line)
            return 0
        try:
            outcome = training.train(options.resume)
        except Diverged as error:
            if world.first:
                print(f"largebatch: {error}", file=sys.stderr)
            return 1
        if world.first:
            _after_training(folder, outcome is Outcome.STOPPED)
    if outcome is Outcome.STOPPED:
        return 0 if "WORLD_SIZE" in os.environ else STOPPED
    return 0


def _after_training(folder: Path, stopped: bool) -> None:
    from largebatch.report.run_page import write_report

    write_report(folder)
    if stopped:
        print(f"stopped and saved; the same command with --resume goes on in {folder}")


def _report(arguments: Sequence[str]) -> int:
    from largebatch.report.run_page import write_report

    raise NotImplementedError


def _scale(arguments: Sequence[str]) -> int:
    raise NotImplementedError


def _recipes(arguments: Sequence[str]) -> int:
    raise NotImplementedError


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": _prepare,
    "train": _train,
    "scale": _scale,
    "report": _report,
    "recipes": _recipes,
}


def _usage() -> str:
    return "usage: largebatch " + " | ".join(VERBS)
