"""Our optimizers in the hands of those that drive optimizers: schedulers, averaging, Trainer, Accelerate, Lightning."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from rules import MAKERS
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from largebatch.optim import LAMB, layer_groups

every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))


def loss_of(model: nn.Module, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(16, 4, generator=generator)
    return nn.functional.mse_loss(model(x), x[:, :2] * x[:, 2:])


def train(model: nn.Module, optimizer: Any, steps: int = 3, start: int = 0) -> None:
    for number in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
}


def test_no_scheduler_of_torch_is_left_out() -> None:
    kinds = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_") and name != "LRScheduler"
    }
    assert kinds == set(SCHEDULERS)


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@every_maker
def test_schedulers_of_torch_drive_the_rate(make: Any, scheduler: str) -> None:
    """A scheduled run equals one whose rates are written in, and goes on alike from its state dicts."""
    model = network()
    optimizer = make(layer_groups(model), lr=0.01)
    schedule = SCHEDULERS[scheduler](optimizer)
    twin = network()
    by_hand = make(layer_groups(twin), lr=0.01)
    rates = []
    held: Any = None
    for number in range(6):
        if number == 3:
            held = copy.deepcopy((model, optimizer.state_dict(), schedule.state_dict()))
        rates.append(optimizer.param_groups[0]["lr"])
        for key in ("lr", "betas", "momentum"):  # one-cycle policies drive momentum too
            for group, other in zip(optimizer.param_groups, by_hand.param_groups, strict=True):
                if key in group:
                    other[key] = group[key]
        train(model, optimizer, 1, number)
        train(twin, by_hand, 1, number)
        schedule.step(1.0) if scheduler == "ReduceLROnPlateau" else schedule.step()
    assert len(set(rates)) > 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    resumed, state, plan = held
    other = make(layer_groups(resumed), lr=0.01)
    again = SCHEDULERS[scheduler](other)
    other.load_state_dict(state)
    again.load_state_dict(plan)
    for number in range(3, 6):
        train(resumed, other, 1, number)
        again.step(1.0) if scheduler == "ReduceLROnPlateau" else again.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


@every_maker
def test_weight_averaging_of_torch(make: Any) -> None:
    first = nn.Linear(4, 8)
    model = nn.Sequential(first, nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = make(layer_groups(model), lr=0.05)
    averaged: Any = AveragedModel(model)
    schedule = SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
    seen = []
    for number in range(4):
        train(model, optimizer, 1, number)
        averaged.update_parameters(model)
        schedule.step()
        seen.append(first.weight.detach().clone())
    update_bn([torch.randn(8, 4)], averaged)
    torch.testing.assert_close(averaged.module[0].weight, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@every_maker
def test_gradients_clipped_by_torch_before_the_step(make: Any) -> None:
    """The usual loop works; what `max_grad_norm` does without touching the gradients is the same."""
    ends = []
    for ours in (False, True):
        model = network()
        clip = {"max_grad_norm": 0.1} if ours and "LANS" not in str(make) else {}
        optimizer = make(layer_groups(model, no_adapt=()), lr=0.01, **clip)
        for number in range(3):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            norm = optimizer.grad_norm()
            if not ours:
                total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                torch.testing.assert_close(total.double(), norm, rtol=1e-6, atol=0)
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["LAMB", "Layerwise AdamW"])
def test_hugging_face_trainer(tmp_path: Path, name: str) -> None:
    """Training, checkpoints and resuming through `Trainer(optimizers=...)`."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    def trainer(folder: Path, steps: int) -> Any:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertForSequenceClassification(config)
        data: Any = [{"input_ids": torch.arange(8) + n % 20, "labels": torch.tensor(n % 2)} for n in range(32)]
        optimizer = MAKERS[name](layer_groups(model), lr=0.02, **({} if name != "LAMB" else {"max_grad_norm": 1.0}))
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            max_grad_norm=0.0,  # the optimizer clips
            save_steps=3,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            seed=1,
        )
        return Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, schedule))

    whole = trainer(tmp_path / "whole", 6)
    before = [p.detach().clone() for p in whole.model.parameters()]
    whole.train()
    assert not all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), before, strict=True))
    assert len([entry for entry in whole.state.log_history if "loss" in entry]) == 6
    halves = trainer(tmp_path / "whole", 6)
    halves.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for p, q in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@every_maker
def test_accelerate(tmp_path: Path, make: Any) -> None:
    """`prepare`, gradient accumulation, its scheduler, and its checkpoints."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        optimizer = make(layer_groups(model), lr=0.01)
        schedule = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)

        def step(number: int) -> None:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, number))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()

        for number in range(4):
            step(number)
        inner = optimizer.optimizer
        assert all(float(state.get("step", 2)) == 2 for state in inner.state.values()), "two microbatches a step"
        accelerator.save_state(str(tmp_path / "state"))
        for number in range(4, 8):
            step(number)
        end = [p.detach().clone() for p in model.parameters()]
        accelerator.load_state(str(tmp_path / "state"))
        for number in range(4, 8):
            step(number)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), end, strict=True))
        # By hand: the mean of two microbatches' gradients.
        twin = network()
        by_hand = make(layer_groups(twin), lr=0.01)
        plan = lr_scheduler.LinearLR(by_hand, 0.1, total_iters=4)
        for number in range(0, 8, 2):
            by_hand.zero_grad()
            ((loss_of(twin, number) + loss_of(twin, number + 1)) / 2).backward()
            by_hand.step()
            plan.step()
        for p, q in zip(twin.parameters(), end, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few workers, few steps, missing loggers
@every_maker
def test_lightning(tmp_path: Path, make: Any) -> None:
    """Automatic optimization with a scheduler, a checkpoint, and a resumed run."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch), batch[:, :2])

        def configure_optimizers(self) -> Any:
            optimizer = make(layer_groups(self.net), lr=0.01)
            schedule = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=6)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    generator = torch.Generator().manual_seed(0)
    data: Any = [torch.randn(4, generator=generator) for _ in range(12)]
    batches = torch.utils.data.DataLoader(data, batch_size=4)

    def fitted(epochs: int, resume: str | None = None) -> tuple[Any, Module]:
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
        )
        trainer.fit(module, batches, ckpt_path=resume, weights_only=False if resume else None)
        return trainer, module

    trainer, first = fitted(1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, resumed = fitted(2, str(tmp_path / "last.ckpt"))
    _, whole = fitted(2)
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), whole.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_microbatches_accumulate_into_one_step() -> None:
    ends = []
    for parts in (1, 2):
        model = network()
        optimizer = LAMB(layer_groups(model), lr=0.01, max_grad_norm=1.0)
        for number in range(3):
            optimizer.zero_grad()
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
            for part in x.chunk(parts):
                (nn.functional.mse_loss(model(part), part[:, :2]) / parts).backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
