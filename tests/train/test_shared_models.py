"""Ranks that share a model in parts train as one rank does, and go on in any other way."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.cli import main
from train.test_bert_processes import TINY, write_text
from train.test_processes import (
    RECIPE,
    SLOWLY,
    environment,
    kill_all,
    ledger,
    run,
    started,
    train_losses,
    wait_for_steps,
)

WAYS = {
    "ddp": (),
    "fsdp": ("--sharding", "fsdp"),
    "hsdp": ("--sharding", "hsdp", "--shard-ranks", "1"),
    "bf16 ddp": ("--gradient-compression", "bf16"),
    "bf16 fsdp": ("--gradient-compression", "bf16", "--sharding", "fsdp"),
}


def done(out: Path, *words: str, ranks: int = 1, recipe: str = RECIPE) -> Path:
    ended = run(out, *words, ranks=ranks, recipe=recipe)
    assert ended.returncode == 0, ended.stderr
    return out


def _evaluated(out: Path) -> list[float]:
    return [line["loss"] for line in ledger(out) if line["kind"] == "eval"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_as_one(tmp_path: Path, alone: Path, way: str) -> None:
    out = done(tmp_path / "run", *WAYS[way], ranks=2)
    rounded = way.startswith("bf16")
    assert train_losses(out) == pytest.approx(train_losses(alone), rel=1e-2 if rounded else 1e-5)
    assert _evaluated(out) == pytest.approx(_evaluated(alone), rel=1e-2 if rounded else 1e-4)
    if rounded:
        assert train_losses(out) != pytest.approx(train_losses(alone), rel=1e-5), "rounding would be seen"
    weights, wanted = (torch.load(folder / "model" / "weights.pt") for folder in (out, alone))
    assert weights.keys() == wanted.keys()
    for name, a in wanted.items():
        torch.testing.assert_close(weights[name], a, rtol=0.1 if rounded else 1e-4, atol=1e-2 if rounded else 1e-5)


def test_shards_resume_to_the_bit_after_kill_9(tmp_path: Path) -> None:
    words = (*SLOWLY, "--sharding", "fsdp")
    whole, broken = done(tmp_path / "whole", *words, ranks=2), tmp_path / "broken"
    with started(broken, *words, ranks=2) as process:
        wait_for_steps(broken, 8, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kill_all(broken)
    done(broken, *words, "--resume", ranks=2)
    assert ledger(broken) == ledger(whole)
    names = {path.name for path in (broken / "checkpoints" / "step-000000020").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= names, "each rank writes its own"


def _stopped_after(out: Path, steps: int, *words: str, ranks: int) -> None:
    with started(out, *SLOWLY, *words, ranks=ranks) as process:
        wait_for_steps(out, steps, process)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=100)


@pytest.mark.slow
def test_four_ranks_then_two_then_one_then_three(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    done(whole, *SLOWLY, "--log-samples", str(tmp_path / "whole.txt"))
    logged = ("--log-samples", str(tmp_path / "run.txt"))
    ways = [(4, "fsdp"), (2, "hsdp"), (1, "ddp"), (3, "fsdp")]
    for n, (ranks, sharding) in enumerate(ways):
        words = (*logged, "--sharding", sharding, *(("--resume",) if n else ()))
        words += ("--shard-ranks", "2" if sharding == "hsdp" else "0")
        if n + 1 < len(ways):
            _stopped_after(out, 4 * (n + 1), *words, ranks=ranks)
            assert len(train_losses(out)) < 20, "stopped too late to show anything"
        else:
            done(out, *SLOWLY, *words, ranks=ranks)
    assert train_losses(out) == pytest.approx(train_losses(whole), rel=1e-5)
    read = [set(file.read_text().split()) for file in (tmp_path / "whole.txt", tmp_path / "run.txt")]
    assert read[0] == read[1]


def test_a_bert_in_blocks_with_recomputed_activations(tmp_path: Path) -> None:
    write_text(tmp_path / "words.txt")
    corpus = tmp_path / "corpus"
    words = ["--source", str(tmp_path / "words.txt"), "--vocabulary-size", "100", "--held-out-fraction", "0.2"]
    assert main(["prepare", *words, "--workers", "1", "--out", str(corpus)]) == 0
    given: Any = ("--corpus", str(corpus), "--layers", "2", "--dropout", "0.1")
    plain = done(tmp_path / "plain", *given, recipe=TINY)
    again = done(tmp_path / "again", *given, "--recompute", recipe=TINY)
    assert train_losses(again) == train_losses(plain), "the same dropout when run again"
    shards = done(tmp_path / "shards", *given, "--recompute", "--sharding", "fsdp", recipe=TINY, ranks=2)
    assert train_losses(shards) == pytest.approx(train_losses(plain), rel=1e-5)


def test_images_with_weights_in_another_order_of_memory(tmp_path: Path) -> None:
    words = ("--microbatch", "256", "--epochs", "5")
    plain = done(tmp_path / "plain", *words, recipe="digits")
    shards = done(tmp_path / "shards", *words, "--sharding", "fsdp", recipe="digits", ranks=2)
    assert train_losses(shards) == pytest.approx(train_losses(plain), rel=1e-5)
    assert (shards / "model" / "config.json").exists()


_LEAVING = """
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
from largebatch.train import distributed
from largebatch.train.loop import Training
from train.test_loop import ORIGIN
from train.toy import toy

def threads():
    return len(os.listdir("/proc/self/task"))

if sys.argv[2] == "alone":
    distributed.leave_world = dist.destroy_process_group
before = threads()
with distributed.join_world("cpu") as world:
    trained = Training(replace(toy(), sharding="fsdp"), Path(sys.argv[1]) / "run", world, [], ORIGIN)
    trained.train(resume=False)
    assert threads() > before
    del trained
print(threads() - before)
"""


@pytest.mark.parametrize(("way", "left"), [("ours", False), ("alone", True)])
def test_no_thread_of_the_group_outlives_it(tmp_path: Path, way: str, left: bool) -> None:
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _LEAVING, str(tmp_path), way],
        env={**environment(), **one},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) == left, done.stderr


@pytest.mark.parametrize(
    ("words", "ranks", "said"),
    [
        (
            ("--sharding", "fsdp"),
            1,
            "sharding is fsdp, which needs processes that torchrun has started; allowed is ddp",
        ),
        (
            ("--sharding", "hsdp", "--shard-ranks", "3"),
            2,
            "shard_ranks is 3, allowed is a number that divides the 2 ranks",
        ),
        (("--shard-ranks", "3"), 1, "shard_ranks is 3, with sharding ddp allowed is 0"),
        (("--recompute",), 1, "recompute is True, but this network has no blocks that can be run again"),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(tmp_path: Path, words: tuple[str, ...], ranks: int, said: str) -> None:
    refused = run(tmp_path / "run", *words, ranks=ranks)
    assert refused.returncode != 0
    told = [line for line in refused.stderr.splitlines() if line.startswith("largebatch: ")]
    assert len(told) == 1
    assert said in told[0]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_rank_does_not_see_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run(Path("run"), ranks=2, recipe="train.elsewhere:elsewhere")
    assert refused.returncode != 0
    told = [line for line in refused.stderr.splitlines() if line.startswith("largebatch: ")]
    assert len(told) == 1
    assert f"1 of 2 ranks do not see {tmp_path / 'run'}" in told[0]
    assert not (tmp_path / "run").exists()
