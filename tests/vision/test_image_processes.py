"""Images in real processes: the same whatever reads them and however many train, killed in mid-epoch or not."""

import os
import signal
from pathlib import Path

import pytest
from image_files import picture, write_folders
from safetensors.torch import load_file

from train.test_processes import kill_all, ledger, run, started, train_losses, wait_for_steps

pytestmark = pytest.mark.xdist_group("images in processes")

RECIPE = "vision.image_runs:pictures"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folders(tmp_path_factory.mktemp("data") / "pictures", per_class=10))


@pytest.fixture(scope="module")
def alone(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, which is not stopped."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(out, "--data", data, recipe=RECIPE)
    assert done.returncode == 0, done.stderr
    return out


def _weights(out: Path) -> dict[str, bytes]:
    tensors = load_file(out / "model" / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_it_trains_and_tells(alone: Path) -> None:
    kinds = [line["kind"] for line in ledger(alone)]
    assert (kinds.count("train"), kinds.count("eval")) == (12, 3)
    last = [line for line in ledger(alone) if line["kind"] == "eval"][-1]
    assert set(last["metrics"]) == {"top1_accuracy", "top5_accuracy", "commonest_class_accuracy"}
    assert "top 1" in (alone / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "workers", [pytest.param("1", marks=pytest.mark.slow), "2", pytest.param("4", marks=pytest.mark.slow)]
)
def test_any_number_of_workers_gives_the_same(alone: Path, data: str, tmp_path: Path, workers: str) -> None:
    done = run(tmp_path / "run", "--data", data, "--workers", workers, recipe=RECIPE)
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "run") == ledger(alone)
    assert _weights(tmp_path / "run") == _weights(alone)


def test_two_ranks_train_and_judge_as_one(alone: Path, data: str, tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--data", data, "--workers", "1", recipe=RECIPE, ranks=2)
    assert done.returncode == 0, done.stderr
    assert train_losses(tmp_path / "run") == pytest.approx(train_losses(alone), rel=1e-4)
    judged = [[line["loss"] for line in ledger(out) if line["kind"] == "eval"] for out in (tmp_path / "run", alone)]
    assert judged[0] == pytest.approx(judged[1], rel=1e-3)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_mid_epoch_it_goes_on_to_the_bit(data: str, tmp_path: Path, ranks: int) -> None:
    words = ("--data", data, "--steps", "60")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run(whole, *words, recipe=RECIPE, ranks=ranks)
    assert done.returncode == 0, done.stderr
    workers = "2" if ranks == 1 else "0"
    with started(broken, *words, "--workers", workers, recipe=RECIPE, ranks=ranks) as process:
        wait_for_steps(broken, 6, process)
        if ranks == 1:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that read ahead
        else:
            kill_all(broken)
        process.wait()
    assert len(ledger(broken)) < len(ledger(whole))
    resumed = run(broken, *words, "--workers", "3", "--resume", recipe=RECIPE, ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert ledger(broken) == ledger(whole)
    assert _weights(broken) == _weights(whole)


def test_a_torn_image_ends_the_run_in_a_sentence(data: str, tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "pictures", per_class=10)
    (folder / "train" / "dog" / "3.JPEG").write_bytes(picture(size=(200, 200))[:1500])
    for workers in ("0", "2"):
        done = run(tmp_path / f"run-{workers}", "--data", str(folder), "--workers", workers, recipe=RECIPE)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "cannot be decoded" in line]
        assert "train/dog/3.JPEG" in line
        assert "--corrupt skip" in line
    words = ("--data", str(folder), "--corrupt", "skip", "--workers", "2", "--resume")
    skipped = run(tmp_path / "run-2", *words, recipe=RECIPE)
    assert skipped.returncode == 0, skipped.stderr
    assert "left out" in skipped.stderr
    assert "train/dog/3.JPEG" in skipped.stderr
