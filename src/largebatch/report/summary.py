"""The head of the page: what was trained, on what, how far it got, and the figures that decide."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.report import wording
from largebatch.report.run_folder import Evaluation, PlannedStage, RunFolder


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One key figure beside the figure it must be judged by."""

    title: str
    value: float
    shown: str
    baseline: float
    baseline_name: str
    baseline_shown: str
    verdict: str
    good: bool


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A plain figure of the run; ``note`` stands small below it."""

    title: str
    shown: str
    note: str = ""


def is_complete(run: RunFolder) -> bool:
    """Return whether every planned step was taken."""
    return run.steps_taken >= run.planned_steps


def status(run: RunFolder) -> str:
    """Say in a few words how far the run got."""
    if is_complete(run):
        return "Complete"
    if run.steps_taken == 0:
        return "No step recorded yet"
    return f"Unfinished: step {run.steps_taken:,} of {run.planned_steps:,}"


def sentences(run: RunFolder) -> list[str]:
    """Say what was trained, how, and what came of it, a paragraph each."""
    return [sentence for sentence in (_what(run), _how_far(run), _verdict(run)) if sentence]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _what(run: RunFolder) -> str:
    task = run.record["run"].get("task")
    task = task if isinstance(task, dict) else {}
    terms = run.train.losses.keys()
    model = "A BERT" if terms & {"mlm", "span"} else "A GPT" if "lm" in terms else "A model"
    parameters = run.record.get("parameters")
    if isinstance(parameters, int):
        model += f" of {wording.rounded_count(parameters)} parameters"
    layers, units = task.get("layers"), task.get("hidden_size")
    if isinstance(layers, int) and isinstance(units, int):
        model += f" ({wording.plural(layers, 'layer')} of {units:,} units)"
    corpus = next((text for name in ("corpus", "dataset", "images", "data") if (text := _text(task.get(name)))), None)
    if "span" in terms and (questions := _text(task.get("train"))):
        corpus = questions
    source = f" on {Path(corpus).name or corpus}" if corpus else ""
    optimizer = _text(run.record.get("optimizer_name"))
    rule = f" with {optimizer}" if optimizer else ""
    stages = wording.listed([_stage_words(stage) for stage in run.stages])
    return f"{model}, trained{source}{rule} in {wording.plural(len(run.stages), 'stage')}: {stages}."


def _stage_words(stage: PlannedStage) -> str:
    options = stage.fields.get("task_options")
    length = options.get("sequence_length") if isinstance(options, dict) else None
    at_length = f" at sequence length {length:,}" if isinstance(length, int) else ""
    return f"{wording.plural(stage.steps, 'step')} of {wording.plural(stage.global_batch_samples, 'sample')}{at_length}"


def _how_far(run: RunFolder) -> str | None:
    if run.steps_taken == 0:
        return None
    seen = f"{wording.count(_last(run.train.samples))} samples"
    if _has_tokens(run):
        seen += f" or {wording.rounded_count(_last(run.train.tokens))} tokens"
    machine = _text(run.record.get("gpu")) or _text(run.record.get("cpu"))
    place = f" on {machine}" if machine else ""
    done = "All" if is_complete(run) else f"{run.steps_taken:,} of"
    time = wording.duration(training_seconds(run))
    return f"{done} {run.planned_steps:,} steps are done: {seen} in {time} of optimizer steps{place}{_processes(run)}."


def _has_tokens(run: RunFolder) -> bool:
    """Return whether samples consist of tokens: an image is one, or none where it could not be read."""
    return len(run.train) > 0 and _last(run.train.tokens) > _last(run.train.samples)


def _processes(run: RunFolder) -> str:
    sessions = run.record.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict) else {}
    ranks, threads = last.get("ranks"), last.get("threads")
    if not isinstance(ranks, int):
        return ""
    words = wording.plural(ranks, "process", "processes")
    if isinstance(threads, int):
        words += f" of {wording.plural(threads, 'thread')}"
    return f" ({words})"


def _verdict(run: RunFolder) -> str | None:
    metrics = final_metrics(run)
    model, unigram = metrics.get("mlm_loss", math.nan), metrics.get("unigram_loss", math.nan)
    if not (math.isfinite(model) and math.isfinite(unigram)):
        return None
    gap = unigram - model
    if gap <= 0:
        return (
            f"On held-out text the model has not learned more than word frequencies: {wording.fixed(model, 3)} nat for "
            f"each masked token, where frequencies alone give {wording.fixed(unigram, 3)}."
        )
    return (
        f"On held-out text it gives each masked token {wording.times(math.exp(gap))} the probability that word "
        f"frequencies alone would: {wording.fixed(model, 3)} nat instead of {wording.fixed(unigram, 3)}."
    )


def _last(column: np.ndarray) -> float:
    return float(column[-1]) if len(column) else math.nan


def final_evaluation(run: RunFolder) -> Evaluation | None:
    """Return the last measurement on held-out data, if there is one."""
    return run.evaluations[-1] if run.evaluations else None


def final_metrics(run: RunFolder) -> dict[str, float]:
    """Return the metrics of the last evaluation, empty if there is none."""
    evaluation = final_evaluation(run)
    return evaluation.metrics if evaluation else {}


def training_seconds(run: RunFolder) -> float:
    """Return the sum of the steps' times; evaluation and checkpoints are not in it."""
    return float(np.nansum(run.train.seconds))


def comparisons(run: RunFolder) -> list[Comparison]:
    """Return the key figures of the last evaluation that have something to be compared with."""
    metrics = final_metrics(run)
    found = []
    model, unigram = metrics.get("mlm_loss", math.nan), metrics.get("unigram_loss", math.nan)
    if math.isfinite(model) and math.isfinite(unigram):
        gap = unigram - model
        found.append(
            Comparison(
                title="Masked-token loss, held-out",
                value=model,
                shown=f"{wording.fixed(model, 3)} nat",
                baseline=unigram,
                baseline_name="unigram",
                baseline_shown=wording.fixed(unigram, 3),
                verdict=f"{wording.fixed(abs(gap), 3)} nat {'below' if gap > 0 else 'above'} the unigram loss",
                good=gap > 0,
            )
        )
    for title, of_model, of_commonest, commonest in (
        ("Masked-token accuracy", "mlm_accuracy", "most_frequent_accuracy", "commonest token"),
        ("Top-1 accuracy", "top1_accuracy", "commonest_class_accuracy", "commonest class"),
    ):
        accuracy, frequent = metrics.get(of_model, math.nan), metrics.get(of_commonest, math.nan)
        if math.isfinite(accuracy) and math.isfinite(frequent):
            ratio = accuracy / frequent if frequent > 0 else math.inf
            found.append(
                Comparison(
                    title=f"{title}, held-out",
                    value=accuracy,
                    shown=wording.percent(accuracy),
                    baseline=frequent,
                    baseline_name=commonest,
                    baseline_shown=wording.percent(frequent),
                    verdict=f"{wording.times(ratio)} the {commonest}'s" if math.isfinite(ratio) else "from none",
                    good=accuracy > frequent,
                )
            )
    perplexity, unigrams = metrics.get("perplexity", math.nan), metrics.get("unigram_perplexity", math.nan)
    if math.isfinite(perplexity) and math.isfinite(unigrams):
        lower = perplexity < unigrams
        factor = unigrams / perplexity if lower else perplexity / unigrams
        found.append(
            Comparison(
                title="Perplexity, held-out",
                value=perplexity,
                shown=wording.significant(perplexity),
                baseline=unigrams,
                baseline_name="unigram",
                baseline_shown=wording.significant(unigrams),
                verdict=f"{wording.times(factor)} {'lower' if lower else 'higher'} than by word frequencies",
                good=lower,
            )
        )
    pairs = metrics.get("nsp_accuracy", math.nan)
    if math.isfinite(pairs):
        # Single-sentence documents can only be followed by a random sentence, so the labels are not half and half.
        majority = metrics.get("nsp_majority_accuracy", math.nan)
        baseline, name = (majority, "commoner answer") if math.isfinite(majority) else (0.5, "chance")
        points = 100 * (pairs - baseline)
        verdict = f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"
        found.append(
            Comparison(
                title="Next-sentence accuracy, held-out",
                value=pairs,
                shown=wording.percent(pairs),
                baseline=baseline,
                baseline_name=name,
                baseline_shown=wording.percent(baseline),
                verdict=f"{verdict} chance" if name == "chance" else f"{verdict} always giving it",
                good=points > 0,
            )
        )
    return found


def facts(run: RunFolder) -> list[Fact]:
    """Return the plain figures: steps, samples, tokens, time, rate, skipped steps, and loss where nothing compares."""
    train = run.train
    found = []
    evaluation = final_evaluation(run)
    if evaluation is not None and not comparisons(run):
        found += [
            Fact(title=title, shown=wording.fixed(evaluation.metrics[name], 2), note="percent, held-out")
            for title, name in (("F1", "f1"), ("Exact match", "exact_match"))
            if name in evaluation.metrics
        ]
        found.append(Fact(title="Held-out loss", shown=wording.fixed(evaluation.loss, 3)))
    skipped = int(np.nansum(train.skipped))
    seconds = training_seconds(run)
    samples = _last(train.samples)
    found += [
        Fact(title="Steps", shown=wording.count(run.steps_taken), note=f"of {run.planned_steps:,}"),
        Fact(title="Samples", shown=wording.count(samples)),
    ]
    if _has_tokens(run):
        found.append(Fact(title="Tokens", shown=wording.rounded_count(_last(train.tokens))))
    found += [
        Fact(title="Time", shown=wording.duration(seconds) if len(train) else "–", note="in optimizer steps"),
        Fact(
            title="Samples per second",
            shown=wording.significant(samples / seconds, 3) if seconds > 0 else "–",
            note="whole run",
        ),
        *_utilisation(run),
        Fact(title="Skipped steps", shown=wording.count(skipped), note="loss or gradient not finite"),
    ]
    return found


def _utilisation(run: RunFolder) -> list[Fact]:
    """Return the model's operations a second, over the whole run, where the task counted them."""
    rates, seconds = run.train.flops_per_second, run.train.seconds
    known = np.isfinite(rates) & np.isfinite(seconds) & (seconds > 0)
    if not known.any():
        return []
    total = float(seconds[known].sum())
    rate = float((rates[known] * seconds[known]).sum()) / total
    share = float((run.train.utilisation[known] * seconds[known]).sum()) / total
    return [
        Fact(
            title="Model operations per second",
            shown=wording.rounded_count(rate),
            note=f"{wording.percent(share)} of a plain product of matrices",
        )
    ]


def terminal_lines(run: RunFolder) -> list[str]:
    """Return the key figures as plain lines, for the end of a run on a terminal."""
    lines = [f"{status(run)}. {_how_far(run) or ''}".strip()]
    for item in comparisons(run):
        lines.append(f"{item.title}: {item.shown}, {item.baseline_name} {item.baseline_shown} ({item.verdict})")
    metrics = final_metrics(run)
    if "f1" in metrics and "exact_match" in metrics:
        lines.append(f"SQuAD: exact match {metrics['exact_match']:.2f}, F1 {metrics['f1']:.2f}")
    return lines
