"""`largebatch advise` on a real run: its answer, a kill on the way, and what it refuses."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.cli import main
from train.test_processes import environment, session

pytestmark = pytest.mark.xdist_group("advise")

FEW = ("--samples", "320", "--multiples", "1,2", "--orders", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits with checkpoints on the way."""
    out = tmp_path_factory.mktemp("digits") / "run"
    words = ["--batch", "40", "--microbatch", "20", "--epochs", "4", "--lr", "0.005", "--precision", "fp32"]
    words += ["--checkpoint-every-steps", "40", "--keep-checkpoints", "9"]
    # Branches of sixteen steps or fewer, less than between two measurements, need not obey what was asked of the run.
    words += ["--gradient-noise", "on", "--gradient-noise-every-steps", "20", "--layers-every-steps", "30"]
    assert main(["train", "digits", *words, "--out", str(out)]) == 0
    return out


def advised(run: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["advise", str(run), "--checkpoint", "40", "--out", str(out), *FEW, *words]) == 0
    return [json.loads(line) for line in (out / "branches.jsonl").read_text().splitlines()]


def test_it_answers_and_goes_on_after_a_kill(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = advised(run, tmp_path / "whole", "--theory", "64")
    told = capsys.readouterr().out
    assert "from step 40 of 144: batches 40, 80 with 2 orders of the data, 640 samples" in told
    assert "this takes about" in told
    assert "After step 40, batch 40, rate 0.0" in told
    page = (tmp_path / "whole" / "advice.md").read_text()
    assert "| 80 |" in page
    assert "noise scale" in page
    assert "layers are" in page
    assert re.search(r"By these bounds (LARS|SGD)", page)
    assert (tmp_path / "whole" / "advice.svg").read_text().endswith("</svg>\n")
    assert [(line["order"], line["multiple"]) for line in whole] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [len(line["losses"]) for line in whole] == [8, 12, 8, 12]
    assert not list((tmp_path / "whole").glob("*/checkpoints")), "what only training needed is removed"

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "largebatch", "advise", str(run), "--checkpoint", "40", "--out", str(out), *FEW]
    with session(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (out / "branches.jsonl").exists():
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
    assert 1 <= len((out / "branches.jsonl").read_text().splitlines()) < 4
    assert advised(run, out) == whole

    assert advised(run, out) == whole, "nothing is trained again"
    assert main(["advise", str(run), "--checkpoint", "40", "--out", str(out), *FEW[:-1], "3"]) == 2
    assert "holds branches with another orders (2, asked for is 3)" in capsys.readouterr().err


def test_a_branch_begins_with_the_checkpoints_weights_and_moments(run: Path, tmp_path: Path) -> None:
    """At a rate of zero the loss stays what it was; with the moments gone, the first steps would be others."""
    lines = advised(run, tmp_path / "still", "--lr", "1e-30")
    (losses, *_) = [line["losses"] for line in lines]
    assert losses == pytest.approx([losses[0]] * 8, rel=1e-6)
    record = json.loads((tmp_path / "still" / "batch-40-order-0" / "run.json").read_text())
    assert record["start"].endswith("step-000000040")
    ledger = (tmp_path / "still" / "batch-40-order-0" / "metrics.jsonl").read_text()
    assert '"moments": "kept"' in ledger


def test_a_dry_run_trains_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(run), "--checkpoint", "40", "--out", str(tmp_path / "dry"), *FEW, "--dry-run"]) == 0
    assert "this takes about" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_minutes_decide_over_the_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = copied(run, tmp_path / "live")
    ran_at(live, 1_500)
    words = ["advise", str(live), "--checkpoint", "40", "--dry-run", "--multiples", "1,2"]
    assert main([*words, "--minutes", "2"]) == 0
    first = capsys.readouterr().out
    assert main([*words, "--minutes", "4"]) == 0
    second = capsys.readouterr().out
    few, many = (int(told.partition("data, ")[2].partition(" samples")[0].replace(",", "")) for told in (first, second))
    assert 1.9 < many / few < 2.2
    assert main([*words, "--minutes", "0.0001"]) == 2
    assert "eight steps of the largest batch make it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--checkpoint", "41"], "has no checkpoint after step 41: there are [40, 80, 120, 144]"),
        (["--checkpoint", "144"], "the learning rate has come to its end"),
        (["--multiples", "2,3"], "--multiples is '2,3', allowed are whole numbers"),
        (["--multiples", "1"], "--multiples is '1', allowed are whole numbers"),
        (["--orders", "0"], "orders"),
        (["--theory", "9"], "--theory is 9, allowed is 0 or a multiple of 8"),
        (["--samples", "0"], "--samples is 0"),
        (["--samples", "9", "--minutes", "1"], "one follows from the other"),
        (["--tolerance", "-1"], "--tolerance is -1"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    run: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(run), *words, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_branches_of_another_run_are_not_taken_for_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    advised(run, out)
    words = ["--batch", "40", "--microbatch", "20", "--epochs", "4", "--lr", "0.005", "--precision", "fp32"]
    words += ["--checkpoint-every-steps", "40", "--keep-checkpoints", "9", "--seed", "1"]
    assert main(["train", "digits", *words, "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["advise", str(other), "--checkpoint", "40", "--out", str(out), *FEW]) == 2
    assert "holds branches with another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"multiple": 1, "order": 0, "state": "complete", "losses": [1.0]}\n', "branches.jsonl, line 1 is damaged"),
        (b'{"multiple": 1, "order": 0, "state": "well", "losses": []}\n', "branches.jsonl, line 1 is damaged"),
        (b"\xff\xfe\n", "branches.jsonl, line 1 is damaged"),
    ],
)
def test_damaged_results_are_told_before_anything_runs(
    run: Path, tmp_path: Path, content: bytes, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["advise", str(run), "--checkpoint", "40", "--out", str(tmp_path / "out"), *FEW]
    advised(run, tmp_path / "out")
    (tmp_path / "out" / "branches.jsonl").write_bytes(content)
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.out == ""
    (tmp_path / "out" / "advice.json").write_text('{"format_version": 1}')
    assert main(words) == 2
    assert "it does not say what was asked" in capsys.readouterr().err
    assert main([*words[:4], "--out", str(tmp_path / "out" / "advice.json" / "sub"), *FEW]) == 2
    assert "a folder above it is a file" in capsys.readouterr().err


def test_the_runs_own_branch_that_diverges_ends_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["advise", str(run), "--checkpoint", "40", "--out", str(tmp_path / "out"), *FEW, "--lr", "1e30"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "the run's own batch and rate diverged" in told.err
    assert "branch 2" not in told.out
    assert main(words) == 2
    assert "branch 2" not in capsys.readouterr().out, "said again it trains no other"


def test_more_samples_in_a_step_than_there_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(run), "--checkpoint", "40", "--multiples", "1,64", "--dry-run"]) == 2
    assert "the largest batch would be 2,560, but the data has 1,438 samples" in capsys.readouterr().err


def test_a_folder_that_is_no_run_and_one_of_something_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(tmp_path)]) == 2
    assert "holds no run.json" in capsys.readouterr().err
    (tmp_path / "other").write_text("mine")
    assert main(["advise", str(run), "--checkpoint", "40", "--out", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "other").read_text() == "mine"


def test_a_recipe_that_has_changed_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "run"
    changed.mkdir()
    record = json.loads((run / "run.json").read_text())
    record["run"]["optimizer"]["weight_decay"] = 0.5
    (changed / "run.json").write_text(json.dumps(record))
    (changed / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    assert main(["advise", str(changed)]) == 2
    assert "its recipe makes another run today, optimizer.weight_decay" in capsys.readouterr().err


def test_a_stop_is_saved_and_gone_on_from(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "largebatch", "advise", str(run), "--checkpoint", "40", "--out", str(out)]
    command += ["--samples", "3200", "--multiples", "1,2", "--orders", "1"]
    with session(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        metrics = out / "batch-40-order-0" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"train") < 3:
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=120)
        assert process.returncode == 75, told
        assert "stopped and saved; the same command goes on" in told[0]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len((out / "branches.jsonl").read_text().splitlines()) == 2


def ran_at(run: Path, samples_per_second: float) -> None:
    """Give a run another pace than the one it had, which is the machine's at that time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "samples_per_second": samples_per_second} if "lr" in line else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def test_it_goes_on_when_the_run_has_removed_its_checkpoint(run: Path, tmp_path: Path) -> None:
    live, out = copied(run, tmp_path / "live"), tmp_path / "out"
    whole = advised(live, out)
    kept = (out / "branches.jsonl").read_text().splitlines(keepends=True)
    (out / "branches.jsonl").write_text("".join(kept[:3]))
    shutil.rmtree(out / "batch-80-order-1")
    shutil.rmtree(live / "checkpoints" / "step-000000040")
    assert advised(live, out) == whole
    assert main(["advise", str(live), "--out", str(out), *FEW]) == 0, "which checkpoint it was is known"


def test_a_damaged_checkpoint_is_named_and_can_be_mended(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hurt, out = copied(run, tmp_path / "hurt"), tmp_path / "out"
    damaged = hurt / "checkpoints" / "step-000000040" / "__0_0.distcp"
    sound = damaged.read_bytes()
    words = ["advise", str(hurt), "--checkpoint", "40", "--out", str(out), *FEW]
    damaged.write_bytes(sound[:-9] + b"123456789")
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        assert f"{damaged} is damaged or missing" in capsys.readouterr().err
        assert not out.exists()
    damaged.write_bytes(sound)
    whole = advised(hurt, out)
    (out / "branches.jsonl").write_text("")
    for left in out.glob("batch-*"):
        shutil.rmtree(left)
    copy = out / "step-000000040" / "__0_0.distcp"
    copy.unlink()
    copy.write_bytes(b"not it")
    assert advised(hurt, out) == whole, "a copy that has been damaged is made again"


def test_a_checkpoint_under_another_steps_name_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = copied(run, tmp_path / "renamed") / "checkpoints"
    shutil.rmtree(renamed / "step-000000040")
    (renamed / "step-000000080").rename(renamed / "step-000000040")
    assert main(["advise", str(renamed.parent), "--checkpoint", "40", "--out", str(tmp_path / "out"), *FEW]) == 2
    assert "was written after step 80, its name says another" in capsys.readouterr().err


def test_minutes_are_asked_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live, out = copied(run, tmp_path / "live"), tmp_path / "out"
    words = ["advise", str(live), "--checkpoint", "40", "--out", str(out), "--multiples", "1,2", "--orders", "1"]
    words += ["--minutes", "0.05"]
    ran_at(live, 1_500)
    assert main(words) == 0
    ran_at(live, 15_000)
    capsys.readouterr()
    assert main(words) == 0, "another pace makes no other question"
    assert "branch 1" not in capsys.readouterr().out


def test_a_command_killed_at_its_beginning_leaves_a_folder_that_can_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "advice.json.partial").write_text("{")
    advised(run, tmp_path / "out")


def test_what_theory_takes_is_said_before(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(run), "--checkpoint", "40", "--dry-run", *FEW, "--theory", "64"]) == 0
    assert re.search(r"this takes about .*, and the constants of the bounds about \d", capsys.readouterr().out)


@pytest.mark.slow
def test_two_ranks_find_what_one_does(run: Path, tmp_path: Path) -> None:
    one = advised(run, tmp_path / "one")
    out = tmp_path / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--log-dir={tmp_path / 'launcher'}"]
    words = ["--nproc-per-node=2", "-m", "largebatch", "advise", str(run), "--checkpoint", "40", "--out", str(out)]

    def told(*more: str, few: tuple[str, ...] = FEW) -> tuple[int, str, str]:
        command = [*launcher, *words, *few, *more]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout, done.stderr

    code, answer, errors = told("--theory", "64")
    assert code == 0, errors
    assert answer.count("After step 40, batch 40") == 1, "the first rank alone tells it"
    assert "By these bounds" in (out / "advice.md").read_text()
    two = [json.loads(line) for line in (out / "branches.jsonl").read_text().splitlines()]
    assert [(line["order"], line["multiple"]) for line in two] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for ours, single in zip(two, one, strict=True):
        assert ours["losses"] == pytest.approx(single["losses"], rel=1e-4)
    code, answer, errors = told()
    assert code == 0, errors
    assert "branch 1" not in answer, "nothing is trained again"
    code, _, errors = told("--orders", "3", few=FEW[:-2])
    assert code != 0
    assert "holds branches with another orders (2, asked for is 3)" in errors
