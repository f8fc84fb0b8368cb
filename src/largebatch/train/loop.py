"""The training loop: stages of optimizer steps over global batches, each an exact mean over its targets.

For each step, on every rank:

    exchange   N_k = sum over ranks of the target counts of all microbatches; has any rank been asked to stop?
               could the first one not write a line? has torchrun ended?
    for each microbatch:
        seed the generators from (seed, stage, step, first position)
        back-propagate  ranks * sum_k w_k S_k / N_k            (averaged over ranks after the last one)
    exchange   S_k, for the log
    if the loss and the norm of the gradient are finite:  lr <- the schedule's,  optimizer step
    otherwise: skip; the step keeps its data and its place in the schedule, the optimizer does not count it
"""

import gc
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from largebatch.errors import InputError
from largebatch.train import checkpoint
from largebatch.train.agent import AgentLost, agents_of, find_agent, is_lost
from largebatch.train.checkpoint import Progress
from largebatch.train.checkpoint_writer import CheckpointWriter
from largebatch.train.data_order import DataOrder, check_batch
from largebatch.train.distributed import SaidByFirstRank, World
from largebatch.train.finite import Diverged, first_bad_tensor
from largebatch.train.folder_lock import claimed
from largebatch.train.gradient_noise import GradientNoise, check_measurable
from largebatch.train.held_out import HeldOut
from largebatch.train.microbatch import Memory, activation_budget, check_multiple, largest_microbatch, measure
from largebatch.train.observers import Observer
from largebatch.train.parallel import SharedModel, check_sharding, recompute_activations_
from largebatch.train.passes import Passes
from largebatch.train.precision import chosen_precision
from largebatch.train.ratios import adapted_ratios
from largebatch.train.recorder import Recorder
from largebatch.train.run import Run, Stage
from largebatch.train.run_record import Origin, write_run_record
from largebatch.train.step_data import LoadedMicrobatch, MicrobatchDataset, longest_first, moved, read, steps_from
from largebatch.train.step_statistics import fold_step_statistics
from largebatch.train.stop import StopWish, listen
from largebatch.train.task import Task, TaskDataset, check_targets
from largebatch.train.utilisation import Utilisation

STOPPED_FILE = "stopped.json"
"""Lies in the run's folder from a stop that was asked for until the run goes on."""


class Outcome(Enum):
    """How a training process ended."""

    DONE = "done"
    STOPPED = "stopped"


class Training:
    """One process's part of a run: model, optimizer, progress, and the methods that advance them."""

    def __init__(
        self, run: Run[Any, Any], folder: Path, world: World, observers: Sequence[Observer], origin: Origin
    ) -> None:
        """Build the model and the optimizer; `Origin.start` is a checkpoint whose weights and state they begin with."""
        run = replace(run, precision=chosen_precision(run.precision, world.device))
        self.run, self.folder, self.world, self.origin = run, folder, world, origin
        self._recorder = Recorder(observers if world.first else [])
        self.task: Task = run.task
        self._multiple: int = getattr(self.task, "microbatch_multiple", 1)
        world.first_rank_does(self._check)
        torch.use_deterministic_algorithms(run.deterministic)
        self.model = self.task.build_model(run.seed).to(world.device)
        if run.recompute:
            recompute_activations_(self.model)
        self._shared = SharedModel(self.model, world, run.sharding, run.shard_ranks, run.gradient_compression)
        try:
            self.optimizer: Any = run.optimizer.build(self.model)
        except ValueError as error:
            raise InputError(f"the optimizer cannot be built: {error}") from error
        self._own_betas = [group.get("betas") for group in self.optimizer.param_groups]
        self.autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=run.precision == "bf16")
        if run.compile:
            self.model.compile()
        self.progress = Progress()
        self._agent, self._agent_lost = find_agent(), False
        self._noise = GradientNoise(self.model, world, run.gradient_noise)
        self._passes = Passes(self.task, self._shared, world, self.autocast, run.seed, self._noise)
        self._held_out = HeldOut(self.task, run.seed, world, self.autocast, run.workers)
        self._utilisation = Utilisation(self.task)
        self._checkpoints = CheckpointWriter(folder, run.keep_checkpoints, world)

    def _check(self) -> None:
        self.task.check(self.run.stages)
        check_sharding(self.run.sharding, self.run.shard_ranks, self.run.gradient_compression, self.world.ranks)
        for stage in self.run.stages:
            check_batch(stage.global_batch_samples, self.world.ranks)
            if self.run.gradient_noise == "on":
                self._check_noise(stage)
            if self.run.microbatch != "auto":
                check_multiple(self.run.microbatch, self._multiple, stage.global_batch_samples)

    def _check_noise(self, stage: Stage) -> None:
        dataset, batch = self.task.dataset(stage, self.run.seed), stage.global_batch_samples
        microbatch = max(batch // 2, 1) if self.run.microbatch == "auto" else self.run.microbatch
        sorts, repeats = hasattr(dataset, "lengths"), batch > len(dataset)
        check_measurable("on", stage.name, parts=-(-batch // microbatch), sorts=sorts, repeats=repeats)

    def train(self, resume: bool) -> Outcome:
        """Run from the beginning or the newest checkpoint to the end, or to a wish to stop."""
        with ExitStack() as claims:
            claim = claimed(self.folder, self.run, resume, self._say)
            self.world.first_rank_does(lambda: claims.enter_context(claim))
            self.world.check_shared(self.folder)
            with listen() as wish:
                self._open(resume)
                try:
                    outcome = self._all_stages(wish)
                    self.world.first_rank_does(self._recorder.sync)
                    self._checkpoints.finish()
                finally:
                    self._close()
            if outcome is Outcome.STOPPED and self.world.first:
                (self.folder / STOPPED_FILE).write_text(json.dumps({"step": self.progress.step}) + "\n", "utf-8")
            if outcome is Outcome.DONE:
                model = self._shared.whole(lambda: self.task.build_model(self.run.seed))
                self.world.first_rank_does(lambda: self._export(model))
        return outcome

    def _close(self) -> None:
        self._recorder.close()
        self._checkpoints.leave()
        self._shared.leave()
        gc.collect()  # of cycles too, before the world is left

    def _export(self, model: nn.Module) -> None:
        """Write ``model/`` aside and rename it, so that it is never half there."""
        folder, aside = self.folder / "model", self.folder / "model.partial"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            self.task.export(model, aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)

    # The beginning.

    def _open(self, resume: bool) -> None:
        self.optimizer.init_state()
        ledger_bytes = 0
        if resume:
            found = checkpoint.load_newest(self.folder, self.model, self.optimizer, self._say)
            if found is not None:
                self.progress, ledger_bytes = found
        if self.origin.start is not None and not self.progress.step:
            checkpoint.load_tensors(Path(self.origin.start), self.model, self.optimizer)
        self._shared.join()
        session: dict[str, Any] = {"from_step": self.progress.step}
        if hasattr(self.optimizer, "kernels"):  # which of its ways an optimizer of ours goes
            session["kernels"] = ", ".join(self.optimizer.kernels())
        session |= agents_of(self.world, self._agent)
        session |= self._utilisation.measure(
            self.world, torch.bfloat16 if self.run.precision == "bf16" else torch.float32
        )

        def open_files() -> None:
            parameters = sum(p.numel() for p in self.model.parameters())
            write_run_record(
                self.folder,
                self.run,
                self.origin,
                session,
                self.world,
                optimizer_name=getattr(self.run.optimizer, "name", type(self.optimizer).__name__),
                parameters=parameters,
            )
            (self.folder / STOPPED_FILE).unlink(missing_ok=True)
            self._recorder.open(self.folder / "metrics.jsonl", ledger_bytes)

        self.world.first_rank_does(open_files)
        self._recorder.start(self.progress.step, self.run.steps)
        if resume:
            self._say(f"resuming after step {self.progress.step} of {self.run.steps}")

    # Stages.

    def _all_stages(self, wish: StopWish) -> Outcome:
        begins = 0
        for number, stage in enumerate(self.run.stages):
            ends = begins + stage.steps
            if self.progress.step < ends and self._stage(number, stage, begins, wish) is Outcome.STOPPED:
                return Outcome.STOPPED
            begins = ends
        return Outcome.DONE

    def _stage(self, number: int, stage: Stage, begins: int, wish: StopWish) -> Outcome:
        self._enter(number, stage)
        dataset, order = self.stage_data(number, stage)
        microbatch = self.microbatch(stage, dataset, order)
        batches = MicrobatchDataset(self.task, dataset, order, microbatch, self.world.rank, self.world.ranks)
        parts = -(-stage.global_batch_samples // microbatch)
        repeats = stage.global_batch_samples > len(dataset)
        self._noise.enter(stage.name, parts, sorts=hasattr(dataset, "lengths"), repeats=repeats)
        first = self.progress.step - begins
        source = steps_from(batches, first, stage.steps, self.run.workers)
        for step in range(first, stage.steps):
            began = time.perf_counter()
            microbatches = next(source)
            self._shared.prime(partial(self._passes.discarded, microbatches[0]))
            if not self._step(number, stage, step, microbatches, began, wish):
                self._checkpoint()
                self._checkpoints.finish()
                if self._agent_lost:
                    raise AgentLost(f"torchrun has ended: its ranks stop too, having saved step {self.progress.step}")
                self._say(f"stopped after step {self.progress.step}, a checkpoint was written")
                return Outcome.STOPPED
            last = step + 1 == stage.steps
            if last or (self.run.evaluate_every_steps and self.progress.step % self.run.evaluate_every_steps == 0):
                self._evaluate(number, stage)
            due = last or self.progress.step % self.run.checkpoint_every_steps == 0
            # Within a row of skipped steps the checkpoints from before it are kept.
            if due and not self.progress.skipped_in_a_row:
                self._checkpoint()
        return Outcome.DONE

    def _enter(self, number: int, stage: Stage) -> None:
        for group, own in zip(self.optimizer.param_groups, self._own_betas, strict=True):
            if own is not None:
                group["betas"] = stage.betas or own
        if self.progress.prepared_stage >= number:
            return
        if stage.reset_moments:
            self.optimizer.state.clear()
            self.optimizer.init_state()
        begins = number == 0 and self.origin.start is None
        moments = "new" if begins else "reset" if stage.reset_moments else "kept"
        self._record("stage", step=self.progress.step, stage=stage.name, moments=moments)
        self.progress = replace(self.progress, prepared_stage=number)

    def stage_data(self, number: int, stage: Stage) -> tuple[TaskDataset, DataOrder]:
        """Return the training data of a stage and the order in which it is read."""
        dataset = self.task.dataset(stage, self.run.seed)
        first, before = self.run.data_begins(number)
        order = DataOrder(
            seed=self.run.seed,
            stage=first,
            dataset_samples=len(dataset),
            global_batch_samples=stage.global_batch_samples,
            samples_before=before,
        )
        return dataset, order

    def memory(self, dataset: TaskDataset, order: DataOrder) -> Memory:
        """Measure the memory that training on the data takes, in two forward passes."""
        samples = longest_first(dataset, order.first_samples(0, max(2, order.global_batch_samples)))
        pair = [moved(self.task.collate(read(dataset, samples[:n])), self.world.device) for n in (1, 2)]
        return measure(self.task, self.model, pair[0], pair[1], self.autocast)

    def microbatch(self, stage: Stage, dataset: TaskDataset, order: DataOrder) -> int:
        """Return the samples of a microbatch in a stage; the memory is measured only where the run leaves it open."""
        limit = -(-stage.global_batch_samples // self.world.ranks)
        if self.run.microbatch != "auto":
            if self.run.microbatch > limit and self.world.ranks > 1:
                self._say(
                    f"microbatch {self.run.microbatch} leaves ranks idle in stage {stage.name}, {limit} would not"
                )
            return min(self.run.microbatch, stage.global_batch_samples)
        if self.run.gradient_noise == "on":  # takes two parts at least
            limit = max(min(limit, stage.global_batch_samples // 2), 1)
        memory = self.memory(dataset, order)
        most = largest_microbatch(memory, activation_budget(memory, self.world.device), limit, self._multiple)
        return min(most, stage.global_batch_samples)

    # One step.

    def _step(
        self,
        number: int,
        stage: Stage,
        step: int,
        microbatches: Sequence[LoadedMicrobatch],
        began: float,
        wish: StopWish,
    ) -> bool:
        """Take one step and return True, or return False, having done nothing, if any rank wishes to stop."""
        weights = self.task.weights
        counted = [micro.batch for micro in microbatches if micro.counted]
        here = [self.task.counts(batch) for batch in counted]
        told = self.world.sum(
            [float(wish.wished), float(self._recorder.failure is not None), float(is_lost(self._agent))]
            + [float(sum(self.task.tokens(batch) for batch in counted)), self._utilisation.flops(counted)]
            + [float(sum(counts[term] for counts in here)) for term in weights]
        )
        wishes, failures, lost, tokens, flops = told[:5]
        if failures:
            raise self._recorder.failure or SaidByFirstRank("the first rank cannot write and says why")
        self._agent_lost = bool(lost)
        if wishes or lost:
            return False
        targets = dict(zip(weights, told[5:], strict=True))
        check_targets(targets, self.progress.step)
        by_layer = (self.progress.step + 1) % self.run.layers_every_steps == 0
        as_whole = (self.progress.step + 1) % self.run.gradient_noise_every_steps == 0
        detail = "layers" if by_layer else "whole" if as_whole else "nothing"
        local = self._passes.accumulate(number, step, microbatches, targets, noise=detail)
        summed = self.world.sum(local)
        sums = dict(zip(weights, summed, strict=False))
        losses = {term: sums[term] / targets[term] if targets[term] else 0.0 for term in weights}
        loss = sum(weights[term] * losses[term] for term in weights)
        grad_norm = float(self.optimizer.grad_norm())
        lr = stage.lr(step)
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        noise = self._noise.estimate(summed[len(weights) :], stage.global_batch_samples, grad_norm) if finite else None
        fold_step_statistics(self.model, self.world, finite=finite)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        done = self.progress
        self.progress = replace(
            done,
            step=done.step + 1,
            samples=done.samples + stage.global_batch_samples,
            tokens=done.tokens + int(tokens),
            skipped=done.skipped + (not finite),
            skipped_in_a_row=0 if finite else done.skipped_in_a_row + 1,
        )
        seconds = time.perf_counter() - began
        self._record(
            "train",
            step=self.progress.step,
            stage=stage.name,
            samples=self.progress.samples,
            tokens=self.progress.tokens,
            loss=loss,
            losses=losses,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            samples_per_second=stage.global_batch_samples / seconds,
            **self._utilisation.fields(flops, seconds),
            **(noise.whole_fields() if noise else {}),
            skipped=int(not finite),
        )
        if not finite:
            self._skipped(stage, losses)
        elif by_layer:
            of_layers = noise.layer_fields() if noise else {}
            self._record("layers", step=self.progress.step, ratios=adapted_ratios(self.optimizer), **of_layers)
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def _skipped(self, stage: Stage, losses: Mapping[str, float]) -> None:
        tensor = first_bad_tensor(self.model, losses)
        in_a_row = self.progress.skipped_in_a_row
        self._record("skip", step=self.progress.step, stage=stage.name, tensor=tensor, in_a_row=in_a_row)
        if in_a_row >= self.run.stop_after_skipped_steps:
            raise Diverged(
                f"stopped at step {self.progress.step}: {in_a_row} steps in a row were not finite, first {tensor}; "
                "the last checkpoint is from before them, a lower learning rate or a longer warm-up may help"
            )

    # Around the steps.

    def _evaluate(self, number: int, stage: Stage) -> None:
        loss, metrics = self._held_out.evaluate(self.model, number, stage)
        self._record(
            "eval",
            step=self.progress.step,
            stage=stage.name,
            samples=self.progress.samples,
            loss=loss,
            metrics=metrics,
        )

    def _checkpoint(self) -> None:
        self.world.first_rank_does(self._recorder.sync)
        self._checkpoints.begin(self.model, self.optimizer, self.progress, self._recorder.synced_bytes)

    def _record(self, kind: str, **fields: Any) -> None:
        self._recorder.record(kind, fields)

    def _say(self, sentence: str) -> None:
        self._recorder.say(sentence)
