"""`largebatch advise`: how far the batch of a run can grow from a checkpoint, by branches that are trained."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.advise.advice import growth_by_noise, lines, noise_sentence, plot, table
from largebatch.advise.branches import Place, Plan, find_place, least_samples, read_results, run_branches
from largebatch.advise.critical_batch import find
from largebatch.advise.theory import PARTS, measure_at, theory_lines
from largebatch.aside import write_aside
from largebatch.command_line import parse_known
from largebatch.errors import InputError, check_at_least
from largebatch.recipes.catalogue import build_run
from largebatch.report.run_folder import RunFolder
from largebatch.report.wording import duration, plural
from largebatch.train.distributed import World, join_world
from largebatch.train.folder_lock import PATIENCE_SECONDS, locked
from largebatch.train.observers import Display
from largebatch.train.run import Run
from largebatch.train.run_record import LOCK, Origin, changed_options, fingerprint, read_record
from largebatch.whole_way import WholeWay

ADVICE = "advice.json"
_BEGUN = (LOCK, f"{ADVICE}.partial")
"""What a command that was killed at its very beginning leaves."""
_FORMAT_VERSION = 1
_SHARE = 0.05
_EVALUATION_SHARE = 0.4
"""A sample that is judged takes about so much of the time of one that is trained on: a forward pass without another."""
_LAYER_PRODUCTS, _PRODUCT_PASSES = 20, 10
"""Products of the Hessian for each layer, and what one takes in training passes, small and in float32 as they are."""
_MOST_TIMES = 10
_STOPPED = 75

ADVISE_HELP = """
From a checkpoint of RUN, training branches at 2, 4 and 8 times the batch, with the rate of the square-root rule; what
they come to says up to which batch it grows at no cost, and at 20 % more samples. The same command goes on with what is
there. The answer goes to OUT/advice.md, with a plot beside it."""


@dataclass(frozen=True, kw_only=True)
class AdviseOptions:
    """What is asked of the branches."""

    out: Path | None = None
    """Folder of the branches and the answer; RUN/advice-STEP if left out."""
    checkpoint: int | None = None
    """Step of the checkpoint to branch from; the newest at which the learning rate has not come to its end."""
    multiples: str = "1,2,4,8"
    """Times the batch that are tried; 1 is always among them, and each divides the largest."""
    orders: int = 2
    """Orders of the data that each is tried with; the scatter between them makes the intervals."""
    samples: int | None = None
    """Samples of the branch at the run's own batch, rounded up; a twentieth of the stage's if left out."""
    minutes: float | None = None
    """Instead: as many samples as so much time allows."""
    tolerance: float = 0.01
    """How much above the best smaller batch a held-out loss may be, at no cost."""
    lr: float | None = None
    """Learning rate at the run's own batch; that of the schedule at the checkpoint if left out."""
    theory: int = 0
    """Training samples on which curvature and noise are measured, for what the bounds say; 0 for none."""
    dry_run: bool = False
    """Print what would run and how long it takes, and train nothing."""

    def __post_init__(self) -> None:
        check_at_least(self, orders=1)
        for name in ("samples", "minutes", "lr"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name} is {value}, allowed is a finite number above 0")
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"--tolerance is {self.tolerance}, allowed is a finite number from 0 up")
        if self.theory < 0 or self.theory % PARTS:
            raise InputError(f"--theory is {self.theory}, allowed is 0 or a multiple of {PARTS}")
        if self.samples is not None and self.minutes is not None:
            raise InputError("--samples and --minutes are both given: one follows from the other")

    def batches(self) -> tuple[int, ...]:
        """Return the multiples, 1 among them, ascending.

        Raises:
            InputError: they cannot be read, or do not divide one another.
        """
        try:
            found = sorted({1, *(int(word) for word in self.multiples.split(","))})
        except ValueError:
            found = []
        if len(found) < 2 or found[0] < 1 or any(found[-1] % k for k in found):
            raise InputError(
                f"--multiples is {self.multiples!r}, allowed are whole numbers such as 1,2,4,8, of which each divides "
                "the largest"
            )
        return tuple(found)


def advise_verb(name: str, options: AdviseOptions) -> int:
    """Run the branches of a run, and say what they come to; return the exit code.

    Raises:
        InputError: no run, no checkpoint that will do, a recipe that has changed since, options that cannot be.
    """
    multiples = options.batches()
    folder = Path(name)
    told = RunFolder.read(folder)
    run, origin = _recorded_run(folder, told.record)
    step = options.checkpoint
    if step is None and options.out is not None and (before := _asked(options.out)) is not None:
        step = at if _is_count(at := before.get("checkpoint")) else None
    place = find_place(folder, run, step, options.lr, options.out or folder / f"advice-{step}")
    rate = _rate(told, place)
    out = options.out or folder / f"advice-{place.step}"
    held = _asked(out)
    plan = _plan(options, place, multiples, run, rate, held or {})
    expected = _seconds(plan, run, rate)
    asked = {
        "run": _identity(told.record, place),
        "checkpoint": place.step,
        "multiples": list(multiples),
        "orders": plan.orders,
        "minutes": options.minutes,
        "samples": plan.samples,
        "lr": place.lr,
    }
    _check_folder(out, asked, held)
    read_results(out)
    with join_world(run.device) as world:
        theory = _theory_seconds(run, options.theory, rate) if options.theory else 0.0
        for line in _plan_lines(plan, run, expected, theory, out):
            if world.first:
                print(line, flush=True)
        if options.dry_run:
            return 0
        with ExitStack() as claims:
            alone = locked(out, print, PATIENCE_SECONDS)
            world.first_rank_does(lambda: claims.enter_context(alone))
            world.first_rank_does(partial(_begin, out, asked))
            branches = run_branches(plan, run, origin, out, world, Display, partial(_say, world))
        if branches is None:
            _say(world, f"stopped and saved; the same command goes on in {out}")
            return 0 if "WORLD_SIZE" in os.environ else _STOPPED
        found = find(branches, place.batch, plan.samples, options.tolerance)
        # Only a first stage can grow, and one that does already is several.
        grows = place.stage is run.stages[0] and not any(stage.continues_data for stage in run.stages)
        growth = growth_by_noise(told, place) if grows else ()
        answer = lines(run, place, found, noise_sentence(told, place), rate, growth)
        if world.first:
            answer += _theory(run, place, options.theory) if options.theory else []
            text = "\n".join([f"# How far the batch of {folder.name} can grow", "", *(f"- {line}" for line in answer)])
            text += f"\n\n{table(found)}\n\n![samples to the same loss](advice.svg)\n"
            write_aside(out / "advice.svg", plot(found))
            write_aside(out / "advice.md", text)
            for line in answer:
                print(line)
            print(f"advice: {out / 'advice.md'}")
    return 0


def _theory(run: Run[Any, Any], place: Place, samples: int) -> list[str]:
    left = place.stage_begins + place.stage.steps - place.step
    try:
        layers = measure_at(run, place.stage, place.checkpoint, samples)
        return theory_lines(layers, max(left, 1), place.batch)
    except ValueError as error:
        return [f"What the bounds say is not known: {error}."]


def _say(world: World, sentence: str) -> None:
    if world.first:
        print(sentence, flush=True)


def _recorded_run(folder: Path, record: dict[str, Any]) -> tuple[Run[Any, Any], Origin]:
    """Return the run of a folder as its recipe makes it today.

    Raises:
        InputError: it makes another run, or the data is another.
    """
    _, words = parse_known(WholeWay, list(record["overrides"]), "advise")
    run, origin = build_run(record["recipe"], words)
    # What auto became on the machine that trained is part of the record.
    run = replace(run, precision=record["run"]["precision"])
    if changed := changed_options(record, run):
        raise InputError(f"{folder} cannot be branched from: its recipe makes another run today, {changed[0]}")
    if record.get("data") != fingerprint(run):
        raise InputError(f"{folder} cannot be branched from: its data has been prepared anew with another result")
    return run, replace(origin, recipe_name=record["recipe_name"])


def _identity(record: dict[str, Any], place: Place) -> str:
    """Return what tells a run and its checkpoint from others."""
    files = (place.checkpoint / "checkpoint.json").read_bytes()
    content = json.dumps([record["run"], record.get("data")], sort_keys=True).encode()
    return hashlib.sha256(content + files).hexdigest()[:16]


def _rate(told: RunFolder, place: Place) -> float:
    """Return the run's samples per second near a place."""
    train = told.train
    near = train.between(place.stage_begins, place.stage_begins + place.stage.steps)
    rates = train.samples_per_second[near & np.isfinite(train.samples_per_second)]
    if not len(rates):
        raise InputError(f"{told.folder} has no steps of the stage {place.stage.name}: nothing says how fast it is")
    return float(np.median(rates))


def _plan(
    options: AdviseOptions,
    place: Place,
    multiples: tuple[int, ...],
    run: Run[Any, Any],
    rate: float,
    asked: dict[str, Any],
) -> Plan:
    least = least_samples(place.batch, multiples)

    def made(rounds: int) -> Plan:
        return Plan(place=place, multiples=multiples, orders=options.orders, samples=rounds * least)

    own = len(run.task.dataset(place.stage, run.seed))
    if multiples[-1] * place.batch > own:
        raise InputError(
            f"the largest batch would be {multiples[-1] * place.batch:,}, but the data has {own:,} samples: "
            "give smaller --multiples"
        )
    if options.minutes is not None and asked.get("minutes") == options.minutes and _is_count(asked.get("samples")):
        return Plan(place=place, multiples=multiples, orders=options.orders, samples=asked["samples"])
    if options.minutes is not None:
        first = _seconds(made(1), run, rate)
        each = _seconds(made(2), run, rate) - first
        rounds = int(min((60 * options.minutes - first) / each, _MOST_TIMES * place.stage.steps)) + 1
        if first > 60 * options.minutes:
            raise InputError(
                f"--minutes is {options.minutes:g}, but eight steps of the largest batch make it {duration(first)} at "
                "least: allow as much, or try fewer --multiples or --orders"
            )
        return made(rounds)
    most = _MOST_TIMES * place.stage.steps * place.batch
    if options.samples is not None and options.samples > most:
        raise InputError(
            f"--samples is {options.samples}, allowed is up to {most}, {_MOST_TIMES} times the stage's own"
        )
    wanted = options.samples or _SHARE * place.stage.steps * place.batch
    return made(max(1, -(-int(wanted) // least)))


def _seconds(plan: Plan, run: Run[Any, Any], rate: float) -> float:
    """Return how long the branches take, at the run's own pace."""
    stage = plan.place.stage
    held_out = len(run.task.evaluation_dataset(stage, run.seed))
    evaluations = sum(8 if k == 1 else 12 for _, k in plan.jobs())
    return (plan.total_samples + _EVALUATION_SHARE * evaluations * held_out) / rate


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _theory_seconds(run: Run[Any, Any], samples: int, rate: float) -> float:
    """Return about how long the constants of the bounds take, at the run's own pace."""
    layers = sum(p.requires_grad for p in run.task.build_model(run.seed).parameters())
    return _LAYER_PRODUCTS * (layers + 1) * samples * _PRODUCT_PASSES / rate


def _plan_lines(plan: Plan, run: Run[Any, Any], expected: float, theory: float, out: Path) -> Iterator[str]:
    batches = ", ".join(f"{k * plan.place.batch:,}" for k in plan.multiples)
    yield (
        f"from step {plan.place.step:,} of {run.steps:,}: batches {batches} with {plural(plan.orders, 'order')} of the "
        f"data, {plan.samples:,} samples at the run's own batch and {plan.branch_samples(plan.multiples[-1]):,} "
        "at the others"
    )
    more = f", and the constants of the bounds about {duration(theory)}" if theory else ""
    yield f"this takes about {duration(expected)} at the run's own pace{more}; results go to {out}"


def _asked(out: Path) -> dict[str, Any] | None:
    """Return what the branches of a folder were asked; None where it has none.

    Raises:
        InputError: the record is damaged.
    """
    if not (out / ADVICE).is_file():
        return None
    held = read_record(out / ADVICE, "piece of advice", _FORMAT_VERSION).get("asked")
    if not isinstance(held, dict):
        raise InputError(f"{out / ADVICE} is damaged: it does not say what was asked")
    return held


def _check_folder(out: Path, asked: dict[str, Any], held: dict[str, Any] | None) -> None:
    """Refuse a folder of other branches.

    Raises:
        InputError: in one sentence.
    """
    if held is not None:
        if differing := [name for name in asked if held.get(name) != asked[name]]:
            raise InputError(
                f"{out} holds branches with another {differing[0]} ({held.get(differing[0])}, asked for is "
                f"{asked[differing[0]]}): name another folder with --out"
            )
    elif any(parent.is_file() for parent in out.parents):
        raise InputError(f"{out} cannot be made: a folder above it is a file")
    elif out.exists() and (not out.is_dir() or any(path.name not in _BEGUN for path in out.iterdir())):
        raise InputError(f"{out} holds other files, --out takes a folder that is new or empty, or has these branches")


def _begin(out: Path, asked: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / ADVICE).is_file():
        write_aside(out / ADVICE, json.dumps({"format_version": _FORMAT_VERSION, "asked": asked}, indent=1) + "\n")
