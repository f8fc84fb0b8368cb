"""The command line: prepare, join, train, predict, study, advise, scale, report, recipes.

Exit codes: 0 done; 1 a run that diverged; 2 the user's error or the machine's refusal, in one line; 75 stopped by
SIGTERM or SIGINT after a checkpoint was written, so that the same command with ``--resume`` goes on; 130 interrupted.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from largebatch.command_line import check_given_once, nearest, parse, parse_known
from largebatch.errors import InputError

if TYPE_CHECKING:
    from largebatch.text.shards import PreparedCorpus

STOPPED = 75
USAGE = """\
usage: largebatch VERB ...

  prepare --source S --out FOLDER       text to token shards: documents, sentences, a vocabulary, a held-out part
  join CORPUS CORPUS ... --out FOLDER   one corpus of several that were prepared apart
  train RECIPE [--out FOLDER] ...       run a recipe; --resume goes on, --dry-run only counts; many ranks by torchrun
  predict MODEL ...                     answer SQuAD's questions, or one, with a fine-tuned model
  study NAME [--out FOLDER] ...         compare methods: tuned alike, over seeds, with what they support
  advise RUN ...                        how far a run's batch can grow: from a checkpoint, branches at larger ones
  scale MODEL [--batch N]               learning rate, warm-up and steps for a batch, with their sources
  report FOLDER                         write the page of a run or a study
  recipes                               list the recipes and studies

The options of each are listed by: largebatch prepare --help, largebatch train RECIPE --help,
largebatch predict MODEL --help, largebatch study NAME --help, largebatch advise RUN --help,
largebatch scale MODEL --help, largebatch report FOLDER --help."""


@dataclass(frozen=True, kw_only=True)
class PrepareTarget:
    """Where a corpus goes."""

    out: Path | None = None
    """Folder of the corpus."""


@dataclass(frozen=True, kw_only=True)
class JoinTarget:
    """Where the whole goes."""

    out: Path | None = None
    """Folder of the whole corpus."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a run goes and how it begins."""

    out: Path | None = None
    """Folder of the run; runs/RECIPE if left out."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder."""
    dry_run: bool = False
    """Print steps, tokens, rates, memory and expected time, and train nothing."""


TRAIN_HELP = """
--out FOLDER (default: runs/RECIPE), --resume to go on from its newest checkpoint,
--dry-run to print steps, tokens, rates, memory and expected time only;
--batch-growth 256:0.05,512:0.2 for a first stage at batch 256 until a twentieth of its samples, at 512 until a
fifth, and then at its own, the rate with the square root;
after a pre-training of BERT: --squad-train FILE --squad-dev FILE to fine-tune on SQuAD, with --squad-seeds (5),
--squad-batch (32), --squad-epochs (2), --squad-lr (3e-5), --squad-train-questions, --squad-dev-questions,
--squad-sequence-length; before it: --source TEXT to prepare the corpus"""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where the page goes."""

    out: Path | None = None
    """File of the page; report.html in that folder if left out."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Which batch."""

    batch: str = "32768"
    """Samples per optimizer step, such as 32768 or 32K; 64K/32K for BERT's mixed batch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"largebatch {version('largebatch')}")
        return 0
    try:
        if words[0] not in VERBS:
            raise InputError(f"there is no verb {words[0]!r}{nearest(words[0], VERBS)}: allowed are {', '.join(VERBS)}")
        check_given_once(words[1:])
        return VERBS[words[0]](words[1:])
    except InputError as error:
        if not error.said:
            print(f"largebatch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk, a folder that may not be written: the machine says no, and its words are the reason.
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"largebatch: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("largebatch: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "largebatch":
            raise
        sentence = f"{error.name} is not installed, `pip install 'largebatch[train]'` brings what this verb needs"
        print(f"largebatch: {sentence}", file=sys.stderr)
        return 2


def _subject(arguments: Sequence[str], verb: str, what: str) -> tuple[str, list[str]]:
    """Split off the word that a verb begins with; a request for help without it shows the usage."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0)
    if not arguments or not arguments[0].strip() or arguments[0].startswith("-"):
        raise InputError(f"{verb} needs {what}: largebatch {verb} {what.split()[-1].upper()} ...")
    return arguments[0], list(arguments[1:])


def _prepare(arguments: Sequence[str]) -> int:
    from largebatch.prepare_display import PrepareDisplay
    from largebatch.text.options import PYDOCS, PrepareOptions
    from largebatch.text.prepare import prepare

    place, rest = parse_known(PrepareTarget, [word for word in arguments if word not in ("-h", "--help")], "prepare")
    rest += [word for word in arguments if word in ("-h", "--help")]
    about = "Turn text into token shards. --out FOLDER is where they go; corpora/pydocs for the embedded text."
    options = parse(PrepareOptions, rest, "prepare", description=about)
    if place.out is None and options.source != PYDOCS:
        raise InputError(f"--out is missing: where should the corpus of {options.source} go?")
    out = place.out or Path("corpora") / PYDOCS
    with PrepareDisplay() as display:
        corpus = prepare(options, out, progress=display)
    _print_corpus(corpus, out)
    return 0


def _join(arguments: Sequence[str]) -> int:
    from largebatch.text.join import join

    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print(USAGE)
        return 0 if arguments else 2
    place, parts = parse_known(JoinTarget, arguments, "join")
    if unknown := next((word for word in parts if word.startswith("-")), None):
        raise InputError(f"join takes corpora and --out FOLDER, {unknown!r} was given")
    if place.out is None:
        raise InputError("--out is missing: where should the whole corpus go?")
    _print_corpus(join(parts, place.out), place.out)
    return 0


def _print_corpus(corpus: "PreparedCorpus", out: Path) -> None:
    for name, part in (("training", corpus.train), ("held-out", corpus.held_out)):
        print(f"{name}: {part.documents:,} documents, {part.sentences:,} sentences, {part.tokens:,} tokens")
    print(f"vocabulary: {corpus.vocabulary_size:,}; corpus: {out}")


def _train(arguments: Sequence[str]) -> int:
    name, rest = _subject(arguments, "train", "the name of a recipe")
    from largebatch.recipes.catalogue import build_run
    from largebatch.report.run_page import write_report
    from largebatch.train.agent import AgentLost, is_restarted
    from largebatch.train.distributed import join_world
    from largebatch.train.dry_run import describe
    from largebatch.train.finite import Diverged
    from largebatch.train.loop import Outcome, Training
    from largebatch.train.observers import Display, TensorBoard
    from largebatch.train.run import Run
    from largebatch.train.run_record import Origin
    from largebatch.whole_way import WholeWay, check_alike, is_finished

    options, words = parse_known(TrainOptions, rest, f"train {name}")
    way, rest = parse_known(WholeWay, words, f"train {name}")
    run, origin = build_run(name, rest, TRAIN_HELP)
    way.check(run)
    folder = options.out or Path("runs") / origin.recipe_name
    for line in way.prepare(Path(getattr(run.task, "corpus", "")), dry=options.dry_run):
        print(line)
    resume = options.resume
    if resume and way.source is not None and not folder.exists():
        print(f"{folder} holds no run yet, one begins there")  # the whole way was stopped while it prepared the text
        resume = False
    with join_world(run.device) as world:
        # A node that has come anew does not know, but another does.
        resume = world.sum([float(resume or is_restarted(folder))])[0] > 0

        def made(run: Run[Any, Any], folder: Path, origin: Origin) -> Training:
            return Training(run, folder, world, [Display(), TensorBoard(folder / "tensorboard")], origin)

        training = made(run, folder, replace(origin, overrides=tuple(words)))
        if options.dry_run:
            for line in (*describe(training), *way.describe()):
                if world.first:
                    print(line)
            return 0

        def complain(what: object) -> None:
            if world.first:
                print(f"largebatch: {what}", file=sys.stderr)

        diverged = False
        try:
            outcome = training.train(resume)
            del training
            for place, fine_tuning, own in way.fine_tunings(run, folder) if outcome is Outcome.DONE else ():
                if is_finished(place):
                    world.first_rank_does(partial(check_alike, place, fine_tuning, own.overrides, world.device))
                    continue
                if world.first:
                    print(f"fine-tuning on SQuAD with seed {fine_tuning.seed}, the last is {way.squad_seeds - 1}")
                try:
                    outcome = made(fine_tuning, place, own).train(resume=(place / "run.json").is_file())
                except Diverged as error:  # what the other seeds come to is worth no less
                    diverged = True
                    complain(f"SQuAD with seed {fine_tuning.seed}: {error}")
                if world.first:
                    write_report(place)
                if outcome is Outcome.STOPPED:
                    break
        except (Diverged, AgentLost) as error:
            complain(error)
            return 1
        if world.first:
            _after_training(folder, outcome is Outcome.STOPPED)
    if outcome is Outcome.STOPPED:
        return 0 if "WORLD_SIZE" in os.environ else STOPPED
    return int(diverged)


def _after_training(folder: Path, stopped: bool) -> None:
    from largebatch.report.fine_tuned import FineTuned
    from largebatch.report.run_folder import RunFolder
    from largebatch.report.run_page import write_report
    from largebatch.report.summary import terminal_lines

    page = write_report(folder)
    run = RunFolder.read(folder)
    for line in terminal_lines(run):
        print(line)
    if fine_tuned := FineTuned.read(run):
        print(fine_tuned.sentence())
    print(f"report: {page}")
    if stopped:
        print(f"stopped and saved; the same command with --resume goes on in {folder}")


def _predict(arguments: Sequence[str]) -> int:
    from largebatch.predict import PredictOptions, predict

    model, rest = _subject(arguments, "predict", "a folder with a fine-tuned model")
    about = "Answer one question about a context, or all questions of a file in SQuAD's form."
    for line in predict(model, parse(PredictOptions, rest, "predict MODEL", description=about)):
        print(line)
    return 0


def _report(arguments: Sequence[str]) -> int:
    folder, rest = _subject(arguments, "report", "the folder of a run or study")
    options = parse(ReportOptions, rest, "report FOLDER", description="Write the page of one run or study.")
    if (Path(folder) / "study.json").is_file():
        from largebatch.study.report import write_report
    else:
        from largebatch.report.run_page import write_report
    print(f"report: {write_report(Path(folder), options.out)}")
    return 0


def _study(arguments: Sequence[str]) -> int:
    name, rest = _subject(arguments, "study", "the name of a study")
    from largebatch.study_verb import StudyOptions, study_verb

    options, words = parse_known(StudyOptions, rest, f"study {name}")
    return study_verb(name, options, words, " ".join(["largebatch study", *arguments]))


def _advise(arguments: Sequence[str]) -> int:
    folder, rest = _subject(arguments, "advise", "the folder of a run")
    from largebatch.advise_verb import ADVISE_HELP, AdviseOptions, advise_verb

    return advise_verb(folder, parse(AdviseOptions, rest, "advise RUN", description=ADVISE_HELP))


def _scale(arguments: Sequence[str]) -> int:
    from largebatch import plans
    from largebatch.plan_text import plan_lines

    models = ("bert-large", "bert-base", "bert-large-nvidia", "resnet50")
    model, rest = _subject(arguments, "scale", f"{', '.join(models[:-1])} or {models[-1]} as model")
    options = parse(ScaleOptions, rest, f"scale {model}", description="Print rate, warm-up and steps.")
    if model not in models:
        raise InputError(
            f"there are no settings for {model!r}{nearest(model, models)}: allowed are {', '.join(models)}"
        )
    if model == "bert-large-nvidia":
        plan = plans.nvidia_bert_plan()
    elif (batches := _batches(options.batch)) == [65_536, 32_768] and model != "resnet50":
        plan = plans.bert_mixed_plan(cast(plans.BertModel, model))
    elif len(batches) > 1:
        raise InputError(f"--batch is {options.batch}, allowed is one number, or 64K/32K for BERT's mixed batch")
    else:
        try:
            if model == "resnet50":
                plan = plans.resnet50_plan(batches[0])
            else:
                plan = plans.bert_plan(batches[0], cast(plans.BertModel, model))
        except ValueError as error:
            raise InputError(str(error)) from error
    for line in plan_lines(plan):
        print(line)
    return 0


def _batches(text: str) -> list[int]:
    """Read "32768", "32K" or "64K/32K"."""
    found = re.fullmatch(r"(\d+)(K?)(?:/(\d+)(K?))?", text.strip().upper())
    if found is None:
        raise InputError(f"--batch is {text!r}, allowed is a number such as 32768 or 32K, or 64K/32K")
    parts = [(found[1], found[2]), (found[3], found[4])]
    return [int(digits) * (1024 if kilo else 1) for digits, kilo in parts if digits]


def _recipes(arguments: Sequence[str]) -> int:
    from largebatch.recipes.catalogue import RECIPES, promise
    from largebatch.recipes.studies import STUDIES, study_promise

    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments:
        raise InputError(f"recipes takes nothing more, {arguments[0]!r} was given")
    _print_list({name: promise(name) for name in RECIPES})
    print("\nstudies, for `largebatch study`:")
    _print_list({name: study_promise(name) for name in STUDIES})
    return 0


def _print_list(promises: Mapping[str, str]) -> None:
    width = max(map(len, promises))
    for name, promise in promises.items():
        print(f"{name.ljust(width)}  {promise}")


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": _prepare,
    "join": _join,
    "train": _train,
    "predict": _predict,
    "scale": _scale,
    "report": _report,
    "study": _study,
    "advise": _advise,
    "recipes": _recipes,
}
