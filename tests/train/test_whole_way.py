"""From text to SQuAD's score in one command, killed on its way and gone on with."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from largebatch.cli import main
from train.test_bert_processes import TINY, write_text
from train.test_processes import ledger, run, started, wait_for_steps

pytestmark = pytest.mark.xdist_group("the whole way")


def _questions(path: Path, count: int) -> str:
    """Write questions whose answer is the number that ends each sentence of the text."""
    words = ["the", "batch", "was", "large", "and", "a", "rate", "grew", "with", "its", "root"]
    paragraphs = []
    for number in range(count):
        context = " ".join(words[number % 5 : number % 5 + 5]) + f" {number % 60} . " + " ".join(words[number % 7 :])
        answer = {"text": str(number % 60), "answer_start": context.index(f" {number % 60} .") + 1}
        paragraphs.append(
            {"context": context, "qas": [{"id": f"q{number}", "question": "a rate", "answers": [answer]}]}
        )
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of the command but for its folders."""
    folder = tmp_path_factory.mktemp("data")
    write_text(folder / "words.txt", 400)
    return [
        *("--source", str(folder / "words.txt"), "--squad-train", _questions(folder / "train.json", 48)),
        *("--squad-dev", _questions(folder / "dev.json", 20), "--squad-seeds", "2", "--squad-batch", "8"),
        *("--squad-epochs", "3", "--squad-lr", "0.003"),
    ]


def _scores(out: Path) -> list[dict[str, Any]]:
    return [ledger(out / "squad" / f"seed-{seed}")[-1]["metrics"] for seed in range(2)]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run(out, *words, "--corpus", str(out.parent / "corpus"), recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert re.search(r"prepared \d+ documents", done.stdout)
    assert "fine-tuning on SQuAD with seed 1, the last is 1" in done.stdout
    assert "Fine-tuned on SQuAD with 2 seeds: F1" in done.stdout
    return out


def test_one_command_goes_from_text_to_the_score(whole: Path, words: list[str]) -> None:
    scores = _scores(whole)
    assert all({"f1", "exact_match"} <= set(metrics) for metrics in scores)
    for seed in range(2):
        place = whole / "squad" / f"seed-{seed}"
        record = json.loads((place / "run.json").read_text(encoding="utf-8"))
        assert record["run"]["seed"] == seed
        assert record["run"]["task"]["init_from"] == str(whole / "model")
        assert record["optimizer_name"] == "AdamW"
        assert (place / "model" / "config.json").is_file()
        assert (place / "report.html").is_file()
        # 48 windows, 3 epochs, 8 in a batch.
        assert record["run"]["stages"][0]["steps"] == 18
    assert 'id="fine-tuned"' in (whole / "report.html").read_text(encoding="utf-8")
    overrides = json.loads((whole / "run.json").read_text(encoding="utf-8"))["overrides"]
    assert overrides[: len(words)] == words, "the page's command repeats the whole way"


def test_a_finished_way_is_not_gone_again(whole: Path, words: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("squad/*/metrics.jsonl")}
    done = run(whole, *words, "--corpus", str(whole.parent / "corpus"), "--resume", recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("squad/*/metrics.jsonl")}


@pytest.mark.parametrize(("place", "steps"), [(".", 7), (".", 20), ("squad/seed-0", 5), ("squad/seed-1", 11)])
def test_killed_anywhere_it_goes_on_to_the_same_scores(
    whole: Path, words: list[str], tmp_path: Path, place: str, steps: int
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.parent / "corpus", tmp_path / "corpus")
    given = [*words, "--corpus", str(tmp_path / "corpus"), "--checkpoint-every-steps", "3"]
    with started(out, *given, recipe=TINY) as process:
        wait_for_steps(out / place, steps, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run(out, *given, "--resume", recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert _scores(out) == _scores(whole)


def test_a_stop_in_a_fine_tuning_saves_and_says_how_to_go_on(whole: Path, words: list[str], tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run" / "squad").iterdir():
        shutil.rmtree(path)
    given = [*words, "--corpus", str(whole.parent / "corpus")]
    with started(tmp_path / "run", *given, "--resume", recipe=TINY) as process:
        wait_for_steps(tmp_path / "run" / "squad" / "seed-0", 2, process)
        os.kill(process.pid, signal.SIGTERM)
        out, error = process.communicate(timeout=100)
    if process.returncode == 0:
        pytest.fail(f"it was done before it could be stopped: {out} {error}")
    assert process.returncode == 75, error
    assert "--resume" in out
    done = run(tmp_path / "run", *given, "--resume", recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert _scores(tmp_path / "run") == _scores(whole)


def test_a_seed_that_diverges_leaves_the_others_their_turn(whole: Path, words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("squad"))
    given = [*words[:-1], "1e30", "--corpus", str(whole.parent / "corpus"), "--resume"]
    for _ in range(2):  # the second time it goes on, to the same end
        done = run(out, *given, recipe=TINY)
        assert done.returncode == 1
        for seed in range(2):
            said = rf"SQuAD with seed {seed}: stopped at step \d+: 5 steps in a row"
            assert re.search(said, done.stderr), done.stderr
            assert (out / "squad" / f"seed-{seed}" / "report.html").is_file()
        assert "no seed has come to its end" in done.stdout


@pytest.mark.slow
def test_an_interrupted_preparation_begins_again(words: list[str], tmp_path: Path) -> None:
    big = tmp_path / "big.txt"
    write_text(big, 20_000)
    given = ["--source", str(big), *words[2:], "--corpus", str(tmp_path / "corpus")]
    with started(tmp_path / "run", *given, recipe=TINY) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob("corpus*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "run").exists()
    done = run(tmp_path / "run", *given, "--dry-run", recipe=TINY)
    assert done.returncode == 2
    assert "corpus is not prepared, which a dry run does not do" in done.stderr
    assert not (tmp_path / "run").exists()
    done = run(tmp_path / "run", *given, "--resume", recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert re.search(r"run holds no run yet, one begins there", done.stdout)
    assert len(_scores(tmp_path / "run")) == 2
    done = run(tmp_path / "other", *given, "--dry-run", recipe=TINY)
    assert done.returncode == 0, done.stderr
    assert "then SQuAD with 2 seeds: 3 epochs" in done.stdout


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"--squad-lr": "0.001"},
            r"seed-0 was fine-tuned with another --squad-lr \(recorded 0\.003, given 0\.001\)",
        ),
        ({"--squad-epochs": "2"}, r"with another --squad-epochs \(recorded 3\.0, given 2\.0\)"),
        (
            {"--squad-dev": "TRAIN"},
            r"seed-0 was fine-tuned with another --squad-dev \(recorded .*dev\.json, given .*train\.json\)",
        ),
        ({"--source": "elsewhere.txt"}, r"holds a corpus prepared with source .*words\.txt, not elsewhere\.txt"),
    ],
)
def test_seeds_of_one_mean_are_fine_tuned_alike(
    whole: Path, words: list[str], changed: dict[str, str], said: str
) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    changed = {name: given["--squad-train"] if value == "TRAIN" else value for name, value in changed.items()}
    options = [word for pair in (given | changed).items() for word in pair]
    before = (whole / "report.html").read_bytes()
    done = run(whole, *options, "--corpus", str(whole.parent / "corpus"), "--resume", recipe=TINY)
    assert done.returncode == 2
    assert re.search(said, done.stderr), done.stderr
    assert (whole / "report.html").read_bytes() == before


def test_other_questions_under_the_same_name_are_noticed(whole: Path, words: list[str]) -> None:
    dev = Path(words[words.index("--squad-dev") + 1])
    before = dev.read_bytes()
    _questions(dev, 19)
    try:
        done = run(whole, *words, "--corpus", str(whole.parent / "corpus"), "--resume", recipe=TINY)
    finally:
        dev.write_bytes(before)
    assert done.returncode == 2
    assert "seed-0 was fine-tuned with another set of questions" in done.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--squad-train", "x.json"], "--squad-dev is missing"),
        (["--squad-dev", "x.json"], "--squad-train is missing"),
        (["--squad-train", "nowhere.json", "--squad-dev", "x.json"], r"no file or folder nowhere\.json"),
        (["--squad-seeds", "3"], "--squad-seeds is given, but nothing to fine-tune on: add --squad-train"),
        (["--squad-lr", "1e-4"], "--squad-lr is given"),
        (["--squad-train", "x", "--squad-dev", "x", "--squad-seeds", "0"], "squad_seeds is 0"),
        (["--squad-train", "x", "--squad-dev", "x", "--squad-epochs", "nan"], "squad_epochs is nan"),
        (["--squad-train", "x", "--squad-dev", "x", "--squad-dev-questions", "0"], "squad_dev_questions is 0"),
        (["--squad-train", "x", "--squad-dev", "x", "--squad-sequence-length", "4000"], "to be pre-trained allows 128"),
        (["--squad-train", "x", "--squad-dev", "x", "--squad-sequence-length", "3"], "the windows of SQuAD: sequence"),
    ],
)
def test_what_cannot_work_is_told_before_anything(
    changed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "bert-demo", "--out", str(tmp_path / "run"), *changed]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--squad-train-questions", "49", r"49 questions of .*train\.json are asked for, it has 48"),
        ("--squad-dev-questions", "21", r"21 questions of .*dev\.json are asked for, it has 20"),
        ("--squad-batch", "1000000000000", "squad_batch is 1000000000000, allowed is 1 to"),
        ("--squad-epochs", "1e30", r"squad_epochs is 1e\+30, which takes .* steps, allowed is"),
    ],
)
def test_a_fine_tuning_that_cannot_work_is_told_before_anything(
    words: list[str], option: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True)) | {option: value, "--corpus": str(tmp_path / "corpus")}
    options = [word for pair in given.items() for word in pair]
    assert main(["train", "bert-demo", "--out", str(tmp_path / "run"), *options]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_is_there_is_said_to_be_used(
    whole: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--corpus", str(whole.parent / "corpus"), *words, "--dry-run"]
    assert main(["train", TINY, "--out", str(tmp_path / "run"), *given]) == 0
    assert re.search(r"corpus is prepared already from .*words\.txt; remove it", capsys.readouterr().out)


def test_other_tasks_have_no_such_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "train.toy:toy", "--out", str(tmp_path / "run"), "--source", "x"]
    assert main(words) == 2
    assert "--source needs a recipe that pre-trains BERT, the task here is ToyTask" in capsys.readouterr().err
