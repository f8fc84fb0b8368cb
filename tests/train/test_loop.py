"""The loop in one process: exact means, stages, skipped steps, checkpoints, refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from largebatch.errors import InputError
from largebatch.recipes.optimizers import Lamb
from largebatch.train.distributed import World
from largebatch.train.finite import Diverged, first_bad_tensor
from largebatch.train.ledger import read_ledger
from largebatch.train.loop import Outcome, Training
from largebatch.train.microbatch import largest_microbatch
from largebatch.train.precision import best_precision
from largebatch.train.run import Run
from largebatch.train.run_record import Origin, read_run_record
from largebatch.train.task import Batch
from train.toy import ToyTask, toy

ALONE = World(0, 1, torch.device("cpu"))
ORIGIN = Origin(recipe="train.toy:toy", recipe_name="toy")


def training(run: Run[Any, Any], folder: Path) -> Training:
    return Training(run, folder, ALONE, [], ORIGIN)


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_ledger(folder / "metrics.jsonl") if line["kind"] == kind]


def losses(run: Run[Any, Any], folder: Path) -> Tensor:
    assert training(run, folder).train(resume=False) is Outcome.DONE
    return torch.tensor([line["loss"] for line in lines(folder)], dtype=torch.float64)


def farthest(left: Tensor, right: Tensor) -> float:
    return float(((left - right) / right).abs().max())


# Exact means.


@dataclass(frozen=True, kw_only=True)
class MeanOfMeans(ToyTask):
    """The usual mistake: each microbatch takes its own mean, and the means are averaged."""

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"value": 1, "pair": 1}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        sums, counts = super().loss(model, batch), super().counts(batch)
        return {term: sums[term] / counts[term] for term in sums}


@pytest.mark.parametrize("microbatch", [1, 3, 4, 7])
def test_microbatches_of_any_size_give_the_same_losses(tmp_path: Path, microbatch: int) -> None:
    whole = losses(replace(toy(), microbatch=10), tmp_path / "whole")
    parts = losses(replace(toy(), microbatch=microbatch), tmp_path / "parts")
    assert farthest(parts, whole) < 1e-5


def test_the_mean_of_means_would_not(tmp_path: Path) -> None:
    wrong = replace(toy(), task=MeanOfMeans())
    whole = losses(replace(wrong, microbatch=10), tmp_path / "whole")
    parts = losses(replace(wrong, microbatch=3), tmp_path / "parts")
    assert farthest(parts, whole) > 1e-3


def test_the_gradient_is_that_of_the_global_mean(tmp_path: Path) -> None:
    task = ToyTask()
    run = replace(toy(peak_lr=0.0), microbatch=3)
    trained = training(run, tmp_path / "run")
    trained.train(resume=False)
    dataset, order = trained.stage_data(0, run.stages[0])
    batch = task.collate([dataset[sample] for sample in order.first_samples(0, 10)])
    model = task.build_model(run.seed)
    sums, counts = task.loss(model, batch), task.counts(batch)
    sum(task.weights[term] * sums[term] / counts[term] for term in sums).backward()  # type: ignore[union-attr]
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert lines(tmp_path / "run")[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


# Stages.


def test_the_second_stage_warms_up_from_zero_and_says_what_became_of_the_moments(tmp_path: Path) -> None:
    training(toy(), tmp_path / "kept").train(resume=False)
    training(toy(reset_moments=True), tmp_path / "reset").train(resume=False)
    second = [line for line in lines(tmp_path / "kept") if line["stage"] == "two"]
    assert second[0]["lr"] == 0.0
    assert second[1]["lr"] == pytest.approx(0.005)
    assert second[2]["lr"] == pytest.approx(0.01)
    assert [line["moments"] for line in lines(tmp_path / "kept", "stage")] == ["new", "kept"]
    assert [line["moments"] for line in lines(tmp_path / "reset", "stage")] == ["new", "reset"]
    last = {name: lines(tmp_path / name)[-1]["loss"] for name in ("kept", "reset")}
    assert last["kept"] != last["reset"]


def test_a_stage_has_its_own_betas_and_gives_them_back(tmp_path: Path) -> None:
    trained = training(toy(), tmp_path / "run")
    trained.train(resume=False)
    assert {group["betas"] for group in trained.optimizer.param_groups} == {(0.8, 0.99)}
    trained._enter(0, trained.run.stages[0])
    assert {group["betas"] for group in trained.optimizer.param_groups} == {(0.9, 0.999)}


def test_samples_tokens_and_lines_are_counted(tmp_path: Path) -> None:
    training(toy(), tmp_path / "run").train(resume=False)
    train = lines(tmp_path / "run")
    assert [line["step"] for line in train] == list(range(1, 21))
    assert train[-1]["samples"] == 12 * 10 + 8 * 5
    assert train[-1]["tokens"] == 6 * train[-1]["samples"]
    assert [line["step"] for line in lines(tmp_path / "run", "eval")] == [5, 10, 12, 15, 20]
    layers = lines(tmp_path / "run", "layers")
    assert [line["step"] for line in layers] == list(range(2, 21, 2))
    assert set(layers[0]["ratios"]) == {"hidden.weight", "values.weight", "pair.weight"}
    assert (tmp_path / "run" / "model" / "weights.pt").exists()


def test_evaluation_counts_each_held_out_sample_once(tmp_path: Path) -> None:
    trained = training(toy(), tmp_path / "run")
    trained.train(resume=False)
    task, stage = trained.task, trained.run.stages[1]
    held_out = task.evaluation_dataset(stage, 0)
    batch = task.collate([held_out[(0, index)] for index in range(len(held_out))])
    trained.model.eval()
    with torch.no_grad():
        sums = task.evaluate(trained.model, batch)
    expected = task.summarise({name: float(value) for name, value in sums.items()})[0]
    assert lines(tmp_path / "run", "eval")[-1]["loss"] == pytest.approx(expected, rel=1e-6)


# Steps that are not finite.


def _poisoned(in_a_row: int) -> Run[Any, Any]:
    run = toy(batch=10)  # 41 samples: the steps 5 to 9 hold samples of epoch 1
    return replace(run, task=replace(run.task, poison_epoch=1), stop_after_skipped_steps=in_a_row)


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path: Path) -> None:
    trained = training(_poisoned(in_a_row=6), tmp_path / "run")
    assert trained.train(resume=False) is Outcome.DONE
    train = lines(tmp_path / "run")
    assert [line["step"] for line in train if line["skipped"]] == [5, 6, 7, 8, 9]
    assert [line["tensor"] for line in lines(tmp_path / "run", "skip")] == ["loss value"] * 5
    assert [line["lr"] for line in train] == [line["lr"] for line in _clean_lines(tmp_path)]
    assert all(bool(torch.isfinite(p).all()) for p in trained.model.parameters())
    assert {float(state["step"]) for state in trained.optimizer.state.values()} == {15.0}
    assert trained.progress.skipped == 5
    assert trained.progress.skipped_in_a_row == 0


def _clean_lines(tmp_path: Path) -> list[dict[str, Any]]:
    training(toy(), tmp_path / "clean").train(resume=False)
    return lines(tmp_path / "clean")


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="5 steps in a row were not finite, first loss value"):
        training(_poisoned(in_a_row=5), tmp_path / "run").train(resume=False)
    assert len(lines(tmp_path / "run")) == 9


@dataclass(frozen=True, kw_only=True)
class Blown(ToyTask):
    """Its weights overflow at the end alone, where no further step would notice."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {name: value * float("nan") for name, value in super().evaluate(model, batch).items()}


def test_a_run_whose_evaluation_is_not_finite_is_not_done(tmp_path: Path) -> None:
    run = toy()
    trained = training(replace(run, task=Blown(**vars(run.task))), tmp_path / "run")
    with pytest.raises(Diverged, match="the held-out loss is nan"):
        trained.train(resume=False)
    assert not (tmp_path / "run" / "model").exists()


def test_a_bad_weight_and_a_bad_gradient_are_named() -> None:
    model = ToyTask().build_model(0)
    weight = dict(model.named_parameters())["values.weight"]
    weight.grad = torch.full_like(weight, float("nan"))
    assert first_bad_tensor(model, {"value": 1.0}) == "gradient of values.weight"
    assert first_bad_tensor(model, {"value": 1.0, "pair": float("inf")}) == "loss pair"
    with torch.no_grad():
        weight[0, 0] = float("inf")
    assert first_bad_tensor(model, {"value": float("nan")}) == "parameter values.weight"


# Folders.


class _OfTheSameOptions(Lamb):
    name: ClassVar[str] = "another"


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    training(toy(), folder).train(resume=False)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run of toy: add --resume"):
        training(toy(), folder).train(resume=False)
    with pytest.raises(InputError, match=r"another seed \(recorded 0, given 1\)"):
        training(replace(toy(), seed=1), folder).train(resume=True)
    with pytest.raises(InputError, match=r"another optimizer \(recorded 'LAMB', given 'another'\)"):
        training(replace(toy(), optimizer=_OfTheSameOptions()), folder).train(resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_folders_that_cannot_take_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, said in (("full", "holds other files"), ("file", "is a file")):
        with pytest.raises(InputError, match=said):
            training(toy(), tmp_path / name).train(resume=False)
    with pytest.raises(InputError, match="no run to resume"):
        training(toy(), tmp_path / "none").train(resume=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        training(toy(), tmp_path / "damaged").train(resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    training(toy(), tmp_path / "run").train(resume=False)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert training(toy(), tmp_path / "run").train(resume=True) is Outcome.DONE
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


# The microbatch that fits.


def test_the_automatic_microbatch_follows_the_bytes_of_a_sample(tmp_path: Path) -> None:
    trained = training(replace(toy(), microbatch="auto"), tmp_path / "run")
    stage = trained.run.stages[0]
    dataset, order = trained.stage_data(0, stage)
    microbatch, memory = trained.microbatch(stage, dataset, order), trained.memory(dataset, order)
    assert microbatch == 10  # a toy sample is small: the whole batch fits
    assert memory.parameters == sum(p.numel() for p in trained.model.parameters())
    # Per sample at least the input and the hidden activations are kept, and not the parameters.
    assert 4 * (6 + 16) <= memory.sample_bytes < 4 * 200
    assert largest_microbatch(memory, budget_bytes=memory.sample_bytes * 7, limit=10) == 4
    assert largest_microbatch(memory, budget_bytes=1, limit=10) == 1


def test_samples_that_workers_read_ahead_are_the_same(tmp_path: Path) -> None:
    alone = losses(toy(), tmp_path / "alone")
    assert torch.equal(alone, losses(replace(toy(), workers=1), tmp_path / "workers"))


def test_bf16_is_close_to_fp32_and_not_equal(tmp_path: Path) -> None:
    exact = losses(toy(), tmp_path / "exact")
    rounded = losses(replace(toy(), precision="bf16"), tmp_path / "rounded")
    assert 0 < farthest(rounded, exact) < 0.1


def test_the_automatic_precision_is_recorded_as_what_it_was(tmp_path: Path) -> None:
    trained = training(replace(toy(), precision="auto"), tmp_path / "run")
    trained.train(resume=False)
    assert read_run_record(tmp_path / "run")["run"]["precision"] == best_precision(torch.device("cpu"))
    assert losses(replace(toy(), precision=best_precision(torch.device("cpu"))), tmp_path / "named").equal(
        torch.tensor([line["loss"] for line in lines(tmp_path / "run")], dtype=torch.float64)
    )


def test_a_task_sees_the_summed_terms(tmp_path: Path) -> None:
    losses(toy(), tmp_path / "run")
    first: Mapping[str, Any] = lines(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(first["losses"]["value"] + 0.5 * first["losses"]["pair"])


def test_no_checkpoint_is_written_within_a_row_of_skipped_steps(tmp_path: Path) -> None:
    run = replace(_poisoned(in_a_row=5), checkpoint_every_steps=1)
    with pytest.raises(Diverged, match="the last checkpoint is from before them"):
        training(run, tmp_path / "run").train(resume=False)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000000003", "step-000000004"], "the steps 5 to 9 were skipped"


def test_what_an_interrupted_start_left_does_not_bar_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.partial").write_text("{")
    assert training(toy(), tmp_path / "run").train(resume=False) is Outcome.DONE
    assert not (tmp_path / "run" / "run.json.partial").exists()
