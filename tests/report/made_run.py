"""A run folder made up for the tests of the report: two stages, a warm-up again, deterministic noise."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    *(
        f"bert.encoder.layer.{number}.{part}.weight"
        for number in range(2)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ),
    "bert.pooler.dense.weight",
    "cls.predictions.transform.dense.weight",
]
NOT_ADAPTED = ["bert.embeddings.LayerNorm.weight", "bert.encoder.layer.0.output.dense.bias"]


def make_record(first_steps: int = 270, second_steps: int = 30, **changes: Any) -> dict[str, Any]:
    """Return run.json of a small BERT in two stages."""
    schedule = {
        "shape": "polynomial",
        "power": 1.0,
        "start_factor": 0.0,
        "end_factor": 0.0,
        "decay_origin": "warmup_end",
        "milestone_steps": [],
        "gamma": 0.1,
        "offset_steps": 0,
        "span_steps": None,
    }
    stage = {"betas": None, "reset_moments": False}
    record = {
        "format_version": 1,
        "recipe": "largebatch.recipes.bert:bert_demo",
        "recipe_name": "bert-demo",
        "overrides": ["--seed", "3", "--task.corpus", "corpora/my texts"],
        "run": {
            "task": {"corpus": "corpora/pydocs", "hidden_size": 128, "layers": 2, "attention_heads": 2, "dropout": 0.0},
            "stages": [
                {
                    **stage,
                    "name": "length-64",
                    "global_batch_samples": 256,
                    "steps": first_steps,
                    "peak_lr": 0.01,
                    "schedule": {**schedule, "warmup_steps": first_steps // 10},
                    "task_options": {"sequence_length": 64, "max_predictions": 10},
                },
                {
                    **stage,
                    "name": "length-128",
                    "global_batch_samples": 128,
                    "steps": second_steps,
                    "peak_lr": 0.01 / math.sqrt(2),
                    "schedule": {**schedule, "warmup_steps": second_steps // 3},
                    "task_options": {"sequence_length": 128, "max_predictions": 20},
                },
            ],
            "optimizer": {"betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0},
            "seed": 3,
            "precision": "fp32",
            "microbatch": 64,
        },
        "commit": "0123456789ab",
        "versions": {"python": "3.11.9", "largebatch": "0.1.0", "torch": "2.11.0", "numpy": "2.3.0"},
        "cpu": "Example CPU @ 2.40GHz",
        "gpu": None,
        "parameters": 4_416_000,
        "sessions": [
            {"started": "2025-01-02T03:04:05+00:00", "ranks": 1, "threads": 2, "from_step": 0},
            {"started": "2025-01-02T04:04:05+00:00", "ranks": 1, "threads": 2, "from_step": 120},
        ],
    }
    return {**record, **changes}


def make_lines(record: dict[str, Any], steps: int | None = None, skipped: tuple[int, ...] = (57,)) -> list[dict]:
    """Return the lines of metrics.jsonl for the first ``steps`` steps, all if None."""
    noise, of_gradients = np.random.default_rng(0), np.random.default_rng(1)
    lines: list[dict[str, Any]] = []
    step = samples = tokens = 0
    for number, stage in enumerate(record["run"]["stages"]):
        name, batch, count = stage["name"], stage["global_batch_samples"], stage["steps"]
        length, warmup = stage["task_options"]["sequence_length"], stage["schedule"]["warmup_steps"]
        lines.append({"kind": "stage", "step": step, "stage": name, "moments": "kept" if number else "reset"})
        for local in range(count):
            if step == steps:
                return lines
            step, samples, tokens = step + 1, samples + batch, tokens + batch * length
            factor = local / warmup if local < warmup else (count - local) / (count - warmup)
            mlm = 5.3 + 4.2 * math.exp(-step / 60) + 0.08 * noise.standard_normal() + 0.1 * number
            nsp = 0.62 + 0.08 * math.exp(-step / 90) + 0.02 * noise.standard_normal()
            bad = step in skipped
            seconds = (0.42 + 0.3 * number) * (1 + 0.05 * abs(noise.standard_normal()))
            lines.append(
                {
                    "kind": "train",
                    "step": step,
                    "stage": name,
                    "samples": samples,
                    "tokens": tokens,
                    "loss": None if bad else mlm + nsp,
                    "losses": {"mlm": None if bad else mlm, "nsp": nsp},
                    "lr": stage["peak_lr"] * factor,
                    "grad_norm": None if bad else 0.4 + 3 * math.exp(-step / 15) * (1 + 0.2 * noise.random()),
                    "seconds": seconds,
                    "samples_per_second": batch / seconds,
                    "skipped": int(bad),
                }
            )
            if not bad:
                square, trace = (1 + 0.3 * of_gradients.standard_normal(2)).tolist()
                lines[-1] |= {"gradient_square": 0.01 * square, "covariance_trace": (3 + step / 50) * trace}
            if bad:
                lines.append({"kind": "skip", "step": step, "stage": name, "tensor": "loss mlm", "in_a_row": 1})
            if step % 10 == 0:
                ratios: dict[str, float | None] = {
                    layer: math.exp(0.35 * row - 4 + 1.5 * math.exp(-step / 80) + 0.1 * noise.standard_normal())
                    for row, layer in enumerate(LAYERS)
                }
                names = [*LAYERS, *NOT_ADAPTED]
                shares = {name: 1 + 0.1 * of_gradients.standard_normal() for name in names}
                lines.append(
                    {
                        "kind": "layers",
                        "step": step,
                        "ratios": ratios | dict.fromkeys(NOT_ADAPTED),
                        "gradient_squares": {name: 1e-3 * share**2 for name, share in shares.items()},
                        "covariance_traces": {name: 0.1 * row * shares[name] for row, name in enumerate(names, 1)},
                    }
                )
            if step % 50 == 0 or local + 1 == count:
                held_out = 5.35 + 4.2 * math.exp(-step / 60) + 0.1 * number
                metrics = {
                    "mlm_loss": held_out,
                    "mlm_accuracy": 0.21 - 0.17 * math.exp(-step / 90),
                    "nsp_loss": 0.64,
                    "nsp_accuracy": 0.64 - 0.13 * math.exp(-step / 60),
                    "unigram_loss": 6.61 + 0.01 * number,
                    "most_frequent_accuracy": 0.046,
                }
                loss = held_out + 0.64
                lines.append(
                    {"kind": "eval", "step": step, "stage": name, "samples": samples, "loss": loss, "metrics": metrics}
                )
    return lines


def write_run(folder: Path, record: dict[str, Any], lines: list[dict[str, Any]], tail: str = "") -> Path:
    """Write the run folder and return it; ``tail`` stands behind the last whole line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder
