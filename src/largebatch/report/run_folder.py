"""A run folder as it is read: run.json as it stands, metrics.jsonl as columns of numbers.

Columns, because a run of a million steps would fill the memory as dictionaries. A number that is missing or was
not finite (null) is NaN.
"""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch.errors import InputError
from largebatch.train.ledger import numbered_lines
from largebatch.train.run_record import read_run_record

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of run.json, and where it lies: it covers the steps first_step + 1 ... last_step of the run."""

    name: str
    global_batch_samples: int
    steps: int
    first_step: int
    last_step: int
    first_samples: int
    last_samples: int
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One measurement on held-out data, after ``step`` steps."""

    step: int
    samples: float
    stage: str
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainSteps:
    """The "train" lines as columns of equal length; ``losses`` has one column for each term."""

    step: Numbers
    samples: Numbers
    tokens: Numbers
    loss: Numbers
    lr: Numbers
    grad_norm: Numbers
    seconds: Numbers
    samples_per_second: Numbers
    flops_per_second: Numbers
    utilisation: Numbers
    skipped: Numbers
    gradient_square: Numbers
    covariance_trace: Numbers
    losses: dict[str, Numbers]

    def __len__(self) -> int:
        return len(self.step)

    @property
    def noise_told(self) -> NDArray[np.bool_]:
        """Whether each step has both estimates of its gradient's noise, and finite ones."""
        return np.isfinite(self.gradient_square) & np.isfinite(self.covariance_trace)

    def between(self, first_step: int, last_step: int) -> NDArray[np.bool_]:
        """Return which of them are the steps first_step + 1 ... last_step."""
        return (self.step > first_step) & (self.step <= last_step)


@dataclass(frozen=True, kw_only=True)
class LayerRatios:
    """The "layers" lines: trust ratios [layers, records], NaN where a layer took no step or is not adapted."""

    step: Numbers
    names: tuple[str, ...]
    ratios: Numbers


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """The "layers" lines: estimates of |g|^2 and tr(Sigma) [layers, records], NaN where they were not measured."""

    step: Numbers
    names: tuple[str, ...]
    gradient_square: Numbers
    covariance_trace: Numbers


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a run folder tells."""

    folder: Path
    record: dict[str, Any]
    stages: tuple[PlannedStage, ...]
    train: TrainSteps
    evaluations: tuple[Evaluation, ...]
    layers: LayerRatios
    noise: LayerNoise
    moments: dict[str, str]
    """Stage name -> "kept" or "reset", for the stages that have begun."""
    skips: tuple[tuple[int, str], ...]
    """(step, first tensor that was not finite) of each skipped step."""

    @property
    def planned_steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].last_step

    @property
    def steps_taken(self) -> int:
        """The last step that was recorded, 0 if there is none."""
        return int(self.train.step[-1]) if len(self.train) else 0

    @property
    def last_evaluation(self) -> Evaluation | None:
        """The measurement after the last planned step; None where the run has not come to its end."""
        if not self.evaluations or self.evaluations[-1].step < self.planned_steps:
            return None
        return self.evaluations[-1]

    def samples_at(self, steps: Numbers) -> Numbers:
        """Return the samples seen after each of these steps, exactly, from the stages' batches."""
        edges = [0.0, *(float(stage.last_step) for stage in self.stages)]
        totals = [0.0, *(float(stage.last_samples) for stage in self.stages)]
        return np.interp(steps, edges, totals)

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """Read run.json and metrics.jsonl.

        Raises:
            InputError: one of them is missing or damaged, or of another format version.
        """
        record = _read_record(folder)
        gathered = _Gathered()
        for number, line in numbered_lines(folder / "metrics.jsonl"):
            try:
                gathered.add(line)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(
                    f"{folder / 'metrics.jsonl'}, line {number}: a field is missing or ill-typed"
                ) from error
        return cls(
            folder=folder,
            record=record,
            stages=_planned_stages(folder / "run.json", record),
            train=gathered.train_steps(),
            evaluations=tuple(gathered.evaluations),
            layers=gathered.layer_ratios(),
            noise=gathered.layer_noise(),
            moments=gathered.moments,
            skips=tuple(gathered.skips),
        )


def _read_record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, a run folder with run.json and metrics.jsonl is needed")
    for name in ("run.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}, the folder of a run is needed")
    return read_run_record(folder)


def _planned_stages(path: Path, record: dict[str, Any]) -> tuple[PlannedStage, ...]:
    stages: list[PlannedStage] = []
    step = samples = 0
    try:
        for fields in record["run"]["stages"]:
            steps, batch = int(fields["steps"]), int(fields["global_batch_samples"])
            if steps < 1 or batch < 1:
                raise ValueError("a stage has steps and samples")
            stages.append(
                PlannedStage(
                    name=str(fields["name"]),
                    global_batch_samples=batch,
                    steps=steps,
                    first_step=step,
                    last_step=step + steps,
                    first_samples=samples,
                    last_samples=samples + steps * batch,
                    fields=dict(fields),
                )
            )
            step, samples = stages[-1].last_step, stages[-1].last_samples
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: it names no stages with steps and a global batch") from error
    if not stages:
        raise InputError(f"{path} is damaged: it names no stages with steps and a global batch")
    return tuple(stages)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


_TRAIN_COLUMNS = (
    *("samples", "tokens", "loss", "lr", "grad_norm", "seconds", "samples_per_second"),
    *("flops_per_second", "utilisation", "skipped", "gradient_square", "covariance_trace"),
)


@dataclass
class _Gathered:
    """The lines read so far."""

    step: array = field(default_factory=lambda: array("d"))
    columns: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in _TRAIN_COLUMNS})
    losses: dict[str, array] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    layer_step: array = field(default_factory=lambda: array("d"))
    ratios: dict[str, array] = field(default_factory=dict)
    gradient_squares: dict[str, array] = field(default_factory=dict)
    covariance_traces: dict[str, array] = field(default_factory=dict)
    moments: dict[str, str] = field(default_factory=dict)
    skips: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Sort one line in; kinds that are not known are passed over."""
        kind = line.get("kind")
        if kind == "train":
            _append(self.losses, line.get("losses") or {}, len(self.step))
            self.step.append(int(line["step"]))
            for name, column in self.columns.items():
                column.append(_number(line.get(name)))
        elif kind == "eval":
            self.evaluations.append(
                Evaluation(
                    step=int(line["step"]),
                    samples=_number(line.get("samples")),
                    stage=str(line.get("stage")),
                    loss=_number(line.get("loss")),
                    metrics={str(name): _number(value) for name, value in (line.get("metrics") or {}).items()},
                )
            )
        elif kind == "layers":
            _append(self.ratios, line["ratios"], len(self.layer_step))
            for columns, name in (
                (self.gradient_squares, "gradient_squares"),
                (self.covariance_traces, "covariance_traces"),
            ):
                _append(columns, line.get(name) or {}, len(self.layer_step))
            self.layer_step.append(int(line["step"]))
        elif kind == "stage":
            self.moments[str(line["stage"])] = str(line["moments"])
        elif kind == "skip":
            self.skips.append((int(line["step"]), str(line.get("tensor"))))

    def train_steps(self) -> TrainSteps:
        length = len(self.step)
        columns = {name: np.array(column) for name, column in self.columns.items()}
        losses = {name: _padded(column, length) for name, column in self.losses.items()}
        return TrainSteps(step=np.array(self.step), losses=losses, **columns)

    def layer_ratios(self) -> LayerRatios:
        length = len(self.layer_step)
        return LayerRatios(
            step=np.array(self.layer_step), names=tuple(self.ratios), ratios=_stacked(self.ratios, length)
        )

    def layer_noise(self) -> LayerNoise:
        length = len(self.layer_step)
        return LayerNoise(
            step=np.array(self.layer_step),
            names=tuple(self.gradient_squares),
            gradient_square=_stacked(self.gradient_squares, length),
            covariance_trace=_stacked(self.covariance_traces, length),
        )


def _append(columns: dict[str, array], values: dict[str, Any], length: int) -> None:
    """Append to each named column, filling with NaN the lines in which its name was missing."""
    for name, value in values.items():
        column = columns.setdefault(str(name), array("d"))
        column.extend([math.nan] * (length - len(column)))
        column.append(_number(value))


def _stacked(columns: dict[str, array], length: int) -> Numbers:
    rows = [_padded(column, length) for column in columns.values()]
    return np.stack(rows) if rows else np.empty((0, length))


def _padded(column: array, length: int) -> Numbers:
    return np.pad(np.array(column), (0, length - len(column)), constant_values=np.nan)
