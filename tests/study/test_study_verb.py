"""`largebatch study` as a user meets it: real processes, stopped, killed, and going on to the same numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from alive import is_alive
from largebatch.cli import main
from largebatch.recipes.studies import STUDIES, build_study, study_promise
from largebatch.study.claims import SharedStudy
from largebatch.study.ledger import read_study, read_trials, write_study
from largebatch.study.plan import Job, Study
from largebatch.study.search import work
from largebatch.study_trial import train_trial
from largebatch.train.run_record import read_run_record

ROOT = Path(__file__).parents[2]
TOY = "study.toy_study:study"


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the verb in processes of its own."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "largebatch", "study", *words, "--out", str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    told, _ = process.communicate(timeout=seconds)
    return process.returncode, told


def scores(folder: Path) -> Mapping[Job, float | None]:
    study, _ = read_study(folder)
    trials = read_trials(folder, study)
    assert Counter(trial.job for trial in trials) == Counter(study.jobs())
    return {trial.job: trial.score for trial in trials}


def children(pid: int) -> list[int]:
    """Processes that a process has started, the workers among them."""
    told = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in told.splitlines() if "spawn_main" in line]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def in_the_middle_of_a_trial(folder: Path) -> bool:
    """Whether two runs have a checkpoint and are not over."""
    return len(list(folder.glob("runs/*/*/checkpoints/step-*"))) >= 2


def test_a_study_of_a_stranger_runs_and_has_its_page(tmp_path: Path) -> None:
    example = ROOT / "examples" / "own_study.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
    folder = tmp_path / "out"
    code, told = ended(started(folder, f"{example}:study", "--trials", "2", "--seeds", "2", "--workers", "2"))
    assert code == 0, told
    found = scores(folder)
    assert len(found) == 4 * (2 + 2)
    assert all(score is not None and score > 0.6 for score in found.values())
    assert "[16/16]" in told
    assert "Not told apart" in told or "is better than" in told
    assert (folder / "report.html").is_file()
    assert not list(folder.glob("runs/*/*/checkpoints")), "what is large is not kept"
    assert main(["report", str(folder)]) == 0


def undisturbed(folder: Path) -> Mapping[Job, float | None]:
    """Go through the toy study in this process, and return its scores."""
    with SharedStudy(build_study(TOY, []), f"sqlite:///{folder / 'undisturbed.db'}") as shared:
        assert work(shared, folder / "undisturbed", train_trial, "alone")
        return {trial.job: trial.score for trial in shared.trials()}


@pytest.mark.slow
def test_sigterm_gives_jobs_back_and_the_same_command_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = started(folder, TOY, "--workers", "2", "--pause-seconds", "0.2")
    wait_until(lambda: in_the_middle_of_a_trial(folder))
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGTERM)
    code, told = ended(process)
    assert code == 75, told
    assert "the same command goes on" in told
    assert not any(map(is_alive, workers))
    code, told = ended(started(folder, TOY, "--workers", "2", "--pause-seconds", "0.2"))
    assert code == 0, told
    records = [read_run_record(path) for path in folder.glob("runs/*/*")]
    assert any(record["sessions"][-1]["from_step"] > 0 for record in records), "one went on from its checkpoint"
    assert scores(folder) == undisturbed(tmp_path)


def test_a_run_that_went_on_tells_its_evaluations_by_their_place_in_the_whole(tmp_path: Path) -> None:
    study = replace(build_study(TOY, []), options={"evaluate_every_steps": 5, "checkpoint_every_steps": 5})
    job = next(iter(study.jobs()))
    told: list[list[int]] = []

    def train(interrupted_at: int | None) -> None:
        told.append([])

        def is_hopeless(_: float, evaluation: int) -> bool:
            told[-1].append(evaluation)
            if evaluation == interrupted_at:
                raise KeyboardInterrupt
            return False

        train_trial(study, study.by_name[job.arm], job, {"lr": 0.02}, tmp_path / "run", is_hopeless)

    with pytest.raises(KeyboardInterrupt):
        train(2)
    train(None)
    assert told == [[0, 1, 2], [2, 3]]


def test_a_ledger_alone_goes_on_and_is_never_shortened(tmp_path: Path) -> None:
    """As after a clone: what is committed is study.json and trials.jsonl."""
    folder = tmp_path / "out"
    code, told = ended(started(folder, TOY, "--workers", "2"))
    assert code == 0, told
    whole = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    for path in (folder / "runs", folder / "study.db"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "trials.jsonl").write_text("".join(whole[:-1]))
    process = started(folder, TOY, "--workers", "1", "--pause-seconds", "0")
    code, told = ended(process)
    assert code == 0, told
    again = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == whole[:-1]
    assert json.loads(again[-1])["score"] == json.loads(whole[-1])["score"]
    assert [path.name for path in folder.glob("runs/*/*")] == ["seed-2"], "one run was trained, the others were there"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_are_starting_stops_the_study(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path / "out", TOY, "--workers", "2", "--pause-seconds", "0.2")
    wait_until(lambda: children(process.pid))
    process.send_signal(number)
    code, told = ended(process)
    assert code == 75, told
    assert "stopped; the same command goes on" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_two_commands_on_one_folder_share_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    pair = [started(folder, TOY, "--workers", "1", "--pause-seconds", "0.02") for _ in range(2)]
    for process in pair:
        code, told = ended(process)
        assert code == 0, told
    assert len(scores(folder)) == 10
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        *("report.html", "report.md", "study.db", "study.json", "trials.jsonl")
    ]


@pytest.mark.slow
def test_workers_killed_one_by_one_and_all_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    words = (TOY, "--workers", "2", "--pause-seconds", "0.2")
    process = started(folder, *words)
    wait_until(lambda: in_the_middle_of_a_trial(folder))
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(children(process.pid)) == 1)
    time.sleep(2)
    for pid in (process.pid, *workers):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    # And once more the first process alone: its workers end by themselves.
    process = started(folder, *words)
    wait_until(lambda: len(children(process.pid)) == 2)
    time.sleep(3)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # to the end of what the workers say, too
    wait_until(lambda: not any(map(is_alive, workers)))
    code, told = ended(started(folder, *words))
    assert code == 0, told
    assert scores(folder) == undisturbed(tmp_path)


@pytest.mark.slow
def test_a_lost_worker_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = started(folder, TOY, "--workers", "2", "--pause-seconds", "0.05", "--trials", "2", "--seeds", "1")
    wait_until(lambda: len(children(process.pid)) == 2 and list(folder.glob("runs/*/*/run.json")))
    os.kill(children(process.pid)[1], signal.SIGKILL)
    code, told = ended(process)
    assert code == 0, told
    assert "worker 1 died (-9)" in told
    assert len(scores(folder)) == 6


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["study", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("largebatch: ")
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs the name of a study"),
        (("lamb-batch",), "no study 'lamb-batch', did you mean lamb-batches?"),
        (("study.toy_study:nothing",), "has no function nothing"),
        (("study.toy_study:no_study",), "returned int, a study's function returns a Study"),
        (("study.toy_study:wrong_option",), "--learning-rate"),
        ((TOY, "--workers", "0"), "workers is 0"),
        ((TOY, "--trials", "0"), "allowed is 1 or more"),
        ((TOY, "--seedz", "2"), "--seedz"),
        ((TOY, "--name", "a b"), "allowed are letters, digits"),
        ((TOY, "--storage", "nonsense"), "allowed is a URL"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert said in refused(capsys, *words, *(("--out", str(folder)) if words else ()))
    assert not folder.exists()


def test_a_score_that_the_task_does_not_have_ends_the_study_with_a_sentence(tmp_path: Path) -> None:
    code, told = ended(started(tmp_path / "out", "study.toy_study:wrong_score", "--workers", "1"))
    assert code == 2
    assert "goes by 'accuracy', the evaluations of the recipe have ['root', 'loss']" in told
    assert "Traceback" not in told


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "holds other files" in refused(capsys, TOY, "--out", str(tmp_path))
    assert "is a file" in refused(capsys, TOY, "--out", str(tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_a_kill_left_of_a_beginning_is_no_file_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json.partial").write_text("{")
    (tmp_path / "run.lock").write_text("")
    assert main(["study", TOY, "--out", str(tmp_path), "--trials", "2", "--seeds", "1", "--workers", "1"]) == 0
    assert len(scores(tmp_path)) == 6
    assert "report: " in capsys.readouterr().out


def test_every_choice_of_every_arm_is_tried_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--lr" in refused(capsys, "study.toy_study:late_choice", "--out", str(tmp_path / "out"))
    assert "--batch is '12.0'" in refused(capsys, "study.toy_study:carried_whole", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_the_help_has_the_options_of_the_study_and_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "image-optimizers", "--help"])
    told = capsys.readouterr().out
    for option in ("--size", "--trials", "--seeds", "--out", "--workers", "--storage", "--name", "--dry-run"):
        assert option in told


def test_a_folder_of_another_declaration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, build_study(TOY, []), {})
    before = (tmp_path / "study.json").read_bytes()
    assert "holds a study with other seeds" in refused(capsys, TOY, "--out", str(tmp_path), "--seeds", "3")
    assert "holds a study with other arms" in refused(capsys, TOY, "--out", str(tmp_path), "--trials", "4")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_other_words_are_no_other_study(tmp_path: Path) -> None:
    few = ("--trials", "2", "--seeds", "1")
    study = build_study(TOY, few)
    write_study(tmp_path, replace(study, title="Old", notes=("Old.",)), {"command": "as it was", "versions": {}})
    assert main(["study", TOY, *few, "--workers", "1", "--out", str(tmp_path)]) == 0
    held, origin = read_study(tmp_path)
    assert held == study
    assert origin == {"command": "as it was", "versions": {}}


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["study", TOY, "--dry-run", "--out", str(folder)]) == 0
    assert "10 runs of study.toy_study:recipe: 6 to tune, 4 seeds" in capsys.readouterr().out
    assert not folder.exists()


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_of_the_paper_are_what_was_asked_for(name: str) -> None:
    study = build_study(name, [])
    assert isinstance(study, Study)
    assert study.seeds == 5
    assert all(len(arm.points) >= 8 for arm in study.arms if arm.points)
    batches = {arm.batch for arm in study.arms} - {None}
    assert not batches or len(batches) >= 3
    assert study_promise(name).endswith(".")
    sized = name != "scaling-rules"
    words = ["--size", "full"] if sized else ["--optimizer", "adamw"]
    full = build_study(name, words)
    assert main(["study", name, *words, "--dry-run"]) == 0
    assert full != study


def test_studies_are_listed_with_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in STUDIES)
