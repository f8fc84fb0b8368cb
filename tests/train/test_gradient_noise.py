"""The noise of gradients, measured on the way: against gradients taken one by one, and the same on any ranks."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from largebatch.cli import main
from largebatch.noise_scale import from_parts
from largebatch.train.data_order import DataOrder
from largebatch.train.distributed import World
from largebatch.train.gradient_noise import Detail, GradientNoise
from largebatch.train.ledger import read_ledger
from train.test_processes import ledger, run
from train.toy import ToyTask, toy

WHOLE = ("gradient_square", "covariance_trace")
LAYERS = ("gradient_squares", "covariance_traces")


def trained(out: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["train", "train.toy:toy", "--out", str(out), *words]) == 0
    return list(read_ledger(out / "metrics.jsonl"))


def by_hand(sizes: list[int]) -> dict[str, tuple[float, float]]:
    """Return (sum of squared norms of what parts add, squared norm of the whole) of the first step, by parameter."""
    task, made = ToyTask(), toy()
    model = task.build_model(made.seed).double()
    data = task.dataset(made.stages[0], made.seed)
    samples = DataOrder(seed=0, stage=0, dataset_samples=41, global_batch_samples=sum(sizes)).first_samples(
        0, sum(sizes)
    )
    batches = [task.collate([data[sample] for sample in part]) for part in _cut(samples, sizes)]
    counts = [task.counts(batch) for batch in batches]
    targets = {term: sum(count[term] for count in counts) for term in task.weights}
    parts = []
    for batch in batches:
        sums = task.loss(model, {**batch, "x": batch["x"].double()})
        loss = torch.stack([weight * sums[term] / targets[term] for term, weight in task.weights.items()]).sum()
        parts.append(torch.autograd.grad(loss, list(model.parameters())))
    found = {}
    for (name, _), of in zip(model.named_parameters(), zip(*parts, strict=True), strict=True):
        found[name] = (sum(float(g.square().sum()) for g in of), float(torch.stack(of).sum(0).square().sum()))
    return found


def _cut(samples: list[Any], sizes: list[int]) -> list[list[Any]]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [samples[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def test_it_is_that_of_gradients_taken_one_by_one(tmp_path: Path) -> None:
    lines = trained(tmp_path / "run", "--layers-every-steps", "1")
    sizes = [4, 4, 2]
    wanted = by_hand(sizes)
    layers = next(line for line in lines if line["kind"] == "layers")
    squared = sum(size**2 for size in sizes)
    for name, (parts, whole) in wanted.items():
        estimate = from_parts(10, squared, parts, whole)
        assert layers["gradient_squares"][name] == pytest.approx(estimate.gradient_square, rel=1e-4, abs=1e-9)
        assert layers["covariance_traces"][name] == pytest.approx(estimate.covariance_trace, rel=1e-4, abs=1e-9)
    first = next(line for line in lines if line["kind"] == "train")
    for one, several in zip(WHOLE, LAYERS, strict=True):
        assert first[one] == pytest.approx(sum(layers[several].values()), rel=1e-5, abs=1e-9)
    second = next(line for line in lines if line["kind"] == "train" and line["stage"] == "two")
    assert set(WHOLE) <= second.keys(), "a batch of 5 is parts of 4 and 1"


def test_measuring_changes_nothing_else(tmp_path: Path) -> None:
    trained(tmp_path / "with", "--dropout", "0.3")
    trained(tmp_path / "without", "--dropout", "0.3", "--gradient-noise", "off")
    without = ledger(tmp_path / "without")
    assert not any(name in line for line in without for name in (*WHOLE, *LAYERS))
    bare = [{k: v for k, v in line.items() if k not in (*WHOLE, *LAYERS)} for line in ledger(tmp_path / "with")]
    assert bare == without


def test_only_every_so_manieth_step_is_measured_and_those_of_the_layers(tmp_path: Path) -> None:
    always = trained(tmp_path / "always")
    words = ("--gradient-noise-every-steps", "4", "--layers-every-steps", "6")
    seldom = trained(tmp_path / "seldom", *words)
    steps = [[line for line in lines if line["kind"] == "train"] for lines in (always, seldom)]
    assert [line["step"] for line in steps[1] if WHOLE[0] in line] == [4, 6, 8, 12, 16, 18, 20]
    for one, two in zip(*steps, strict=True):
        for name in WHOLE:  # sums over layers are taken in another order where layers are told
            assert two.get(name, one[name]) == pytest.approx(one[name], rel=1e-9), "nothing is left over in between"
    layers = {line["step"]: line for line in always if line["kind"] == "layers"}
    for line in (line for line in seldom if line["kind"] == "layers"):
        assert all(line[name] == layers[line["step"]][name] for name in LAYERS)
    with_rest = [ledger(tmp_path / name) for name in ("always", "seldom")]
    first, second = ([line for line in lines if line["kind"] == "eval"] for lines in with_rest)
    assert first == second


def test_steps_in_between_have_no_hooks() -> None:
    model = nn.Linear(3, 2)
    noise = GradientNoise(model, World(0, 1, torch.device("cpu")), "auto")
    noise.enter("only", 2, sorts=False)
    hooks = {}
    for detail in get_args(Detail):
        noise.begin(detail)
        hooks[detail] = sum(len(p._backward_hooks or ()) for p in model.parameters())
        with noise.watching(1):
            model(torch.ones(1, 3)).sum().backward()
        assert len(noise.gathered()) == {"nothing": 0, "whole": 2, "layers": 5}[detail]
    assert hooks == {"nothing": 0, "whole": 2, "layers": 2}
    noise.begin("nothing")
    assert not any(p._backward_hooks for p in model.parameters())


class LikeFsdp(nn.Linear):
    """One whose parameters are looked for in each forward pass, as FSDP2's are."""

    def set_requires_gradient_sync(self, wanted: bool) -> None:
        pass


def test_a_pass_between_steps_attaches_no_hooks() -> None:
    model = LikeFsdp(3, 2)
    noise = GradientNoise(model, World(0, 1, torch.device("cpu")), "auto")
    noise.enter("only", 2, sorts=False)
    noise.begin("whole")
    with noise.watching(1):
        model(torch.ones(1, 3)).sum().backward()
    noise.gathered()
    model(torch.ones(1, 3))
    assert not any(p._backward_hooks for p in model.parameters()), "an evaluation's hooks would stay for nine steps"


@pytest.mark.parametrize(
    "words",
    [
        ("--sharding", "ddp"),
        ("--sharding", "fsdp"),
        pytest.param(("--sharding", "hsdp", "--shard-ranks", "1"), marks=pytest.mark.slow),
    ],
    ids=["ddp", "fsdp", "hsdp"],
)
def test_two_ranks_measure_what_one_does(tmp_path: Path, words: tuple[str, ...]) -> None:
    often = ("--microbatch", "3", "--gradient-noise-every-steps", "2", "--layers-every-steps", "3")
    alone = trained(tmp_path / "alone", *often)
    done = run(tmp_path / "two", *often, *words, ranks=2)
    assert done.returncode == 0, done.stderr
    together = list(read_ledger(tmp_path / "two" / "metrics.jsonl"))
    for kind, names in (("train", WHOLE), ("layers", LAYERS)):
        first, second = ([line for line in lines if line["kind"] == kind] for lines in (alone, together))
        assert len(first) == len(second) == {"train": 20, "layers": 6}[kind]
        for one, two in zip(first, second, strict=True):
            measured = one["step"] % 2 == 0 or one["step"] % 3 == 0
            for name in names:
                assert (name in one, name in two) == (measured, measured)
                assert not measured or two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5)


def test_what_cannot_be_measured_is_said_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "train.toy:toy", "--microbatch", "10"]
    assert main([*words, "--out", str(tmp_path / "on"), "--gradient-noise", "on"]) == 2
    told = capsys.readouterr().err
    assert "gradient_noise is on, but a step of stage one is one microbatch" in told
    assert "give a --microbatch of half the batch or less" in told
    assert not (tmp_path / "on").exists()
    twice = ["train", "train.toy:toy", "--samples", "8", "--out", str(tmp_path / "twice")]
    assert main([*twice, "--gradient-noise", "on"]) == 2
    assert "a step of stage one has more samples than the data" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists(), "nothing is begun"
    seldom = ["--gradient-noise-every-steps", "30", "--layers-every-steps", "40"]
    short = ["train", "train.toy:toy", "--out", str(tmp_path / "short"), *seldom]
    assert main([*short, "--gradient-noise", "on"]) == 2
    assert "every step that 30 divides, but the run has 20 steps" in capsys.readouterr().err
    assert main([*short[:4], "--gradient-noise-every-steps", "0"]) == 2
    assert "gradient_noise_every_steps is 0, allowed is 1 or more" in capsys.readouterr().err
    left_open = ["train", "train.toy:toy", "--out", str(tmp_path / "open"), "--microbatch", "auto"]
    assert main([*left_open, "--gradient-noise", "on"]) == 0, "auto takes two microbatches then"
    assert all(
        name in line for line in read_ledger(tmp_path / "open" / "metrics.jsonl") for name in WHOLE if "lr" in line
    )
    assert main([*words, "--out", str(tmp_path / "auto")]) == 0
    assert not any(name in line for line in read_ledger(tmp_path / "auto" / "metrics.jsonl") for name in WHOLE)
