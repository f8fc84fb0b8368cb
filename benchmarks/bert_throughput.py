"""Sequences per second of BERT pre-training: this engine beside Hugging Face's ``Trainer``.

Both train the same model from the same weights on the same batches in the same precision with the same optimizer
(LAMB, foreach), in one process, taking turns. The Trainer is given its batches ready: masks are drawn before its clock
starts, so that only the model, the loss and the loop are compared. Its model is the untouched BertForPreTraining, which
projects every position onto the vocabulary.

    python benchmarks/bert_throughput.py --size demo
    python benchmarks/bert_throughput.py --size mini
    python benchmarks/bert_throughput.py --size base

writes benchmarks/results/bert_throughput-SIZE.json.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.nn.functional import pad
from torch.utils.data import Dataset
from transformers import BertForPreTraining, Trainer, TrainerCallback, TrainingArguments

from certificate import write_result
from largebatch.bert.model import PretrainingModel
from largebatch.bert.pretraining import BertPretraining
from largebatch.recipes.bert import bert_base, bert_demo
from largebatch.recipes.optimizers import Lamb
from largebatch.schedules import Schedule
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.train.data_order import DataOrder
from largebatch.train.run import Run, Stage
from largebatch.train.step_data import read
from turns import engine_rate, summed_up


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model and batch."""

    task: BertPretraining
    sequence_length: int
    max_predictions: int
    batch: int
    microbatch: int
    vocabulary_size: int


SIZES = {
    "demo": Size(
        task=bert_demo().task,
        sequence_length=64,
        max_predictions=10,
        batch=256,
        microbatch=64,
        vocabulary_size=8192,
    ),
    "mini": Size(
        task=replace(bert_base().task, hidden_size=256, layers=4, attention_heads=4, intermediate_size=1024),
        sequence_length=128,
        max_predictions=20,
        batch=128,
        microbatch=32,
        vocabulary_size=30_522,
    ),
    "base": Size(
        task=bert_base().task,
        sequence_length=128,
        max_predictions=20,
        batch=32,
        microbatch=8,
        vocabulary_size=30_522,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["demo", "mini", "base"] = "demo"
    """Model: that of the demo, BERT-mini, or BERT-base."""
    rounds: int = 7
    """Turns of each engine."""
    steps: int = 4
    """Optimizer steps in a turn; the first of each turn is not counted."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of both."""
    corpus: Path | None = None
    """A prepared corpus; the embedded one is prepared if left out."""


def make_run(options: Options, corpus: Path) -> Run[BertPretraining, Lamb]:
    """Return a run of one stage at the size asked for."""
    size = SIZES[options.size]
    stage = Stage(
        name="only",
        global_batch_samples=size.batch,
        steps=options.steps,
        peak_lr=1e-3,
        schedule=Schedule(shape="constant"),
        task_options={"sequence_length": size.sequence_length, "max_predictions": size.max_predictions},
    )
    return Run(
        task=replace(size.task, corpus=str(corpus), held_out_pairs=1),
        stages=(stage,),
        optimizer=Lamb(foreach=True),
        precision=options.precision,
        microbatch=size.microbatch,
        layers_every_steps=10**9,
        checkpoint_every_steps=10**9,
    )


class Ready(Dataset[dict[str, torch.Tensor]]):
    """The same samples in the same order, in the Trainer's terms, built beforehand."""

    def __init__(self, run: Run[BertPretraining, Lamb]) -> None:
        stage = run.stages[0]
        data = run.task.dataset(stage, run.seed)
        order = DataOrder(seed=run.seed, stage=0, dataset_samples=len(data), global_batch_samples=1)
        samples = read(data, order.first_samples(0, stage.global_batch_samples * stage.steps))
        length = stage.task_options["sequence_length"]
        self._rows = [trainer_columns(run.task.collate([sample]), length) for sample in samples]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]


def trainer_columns(row: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Rename one collated sample to what BertForPreTraining takes, labels -100 where nothing is predicted."""
    labels = torch.full_like(row["input_ids"], -100).flatten()
    labels[row["masked_positions"]] = row["masked_labels"]
    padding = (0, length - len(labels))
    return {
        "input_ids": pad(row["input_ids"][0], padding),
        "token_type_ids": pad(row["token_type_ids"][0], padding),
        "attention_mask": pad(row["attention_mask"][0].long(), padding),
        "labels": pad(labels, padding, value=-100),
        "next_sentence_label": row["next_sentence_labels"][0],
    }


class Clock(TrainerCallback):
    """Notes the end of each optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def network_of(run: Run[BertPretraining, Lamb]) -> BertForPreTraining:
    """Return Hugging Face's model, its attention and dropout its own, with the weights that this engine starts from."""
    model = run.task.build_model(run.seed)
    assert isinstance(model, PretrainingModel)
    untouched = BertForPreTraining._from_config(model.network.config, attn_implementation="sdpa", dtype=torch.float32)
    untouched.load_state_dict(model.network.state_dict())
    return untouched.train()


def theirs(run: Run[BertPretraining, Lamb], data: Ready, microbatch: int) -> float:
    """Return the sequences per second of the Trainer, the first step left out."""
    stage = run.stages[0]
    model = network_of(run)
    optimizer = run.optimizer.build(model)
    for group in optimizer.param_groups:
        group["lr"] = stage.peak_lr
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=stage.global_batch_samples // microbatch,
            max_steps=stage.steps,
            bf16=run.precision == "bf16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_grad_norm=0.0,  # LAMB clips
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
        )
        clock = Clock()
        Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            optimizers=(optimizer, constant),
            callbacks=[clock],
        ).train()
    return stage.global_batch_samples * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0])


def main(options: Options) -> None:
    """Measure in turns, print and record."""
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus
        if corpus is None:
            corpus = Path(folder) / "corpus"
            prepare(PrepareOptions(vocabulary_size=size.vocabulary_size), corpus)
        run = make_run(options, corpus)
        data = Ready(run)
        rounds = []
        for _ in range(options.rounds):
            rounds.append({"ours": engine_rate(run), "trainer": theirs(run, data, size.microbatch)})
            print(rounds[-1], flush=True)
        vocabulary = network_of(run).config.vocab_size
    result = {
        "what": "sequences per second, BERT pre-training: ours beside transformers.Trainer",
        "size": options.size,
        "sequence_length": size.sequence_length,
        "batch": size.batch,
        "microbatch": size.microbatch,
        "vocabulary": vocabulary,
        "precision": options.precision,
        **summed_up(rounds, "trainer"),
    }
    write_result(f"bert_throughput-{options.size}{'' if options.precision == 'fp32' else '-bf16'}", result)
    print(f"ours / Trainer, median of {options.rounds} paired ratios: {result['ratio']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
