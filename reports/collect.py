"""Gather runs into what a report commits: their last scores over seeds, as JSON and as a table.

    python reports/collect.py reports/minilm/results.json 8000=runs/minilm/8000 2000=runs/minilm/2000
    python reports/collect.py reports/advice/bert/results.json --scores nsp_accuracy,mlm_loss 64=runs/bert-64

Each word is LABEL=FOLDER, where FOLDER holds the runs seed-0, seed-1 and so on, or is a single run. Runs that the JSON
has already, of other labels or other seeds, stay in it: those of a report may come from several machines. The table
stands in the README.md beside the JSON, between the lines <!-- scores --> and <!-- /scores -->. All scores are kept, or
those that are named; the last is shown of each seed too.
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from largebatch.report.run_folder import RunFolder

DIGITS = 2

Groups = dict[str, list[dict[str, Any]]]
"""Label -> runs, by seed."""


def read_run(folder: Path) -> dict[str, Any]:
    """Return a finished run's seed, scores and birth certificate.

    Raises:
        ValueError: the run has not come to its end.
    """
    run = RunFolder.read(folder)
    if run.last_evaluation is None:
        raise ValueError(f"{folder} has not come to its end")
    record = run.record
    session = record["sessions"][-1]
    words = [Path(word).name if word.startswith("/") else word for word in record["overrides"]]
    return {
        "seed": record["run"]["seed"],
        "scores": run.last_evaluation.metrics,
        "command": " ".join(["largebatch train", record["recipe_name"], *words]),
        "steps": run.planned_steps,
        "commit": record["commit"],
        "cpu": record["cpu"],
        "threads": session["threads"],
        "kernels": session.get("kernels"),  # of an optimizer of ours; they differ in their last bits
        "versions": record["versions"],
        "date": session["started"][:10],
    }


def gather(words: list[str], scores: list[str] | None = None) -> Groups:
    """Return label -> runs, by seed, with all scores or with those of these names."""
    found = {}
    for word in words:
        label, _, folder = word.rpartition("=")
        seeds = sorted(Path(folder).glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        runs = [read_run(path) for path in seeds or [Path(folder)]]
        kept = scores or list(runs[0]["scores"])
        found[label] = [{**run, "scores": {name: run["scores"][name] for name in kept}} for run in runs]
    return found


def merged(held: Groups, found: Groups) -> Groups:
    """Return both together, by label and seed; of two with the same seed, what was found."""
    both = {}
    for label in [*held, *(label for label in found if label not in held)]:
        by_seed = {run["seed"]: run for run in [*held.get(label, []), *found.get(label, [])]}
        both[label] = [by_seed[seed] for seed in sorted(by_seed)]
    return both


def over_seeds(values: list[float]) -> str:
    """Return mean and standard deviation; of one value, the value."""
    mean = f"{statistics.mean(values):.{DIGITS}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{DIGITS}f}"


def table(groups: Groups) -> str:
    """Return a table in Markdown: one row for each label, the scores that all runs have, over seeds and one by one.

    A seed that diverged, which has no scores, is named as such and stands in no mean.
    """
    names = list(next(run for runs in groups.values() for run in runs if "scores" in run)["scores"])
    header = ["", "seeds", *names, f"{names[-1]} of each seed"]
    lines = [header, ["---"] * len(header)]
    for label, runs in groups.items():
        ended = [run["scores"] for run in runs if "scores" in run]
        count = str(len(runs)) if len(ended) == len(runs) else f"{len(ended)} of {len(runs)}"
        means = [over_seeds([scores[name] for scores in ended]) for name in names]
        each = (f"{run['scores'][names[-1]]:.{DIGITS}f}" if "scores" in run else "diverged" for run in runs)
        lines.append([label, count, *means, ", ".join(each)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_in_percent(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the top-1 accuracy in percent for its scores; one that diverged as it is."""
    return record if "diverged" in record else {"scores": {"accuracy": 100 * record["scores"]["top1_accuracy"]}}


def insert(page: str, text: str, mark: str = "scores") -> str:
    """Return the page with the text between its two marks."""
    between = rf"(<!-- {mark} -->\n).*(<!-- /{mark} -->)"
    return re.sub(between, lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL)


def main(words: list[str]) -> None:
    """Write the JSON and the table."""
    target, scores = Path(words[0]), None
    if words[1:2] == ["--scores"]:
        scores = words[2].split(",")
        words = [words[0], *words[3:]]
    held = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    groups = merged(held, gather(words[1:], scores))
    target.write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
    page = target.parent / "README.md"
    page.write_text(insert(page.read_text(encoding="utf-8"), table(groups)), encoding="utf-8")
    print(table(groups))


if __name__ == "__main__":
    main(sys.argv[1:])
