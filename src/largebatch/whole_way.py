"""From text to SQuAD's score in one command: prepare, pre-train, then fine-tune with several seeds.

RUN/               the pre-training, as without fine-tuning
RUN/model/         where each fine-tuning starts
RUN/squad/seed-N/  a run of its own, with its model and report
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from largebatch.batch import samples_for_epochs, steps_for_samples
from largebatch.bert.pretraining import BertPretraining
from largebatch.bert.squad import WindowSizes, read_questions, spread
from largebatch.errors import InputError, check_at_least, check_positive
from largebatch.recipes.squad import squad
from largebatch.text.shards import MANIFEST, read_manifest
from largebatch.train.precision import chosen_precision
from largebatch.train.run import MOST_SAMPLES, MOST_STEPS, Run
from largebatch.train.run_record import Origin, changed_options, fingerprint, read_run_record


@dataclass(frozen=True, kw_only=True)
class WholeWay:
    """What comes before and after a pre-training."""

    source: str | None = None
    """Text to prepare first, as `largebatch prepare` takes it; the corpus goes to where the recipe reads it."""
    squad_train: str | None = None
    """Questions to fine-tune on afterwards: SQuAD's JSON, or hf:NAME."""
    squad_dev: str | None = None
    """Questions to be judged by."""
    squad_seeds: int = 5
    """Fine-tunings, with the seeds 0, 1, 2 and so on."""
    squad_batch: int = 32
    """Windows in an optimizer step."""
    squad_epochs: float = 2.0
    """Passes over the training windows."""
    squad_lr: float = 3e-5
    """Peak of the learning rate."""
    squad_train_questions: int | None = None
    """Use only so many training questions, spread evenly over them."""
    squad_dev_questions: int | None = None
    """Be judged by only so many."""
    squad_sequence_length: int | None = None
    """Most tokens of a window; 384, or what the model allows."""

    @property
    def questions(self) -> tuple[str, str] | None:
        """The questions to fine-tune on and those to be judged by; None where nothing is fine-tuned."""
        if self.squad_train is None or self.squad_dev is None:
            return None
        return self.squad_train, self.squad_dev

    def check(self, run: Run[Any, Any]) -> None:
        """Raise InputError for what cannot work after days of pre-training, before they begin."""
        if (self.squad_train is None) != (self.squad_dev is None):
            lacking = "--squad-dev" if self.squad_dev is None else "--squad-train"
            raise InputError(f"{lacking} is missing: fine-tuning needs --squad-train and --squad-dev")
        if self.questions is None:
            for field in fields(self):
                if field.name.startswith("squad_") and getattr(self, field.name) != field.default:
                    name = f"--{field.name.replace('_', '-')}"
                    raise InputError(f"{name} is given, but nothing to fine-tune on: add --squad-train and --squad-dev")
        if not isinstance(run.task, BertPretraining):
            given = "--source" if self.source is not None else "--squad-train"
            if self.source is not None or self.questions is not None:
                raise InputError(
                    f"{given} needs a recipe that pre-trains BERT, the task here is {type(run.task).__name__}"
                )
            return
        if self.questions is None:
            return
        check_at_least(self, squad_seeds=1, squad_batch=1, squad_train_questions=1, squad_dev_questions=1)
        check_positive(squad_epochs=self.squad_epochs, squad_lr=self.squad_lr)
        self._check_windows(run.task.max_position_embeddings)
        if self.squad_batch > MOST_SAMPLES:
            raise InputError(f"squad_batch is {self.squad_batch}, allowed is 1 to {MOST_SAMPLES}")
        train, dev = self.questions
        kept = spread(read_questions(train, "train")[0], self.squad_train_questions, train)
        spread(read_questions(dev, "validation")[0], self.squad_dev_questions, dev)
        # Each question is a window at least; how many there are is known once there is a tokenizer.
        steps = steps_for_samples(samples_for_epochs(self.squad_epochs, len(kept)), self.squad_batch)
        if steps > MOST_STEPS:
            raise InputError(
                f"squad_epochs is {self.squad_epochs:g}, which takes {steps:,} steps, allowed is {MOST_STEPS:,}"
            )

    def _check_windows(self, longest: int) -> None:
        try:
            sizes = WindowSizes.for_model(longest, sequence_length=self.squad_sequence_length)
            sizes.check_fit(longest, "the model to be pre-trained")
        except InputError as error:
            raise InputError(f"the windows of SQuAD: {error}") from None

    def describe(self) -> Iterator[str]:
        """Yield a line on what follows the pre-training."""
        if self.questions is not None:
            yield (
                f"then SQuAD with {self.squad_seeds} seeds: {self.squad_epochs:g} epochs of {self.squad_train} at "
                f"batch {self.squad_batch}, peak lr {self.squad_lr:g}; their time is not counted"
            )

    def prepare(self, corpus: Path, *, dry: bool = False) -> Iterator[str]:
        """Prepare the text, if there is any and the corpus is not there, and yield what is to be printed.

        Raises:
            InputError: the corpus is there and of another source; the text cannot be prepared; nothing may be prepared,
                for this is a dry run, or one of several processes, which cannot wait for it.
        """
        if self.source is None:
            return
        many = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (corpus / MANIFEST).is_file():
            if (prepared_from := read_manifest(corpus).get("source")) != self.source:
                raise InputError(
                    f"{corpus} holds a corpus prepared with source {prepared_from}, not {self.source}: leave out "
                    "--source, or name another folder with --corpus"
                )
            if not many:
                yield f"{corpus} is prepared already from {self.source}; remove it to have a changed text prepared"
            return
        if dry or many:
            reason = "a dry run does not do" if dry else "many processes do not wait for"
            raise InputError(
                f"the corpus {corpus} is not prepared, which {reason}: run "
                f"`largebatch prepare --source {self.source} --out {corpus}` first"
            )
        from largebatch.prepare_display import PrepareDisplay
        from largebatch.text.options import PrepareOptions
        from largebatch.text.prepare import prepare

        with PrepareDisplay() as display:
            prepared = prepare(PrepareOptions(source=self.source), corpus, progress=display)
        yield f"prepared {prepared.train.documents:,} documents, {prepared.train.tokens:,} tokens in {corpus}"

    def fine_tunings(self, run: Run[Any, Any], folder: Path) -> Iterator[tuple[Path, Run[Any, Any], Origin]]:
        """Yield (folder, run, origin) of each fine-tuning, once the pre-training in a folder is done."""
        if self.questions is None:
            return
        train, dev = self.questions
        arguments = {
            "train": train,
            "dev": dev,
            "init_from": str(folder / "model"),
            "batch": self.squad_batch,
            "epochs": self.squad_epochs,
            "lr": self.squad_lr,
            "train_questions": self.squad_train_questions,
            "sequence_length": self.squad_sequence_length,
        }
        template = squad(**arguments)
        task = replace(template.task, dev_questions=self.squad_dev_questions)
        words = _words(arguments | {"dev_questions": self.squad_dev_questions})
        for seed in range(self.squad_seeds):
            fine_tuning = replace(
                template,
                task=task,
                seed=seed,
                precision=run.precision,
                device=run.device,
                workers=run.workers,
                compile=run.compile,
                deterministic=run.deterministic,
                keep_checkpoints=1,
            )
            origin = Origin(
                recipe="largebatch.recipes.squad:squad", recipe_name="squad", overrides=(*words, "--seed", str(seed))
            )
            yield folder / "squad" / f"seed-{seed}", fine_tuning, origin


def is_finished(folder: Path) -> bool:
    """Return whether a fine-tuning has been trained to its end, which its model is the last sign of."""
    return (folder / "model" / "config.json").is_file()


def check_alike(folder: Path, run: Run[Any, Any], words: Sequence[str], device: torch.device) -> None:
    """Raise InputError unless a finished fine-tuning is the one that would be run now, wherever its model lay.

    Args:
        folder: of the finished one.
        run: the one that would be run now.
        words: what would follow `largebatch train squad` for it, as an origin has them.
        device: where it would be run.
    """
    run = replace(run, precision=chosen_precision(run.precision, device))
    recorded = read_run_record(folder)
    changed = [field for field in changed_options(recorded, run) if not field.startswith("task.init_from ")]
    if not changed and recorded.get("data") != fingerprint(run):
        changed = ["set of questions"]
    if changed:
        raise InputError(
            f"{folder} was fine-tuned with another {_option(recorded, words) or changed[0]}, and seeds that differ in "
            f"more have no common mean: give what it had, or remove {folder.parent}"
        )


def _option(recorded: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """Return the option of the whole way that differs from what a fine-tuning was given; None where none does."""
    was, given = (dict(zip(pairs[::2], pairs[1::2], strict=False)) for pairs in (recorded["overrides"], words))
    for name in (*given, *was):
        if name != "--init-from" and was.get(name) != given.get(name):
            found = (was.get(name, "nothing"), given.get(name, "nothing"))
            return f"--squad-{name.removeprefix('--')} (recorded {found[0]}, given {found[1]})"
    return None


def _words(arguments: dict[str, Any]) -> Sequence[str]:
    words: list[str] = []
    for name, value in arguments.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words
