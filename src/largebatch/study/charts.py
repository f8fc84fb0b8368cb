"""The figures of a study as data: traces with their colours, and the numbers of each as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.report.charts import Table
from largebatch.report.markup import plot_text
from largebatch.report.wording import count, percent, significant
from largebatch.samples_to_target import Growth
from largebatch.study.findings import ArmResult, Findings
from largebatch.study.ledger import Trial
from largebatch.study.plan import Study
from largebatch.study.space import Interval, Search, Value, shown

_COLOURS = ("blue", "orange", "green", "purple", "grey")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_FEW_EVALUATIONS = 3
_BELOW = -0.09
"""Where a trial without a score ends on the axis of scores, whose numbers lie from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure: what the script draws, what it shows in a sentence, and its numbers."""

    identifier: str
    title: str
    unit: str
    caption: str
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    traces: tuple[Mapping[str, Any], ...]
    table: Table
    height: int = 380

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(Name, classes of the swatch) of what can be switched off."""
        found = {one["name"]: f"{one['colour']}{'' if one['dash'] == 'solid' else ' dashed'}" for one in self.traces}
        return list(found.items())

    def data(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return {"id": self.identifier, "x": dict(self.x), "y": dict(self.y), "traces": [dict(t) for t in self.traces]}


def score_text(study: Study, value: float | None) -> str:
    """Return a score as people read it."""
    if value is None or not math.isfinite(value):
        return "–"
    return percent(value) if study.percent else significant(value)


def score_name(study: Study) -> str:
    """Return the score's name as people read it."""
    return study.score.replace("_", " ")


def figures(found: Findings) -> list[StudyFigure]:
    """Return all figures that there is something to draw in."""
    made = [_scores(found), _curves(found), _targets(found), _trials(found)]
    return [figure for figure in made if figure is not None]


class _Styles:
    """Colour, mark and dash of each method, so that no two agree in all three, and none by its colour alone."""

    def __init__(self, study: Study) -> None:
        self._number = {name: number for number, name in enumerate(study.methods)}
        batches = sorted({arm.batch for arm in study.arms if arm.batch is not None})
        self._batch = {batch: number for number, batch in enumerate(batches)}

    def of(self, method: str) -> dict[str, str]:
        number = self._number[method]
        return {
            "colour": _COLOURS[number % len(_COLOURS)],
            "symbol": _SYMBOLS[number % len(_SYMBOLS)],
            "dash": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        }

    def of_arm(self, method: str, batch: int | None, alone: bool) -> dict[str, str]:
        style = self.of(method)
        if batch is None:
            return style
        number = self._batch[batch]
        if alone:  # one method: its batches are told apart by colour
            style |= {"colour": _COLOURS[number % len(_COLOURS)], "symbol": _SYMBOLS[number % len(_SYMBOLS)]}
        return style | {"dash": _DASHES[number % len(_DASHES)]}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": title, **more}


def _score_axis(study: Study, title: str | None = None) -> dict[str, Any]:
    return _axis(title or score_name(study), percent=study.percent)


def _batch_axis(batches: Sequence[int]) -> dict[str, Any]:
    return _axis("batch", log=True, values=list(batches), texts=[f"{batch:,}" for batch in batches])


# --- scores -----------------------------------------------------------------------------------------


def _scores(found: Findings) -> StudyFigure | None:
    study, styles = found.study, _Styles(found.study)
    rows = [(one, scores) for one in found.arms if (scores := one.scores(study)) is not None]
    rows = [(one, scores) for one, scores in rows if scores.finished]
    if not rows:
        return None
    batches = sorted({one.arm.batch for one, _ in rows if one.arm.batch is not None})
    over_batches = len(batches) > 1
    names = list(dict.fromkeys(one.arm.name for one, _ in rows))
    traces: list[dict[str, Any]] = []
    for method in study.methods:
        own = [(one, scores) for one, scores in rows if one.arm.method == method]
        if over_batches:
            own = sorted(
                (pair for pair in own if pair[0].arm.batch is not None), key=lambda pair: pair[0].arm.batch or 0
            )
        if not own:
            continue
        places = [one.arm.batch if over_batches else names.index(one.arm.name) for one, _ in own]
        intervals = [scores.interval() for _, scores in own]
        means = [scores.mean or 0.0 for _, scores in own]  # there is one: those without were left out
        marks = {"name": plot_text(method), **styles.of(method)}
        of_seeds = [(place, value) for place, (_, scores) in zip(places, own, strict=True) for value in scores.finished]
        seeds = {**marks, "mode": "markers", "size": 5, "opacity": 0.45, "hover": "seed"}
        mean = {
            **marks,
            "mode": "lines+markers" if over_batches else "markers",
            "size": 9,
            "hover": "mean",
            "low": [None if span is None else m - span[0] for span, m in zip(intervals, means, strict=True)],
            "high": [None if span is None else span[1] - m for span, m in zip(intervals, means, strict=True)],
        }
        for trace, xs, ys in (
            (seeds, [place for place, _ in of_seeds], [value for _, value in of_seeds]),
            (mean, places, means),
        ):
            traces.append({**trace, "x": xs if over_batches else ys, "y": ys if over_batches else xs})
    categories = {"values": list(range(len(names))), "texts": list(map(plot_text, names)), "reversed": True}
    return StudyFigure(
        identifier="scores",
        title=f"{score_name(study)[:1].upper()}{score_name(study)[1:]}" + (" by batch" if over_batches else ""),
        unit="mean over seeds with its 95 % interval, and each seed",
        caption="Each mark is the best point of an arm's search, run with other seeds than the one that chose it.",
        x=_batch_axis(batches) if over_batches else _score_axis(study),
        y=_score_axis(study, "") if over_batches else _axis("", **categories),
        traces=tuple(traces),
        table=_score_table(study, rows),
        height=400 if over_batches else 90 + 34 * len(names),
    )


def _score_table(study: Study, rows: Sequence[tuple[ArmResult, Any]]) -> Table:
    return Table(
        header=("arm", "mean", "each seed"),
        rows=tuple(
            (
                one.arm.name,
                score_text(study, scores.mean),
                ", ".join(score_text(study, value) if value is not None else "diverged" for value in scores.of_seeds),
            )
            for one, scores in rows
        ),
    )


# --- learning curves --------------------------------------------------------------------------------


def _curves(found: Findings) -> StudyFigure | None:
    study, styles = found.study, _Styles(found.study)
    seeds = [trial for one in found.arms for trial in one.seeds.values()]
    if not seeds:
        return None
    evaluated = float(np.median([len(trial.evaluations) for trial in seeds])) >= _FEW_EVALUATIONS
    alone = len(study.methods) == 1
    traces: list[dict[str, Any]] = []
    rows = []
    for one in found.arms:
        curves = [_curve(trial, evaluated) for trial in one.seeds.values()]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        marks = {
            "name": plot_text(one.arm.name),
            **styles.of_arm(one.arm.method, one.arm.batch, alone),
            "mode": "lines",
        }
        thin_x: list[float | None] = []
        thin_y: list[float | None] = []
        for curve in curves:
            thin_x += [*(x for x, _ in curve), None]
            thin_y += [*(y for _, y in curve), None]
        traces.append({**marks, "x": thin_x, "y": thin_y, "width": 1, "opacity": 0.3})
        middle = _mean_curve(curves)
        traces.append(
            {**marks, "x": [x for x, _ in middle], "y": [y for _, y in middle], "width": 2.2, "hover": "mean"}
        )
        last = middle[-1] if middle else curves[0][-1]
        rows.append((one.arm.name, count(last[0]), significant(last[1])))
    if not traces:
        return None
    name = score_name(study) if evaluated else "training loss"
    return StudyFigure(
        identifier="curves",
        title="Learning curves",
        unit=f"{name} over samples seen",
        caption="The seeds of each arm's best point; the strong line is their mean, as far as all of them go.",
        x=_axis("samples"),
        y=_score_axis(study, "") if evaluated else _axis("", log=True),
        traces=tuple(traces),
        table=Table(header=("arm", "samples", f"{name}, mean at the end"), rows=tuple(rows)),
    )


def _curve(trial: Trial, evaluated: bool) -> list[tuple[float, float]]:
    if evaluated:
        return [(samples, score) for _, samples, score in trial.evaluations if score is not None]
    return [(samples, loss) for samples, loss in trial.losses]


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    common = set.intersection(*({x for x, _ in curve} for curve in curves))
    of = [dict(curve) for curve in curves]
    return [(x, float(f"{np.mean([one[x] for one in of]):.6g}")) for x in sorted(common)]


# --- samples to the target --------------------------------------------------------------------------


def _targets(found: Findings) -> StudyFigure | None:
    study, styles = found.study, _Styles(found.study)
    if study.target is None:
        return None
    traces: list[dict[str, Any]] = []
    rows = []
    batches = sorted({one.arm.batch for one in found.arms if one.arm.batch is not None})
    if len(batches) < 2:
        return None
    for method in study.methods:
        marks = {"name": plot_text(method), **styles.of(method)}
        xs, ys = [], []
        for one in found.arms:
            if one.arm.method != method or one.arm.batch is None or not one.seeds:
                continue
            reached = one.to_target(study)
            told = ", ".join("not reached" if samples is None else f"{samples:,}" for samples in reached)
            rows.append((one.arm.name, told))
            xs += [one.arm.batch for samples in reached if samples is not None]
            ys += [samples for samples in reached if samples is not None]
        if xs:
            traces.append({**marks, "mode": "markers", "x": xs, "y": ys, "size": 8, "hover": "seed"})
        growth = found.growth.get(method)
        if isinstance(growth, Growth):
            line = np.geomspace(min(batches), max(batches), 40)
            fitted = [float(f"{growth.samples(batch):.5g}") for batch in line]
            at = [float(f"{batch:.5g}") for batch in line]
            traces.append({**marks, "mode": "lines", "x": at, "y": fitted, "width": 1.5, "hover": "fit"})
    if not traces:
        return None
    return StudyFigure(
        identifier="targets",
        title=f"Samples to {score_text(study, study.target)}",
        unit="each seed, and E(B) = E_min (1 + B / B_crit)",
        caption="Samples seen when an evaluation first reached the target; seeds that never did are in the numbers.",
        x=_batch_axis(batches),
        y=_axis("samples", log=True),
        traces=tuple(traces),
        table=Table(header=("arm", "samples of each seed"), rows=tuple(rows)),
    )


# --- every trial of the search ----------------------------------------------------------------------


def _trials(found: Findings) -> StudyFigure | None:
    study, styles = found.study, _Styles(found.study)
    tried = [(one, trial) for one in found.arms for trial in one.tuning.values()]
    if not tried:
        return None
    names = _option_names(found)
    scales = {name: _Scale.of(name, found, [t.point[name] for _, t in tried if name in t.point]) for name in names}
    scored = [trial.score for _, trial in tried if trial.score is not None]
    last = _Scale(values=(min(scored), max(scored)) if scored else (0.0, 1.0), log=False, choices=())
    by_trace: dict[tuple[str, bool, bool], tuple[list[float | None], list[float | None]]] = {}
    for one, trial in tried:
        best = one.best is not None and trial is one.tuning.get(one.best)
        xs, ys = by_trace.setdefault((one.arm.method, trial.score is not None, best), ([], []))
        for number, name in enumerate(names):
            if name in trial.point:
                xs.append(number)
                ys.append(scales[name].share(trial.point[name]))
        xs += [len(names), None]
        ys += [_BELOW if trial.score is None else last.share(trial.score), None]
    faint = max(0.12, min(0.6, 25 / len(tried)))
    traces = tuple(
        {
            "name": plot_text(method),
            **styles.of(method),
            **({} if ended else {"dash": "dot"}),
            "mode": "lines",
            "x": xs,
            "y": ys,
            "width": 3 if best else 1.2,
            "opacity": 1 if best else faint,
        }
        for (method, ended, best), (xs, ys) in sorted(by_trace.items(), key=lambda item: item[0][2])
    )
    axes = [(name.replace("_", " "), scales[name].ends()) for name in names]
    axes.append((score_name(study), (score_text(study, last.values[0]), score_text(study, last.values[1]))))
    return StudyFigure(
        identifier="trials",
        title="Every trial of the search",
        unit="a line each, from its point to its score",
        caption="Strong: the best of an arm. Dotted, ending below the scores: diverged or ended early.",
        x=_axis(
            "", values=list(range(len(axes))), texts=[name for name, _ in axes], parallel=[ends for _, ends in axes]
        ),
        y=_axis("", hidden=True),
        traces=traces,
        table=_best_rows(trial_table(found)),
        height=420,
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where a value lies on an axis, 0 at its foot and 1 at its head."""

    values: tuple[float, float]
    log: bool
    choices: tuple[Value, ...]

    @classmethod
    def of(cls, name: str, found: Findings, values: Sequence[Value]) -> "_Scale":
        dimensions = [one.space.get(name) for one in (arm.arm.search for arm in found.arms) if isinstance(one, Search)]
        if any(isinstance(value, bool | str) for value in values):
            return cls(values=(0.0, 1.0), log=False, choices=tuple(dict.fromkeys(values)))
        numbers = [float(value) for value in values]
        log = min(numbers) > 0 and any(isinstance(one, Interval) and one.scale == "log" for one in dimensions)
        return cls(values=(min(numbers), max(numbers)), log=log, choices=())

    def share(self, value: Value) -> float:
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self.values
        assert not isinstance(value, str)
        number = float(value)
        if self.log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return 0.5 if high == low else round((number - low) / (high - low), 4)

    def ends(self) -> tuple[str, str]:
        if self.choices:
            return shown(self.choices[0]), shown(self.choices[-1])
        return shown(self.values[0]), shown(self.values[1])


def _best_rows(every: Table) -> Table:
    """Return the best of each arm; all trials stand in a table of their own below the figures."""
    return Table(header=every.header, rows=tuple(row for row in every.rows if row[-1]))


def _option_names(found: Findings) -> list[str]:
    """Return the options that are searched, in the order in which they are declared."""
    tried = (trial for one in found.arms for trial in one.tuning.values())
    return list(dict.fromkeys(name for trial in tried for name in trial.point))


def trial_table(found: Findings) -> Table:
    """Return every trial of the search, diverged and pruned ones among them, by arm and point."""
    study, names = found.study, _option_names(found)
    rows = []
    for one in found.arms:
        for number, trial in sorted(one.tuning.items()):
            values = (shown(trial.point[name]) if name in trial.point else "–" for name in names)
            end = trial.state if trial.score is None else score_text(study, trial.score)
            best = "best" if one.best == number else ""
            rows.append((one.arm.name, *values, end, best))
    return Table(header=("arm", *(name.replace("_", " ") for name in names), score_name(study), ""), rows=tuple(rows))
