"""The whole configuration of a run: stages, task, optimizer, options, versions, machine, sessions, command."""

import json
import shlex
from typing import Any

from largebatch.report import wording
from largebatch.report.charts import Table
from largebatch.report.run_folder import RunFolder

Fields = tuple[tuple[str, str], ...]


def stage_table(run: RunFolder) -> Table:
    """Return one row for each stage: what it trains with, and what it did with the moments of the one before."""
    options = list(dict.fromkeys(name for stage in run.stages for name in _mapping(stage.fields.get("task_options"))))
    betas = any(stage.fields.get("betas") is not None for stage in run.stages)
    header = ["stage", "batch, samples", "steps", "peak lr", "warm-up", "then", "moments"]
    header += [name.replace("_", " ") for name in options]
    header += ["betas"] if betas else []
    rows = []
    for number, stage in enumerate(run.stages):
        schedule = _mapping(stage.fields.get("schedule"))
        own = _mapping(stage.fields.get("task_options"))
        row = [
            stage.name,
            f"{stage.global_batch_samples:,}",
            f"{stage.steps:,}",
            shown(stage.fields.get("peak_lr")),
            _warmup(schedule),
            _shape(schedule),
            _moments(run, number, stage.name),
            *(shown(own.get(name)) for name in options),
        ]
        rows.append((*row, *([shown(stage.fields.get("betas"))] if betas else [])))
    return Table(header=tuple(header), rows=tuple(rows))


def _moments(run: RunFolder, number: int, name: str) -> str:
    if number == 0:
        return "new"
    if name in run.moments:
        return run.moments[name]
    reset = bool(run.stages[number].fields.get("reset_moments"))
    return f"to be {'reset' if reset else 'kept'}"


def _warmup(schedule: dict[str, Any]) -> str:
    warmup, offset = schedule.get("warmup_steps"), schedule.get("offset_steps")
    if not isinstance(warmup, int):
        return "–"
    if isinstance(offset, int) and offset > 0:
        left = max(0, warmup - offset)
        return f"{wording.plural(left, 'step')} left" if left else "none: goes on"
    start = schedule.get("start_factor") or 0
    return f"{wording.plural(warmup, 'step')} from {shown(start)}" if warmup else "none"


def _shape(schedule: dict[str, Any]) -> str:
    shape = schedule.get("shape")
    if shape is None:
        return "–"
    words = str(shape)
    if shape == "polynomial":
        words += f", power {shown(schedule.get('power'))}"
    elif shape == "step":
        words += f", × {shown(schedule.get('gamma'))} at {shown(schedule.get('milestone_steps'))}"
    if schedule.get("end_factor"):
        words += f", to {shown(schedule['end_factor'])}"
    if schedule.get("decay_origin") == "start":
        words += ", from step 0"
    if isinstance(schedule.get("span_steps"), int):
        words += f", over {schedule['span_steps']:,} steps in all"
    return words


def sections(run: RunFolder) -> list[tuple[str, Fields]]:
    """Return titled lists of (name, value): task, optimizer, options of the run, versions and machine."""
    record = run.record
    options = record["run"]
    rest = {name: value for name, value in options.items() if name not in ("task", "stages", "optimizer")}
    machine = {
        "CPU": record.get("cpu"),
        "GPU": record.get("gpu") or "none",
        "commit": record.get("commit") or "not from a working copy",
        **_mapping(record.get("versions")),
    }
    whole = {
        "recipe": record.get("recipe"),
        "parameters": record.get("parameters"),
    }
    found = [
        ("Task", _fields({**whole, **_mapping(options.get("task"))})),
        ("Optimizer", _fields(_mapping(options.get("optimizer")))),
        ("Run", _fields(rest)),
        ("Machine and versions", _fields(machine)),
    ]
    return [(title, fields) for title, fields in found if fields]


def session_table(run: RunFolder) -> Table:
    """Return one row for each start or resume."""
    sessions = run.record.get("sessions")
    sessions = [_mapping(session) for session in sessions] if isinstance(sessions, list) else []
    known = ("started", "from_step", "ranks", "threads")
    others = list(dict.fromkeys(name for session in sessions for name in session if name not in known))
    rows = []
    for own in sessions:
        start = own.get("from_step")
        begun = "resumed" if isinstance(start, int) and start > 0 else "started"
        when = shown(own.get("started")).replace("T", " ").replace("+00:00", " UTC")
        row = [when, begun, shown(start), shown(own.get("ranks")), shown(own.get("threads"))]
        rows.append((*row, *(shown(own.get(name)) for name in others)))
    header = ("when", "what", "after step", "processes", "threads each")
    return Table(header=(*header, *(name.replace("_", " ") for name in others)), rows=tuple(rows))


def command(run: RunFolder) -> str:
    """Return the command that repeats the run, quoted for a shell."""
    record = run.record
    overrides = record.get("overrides")
    if isinstance(overrides, dict):
        words = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    else:
        words = [str(word) for word in overrides] if isinstance(overrides, list) else []
    sessions = record.get("sessions")
    last = _mapping(sessions[-1]) if isinstance(sessions, list) and sessions else {}
    ranks = last.get("ranks")
    start = "largebatch train"
    if isinstance(ranks, int) and ranks > 1:
        start = f"torchrun --nproc-per-node {ranks} -m largebatch train"
    name = str(record.get("recipe_name") or record.get("recipe"))
    return f"{start} {shlex.join([name, *words])}"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _fields(values: dict[str, Any]) -> Fields:
    return tuple((str(name).replace("_", " "), shown(value)) for name, value in values.items())


def shown(value: Any) -> str:
    """Write a JSON value for a reader: yes and no, numbers with separators, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
