"""The main job in real processes: prepare, train, kill, resume, two ranks, export, report."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.cli import main
from largebatch.counter_random import integers, key
from largebatch.errors import InputError
from largebatch.text.shards import PreparedCorpus
from train.test_processes import ledger, run, started, train_losses, wait_for_steps

pytestmark = pytest.mark.xdist_group("BERT in processes")

TINY = "train.bert_runs:tiny_bert"
TEXT = "the batch was large and a rate grew with its root so training took few steps over many words"


def write_text(path: Path, documents: int = 60) -> None:
    """Write documents of a few sentences, each in its own words."""
    words = TEXT.split()
    lines = []
    for document in range(documents):
        for sentence in range(3 + document % 5):
            drawn = integers(key(document, sentence), np.arange(4 + (document + sentence) % 9), len(words))
            lines.append(" ".join(words[index] for index in drawn) + f" {document} .")
        lines.append("")
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "words.txt")
    words = ["--source", str(folder / "words.txt"), "--vocabulary-size", "100", "--held-out-fraction", "0.2"]
    assert main(["prepare", *words, "--workers", "1", "--out", str(folder / "corpus")]) == 0
    return folder / "corpus"


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    done = run(out, "--corpus", str(corpus), recipe=TINY)
    assert done.returncode == 0, done.stderr
    return out


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in ledger(out) if line["kind"] == kind]


def test_a_run_leaves_all_that_it_promises(trained: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "report.html", "model/config.json", "tensorboard"):
        assert (trained / name).exists(), name
    last = lines(trained, "eval")[-1]
    assert set(last["metrics"]) >= {
        "mlm_loss",
        "mlm_accuracy",
        "nsp_accuracy",
        "unigram_loss",
        "most_frequent_accuracy",
    }
    assert last["loss"] == pytest.approx(last["metrics"]["mlm_loss"] + last["metrics"]["nsp_loss"])
    record = json.loads((trained / "run.json").read_text())
    assert record["run"]["stages"][1]["task_options"] == {"sequence_length": 48, "max_predictions": 8}
    assert record["versions"]["torch"] == torch.__version__
    # The default on a CPU, and the page says so.
    assert record["sessions"][0]["kernels"] == "fused cpu"
    assert ">fused cpu<" in (trained / "report.html").read_text(encoding="utf-8")


def test_the_second_stage_begins_at_zero_and_warms_up(trained: Path) -> None:
    rates = [line["lr"] for line in lines(trained, "train") if line["stage"] == "long"]
    assert rates[:3] == [0.0, 0.0025, 0.005]


def test_tensorboard_holds_losses_and_trust_ratios(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "loss/mlm", "loss/nsp", "lr", "grad_norm", "held_out/mlm_loss"} <= tags
    assert any(tag.startswith("trust_ratio/") for tag in tags)
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 21))


def test_the_export_loads_elsewhere_with_equal_logits(trained: Path, corpus: Path) -> None:
    from transformers import AutoModelForPreTraining, AutoTokenizer

    model = AutoModelForPreTraining.from_pretrained(trained / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    encoded = tokenizer("the batch was large", "a rate grew", return_tensors="pt")
    assert (
        encoded["input_ids"][0].tolist()
        == PreparedCorpus.open(corpus).tokenizer().encode("the batch was large", "a rate grew").ids
    )
    theirs = model(**encoded)
    ours = _last_checkpoint_model(trained, corpus)(**encoded)
    assert torch.equal(theirs.prediction_logits, ours.prediction_logits)
    assert torch.equal(theirs.seq_relationship_logits, ours.seq_relationship_logits)


def _last_checkpoint_model(out: Path, corpus: Path) -> Any:
    from dataclasses import replace

    from largebatch.train import checkpoint
    from train.bert_runs import tiny_bert

    described = tiny_bert()
    task = replace(described.task, corpus=str(corpus))
    model = task.build_model(99)
    optimizer = described.optimizer.build(model)
    optimizer.init_state()
    assert checkpoint.load_newest(out, model, optimizer, pytest.fail) is not None
    return model.eval().network


def test_kill_9_and_resume_to_the_bit(trained: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--corpus", str(corpus))
    with started(out, *words, recipe=TINY) as process:
        wait_for_steps(out, 5, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    resumed = run(out, *words, "--resume", recipe=TINY)
    assert resumed.returncode == 0, resumed.stderr
    assert ledger(out) == ledger(trained)


@pytest.mark.parametrize("microbatch", ["5", "12", "auto"])
def test_other_microbatches_give_the_same_losses(trained: Path, corpus: Path, tmp_path: Path, microbatch: str) -> None:
    words = ["--corpus", str(corpus), "--microbatch", microbatch]
    assert main(["train", TINY, "--out", str(tmp_path / "run"), *words]) == 0
    assert train_losses(tmp_path / "run") == pytest.approx(train_losses(trained), rel=1e-5)


def test_two_ranks_give_the_same_losses_also_with_dropout(trained: Path, corpus: Path, tmp_path: Path) -> None:
    words = ("--corpus", str(corpus), "--dropout", "0.1", "--attention-dropout", "0.1")
    for name, ranks in (("one", 1), ("two", 2)):
        done = run(tmp_path / name, *words, recipe=TINY, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), rel=1e-5)
    assert train_losses(tmp_path / "one") != train_losses(trained), "dropout was on"


def test_training_goes_on_from_another_folder_s_weights(trained: Path, corpus: Path, tmp_path: Path) -> None:
    words = ["--corpus", str(corpus), "--init-from", str(trained / "model")]
    assert main(["train", TINY, "--out", str(tmp_path / "run"), *words]) == 0
    first = train_losses(tmp_path / "run")[0]
    assert first < train_losses(trained)[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corpus", "nowhere"), "nowhere"),
        (("--max-position-embeddings", "40"), "sequence_length is 48.*40"),
        (("--attention-heads", "5"), "heads"),
        (("--init-from", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    start = ["train", TINY, "--out", str(tmp_path / "run")]
    if "--corpus" not in words:
        start += ["--corpus", str(corpus)]
    assert main([*start, *words]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_corpus_is_named(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    victim = tmp_path / "corpus" / "train-00000.tokens.npy"
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"train-00000\.tokens\.npy"):
        PreparedCorpus.open(tmp_path / "corpus")


def test_a_run_does_not_go_on_with_another_corpus_in_the_same_place(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "corpus"
    shutil.copytree(corpus, place)
    words = ["train", TINY, "--out", str(tmp_path / "run"), "--corpus", str(place)]
    assert main(words) == 0
    assert main([*words, "--resume"]) == 0, "the same corpus"
    elsewhere = shutil.move(place, tmp_path / "moved")
    assert main([*words[:-1], str(elsewhere), "--resume"]) == 0, "the same corpus elsewhere"
    write_text(tmp_path / "other.txt", documents=50)
    prepared = ["--vocabulary-size", "100", "--held-out-fraction", "0.2", "--workers", "1", "--out", str(place)]
    assert main(["prepare", "--source", str(tmp_path / "other.txt"), *prepared]) == 0
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "cannot go on with other data" in capsys.readouterr().err
