"""The command line as a user meets it: what the verbs print, and one sentence with exit code 2 for each mistake."""

import re
from pathlib import Path

import pytest

from largebatch.cli import main

TOY = "train.toy:toy"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that a mistake is answered with."""
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith("largebatch: "), told.err
    assert told.err.count("\n") == 1, "one line"
    assert "Traceback" not in told.err
    return told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), r"no verb 'trian', did you mean train\?"),
        (("train",), "needs the name of a recipe"),
        (("train", "bert-dmeo"), r"no recipe 'bert-dmeo', did you mean bert-demo\?.*bert-large"),
        (("train", "nowhere:recipe"), "nowhere cannot be found"),
        (("train", "train.toy:nothing"), "train.toy has no function nothing"),
        (("train", "train.toy:ToyTask"), "returned ToyTask, a recipe returns a Run"),
        (("train", TOY, "--seeed", "1"), "--seeed.*perhaps you meant --seed INT"),
        (("train", TOY, "--seed", "one"), "--seed is 'one', allowed is --seed INT"),
        (("train", TOY, "--microbatch", "1.5"), "--microbatch is '1.5', allowed is --microbatch INT"),
        (("train", TOY, "--eps", "small"), "--eps is 'small', allowed is --eps FLOAT"),
        (("train", TOY, "--seed", "-1"), "seed is -1, allowed is 0 or more"),
        (("train", TOY, "--seed", "99999999999999999999999"), r"below 2\^63"),
        (("train", TOY, "--precision", "fp7"), "fp7.*fp32"),
        (("train", TOY, "--weight-decay", "-1"), "optimizer cannot be built: .*weight_decay"),
        (("train", TOY, "--eps", "nan"), "optimizer cannot be built: .*eps"),
        (("train", TOY, "--max-grad-norm", "0"), "optimizer cannot be built: .*max_grad_norm"),
        (("train", TOY, "--betas", "0.9"), "--betas"),
        (("train", TOY, "--batch", "0"), "global_batch_samples is 0"),
        (("train", TOY, "--seed", "1", "--batch", "8", "--seed=2"), "--seed is given 2 times, allowed is once"),
        (("prepare", "--vocabulary_size", "300", "--vocabulary-size", "400"), "--vocabulary-size is given 2 times"),
        (("prepare", "--tokenizer", "bpe", "--vocabulary-size", "9"), "^largebatch: vocabulary_size is 9"),
        (("train", TOY, "--device", "cuda"), "sees no GPU"),
        (("train", TOY, "--gradient-compression", "bf16"), "needs processes that torchrun has started"),
        (("train", TOY, "--init-from", "folder"), "cannot start from another model"),
        (("train", TOY, "--stages", "1"), "Unrecognized options: --stages"),
        (("scale",), "needs .*resnet50 as model"),
        (("scale", "bert-lage"), r"'bert-lage', did you mean bert-large\?"),
        (("scale", "bert-large", "--batch", "many"), "--batch is 'many', allowed is a number"),
        (("scale", "bert-large", "--batch", "0"), "batch"),
        (("scale", "bert-large", "--batch", "1K/2K"), "64K/32K"),
        (("scale", "resnet50", "--batch", "64K/32K"), "one number"),
        (("report", "nowhere"), "nowhere"),
        (("recipes", "more"), "takes nothing more"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(capsys, *words))
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_batch_above_the_table_is_said_to_be_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "bert-large", "--batch", "48000"]) == 0
    assert "extrapolated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch", "lr", "steps"),
    [
        ("512", "6.25e-4", "900,000 + 100,000"),
        ("1K", "8.839e-4", "450,000 + 50,000"),
        ("2048", "1.25e-3", "225,000 + 25,000"),
        ("4096", "1.768e-3", "112,500 + 12,500"),
        ("8192", "2.5e-3", "56,250 + 6,250"),
        ("16384", "3.536e-3", "28,125 + 3,125"),
        ("32768", "5e-3", "14,063 + 1,562"),
    ],
)
def test_scale_prints_every_published_batch(
    capsys: pytest.CaptureFixture[str], batch: str, lr: str, steps: str
) -> None:
    assert main(["scale", "bert-large", "--batch", batch]) == 0
    told = capsys.readouterr().out
    assert f"peak lr {lr}, 3,125 warm-up steps, {steps} steps" in told
    assert "our reading" in told
    assert "T = ceil(512,000,000 / " in told


def test_scale_prints_both_stages_of_the_mixed_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "bert-large", "--batch", "65536/32768"]) == 0
    told = capsys.readouterr().out
    assert "peak lr 6e-3 / 4e-3, 2,001 / 200 warm-up steps, 7,037 + 1,562 steps" in told
    assert told.count("lr 0 at its first step") == 2, "each stage from zero"
    for origin in ("NVIDIA", "published", "our choice"):
        assert origin in told


def test_recipes_lists_what_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {"bert-demo", "bert-base", "bert-large", "bert-large-mixed", "bert-large-nvidia"} <= set(names)


@pytest.mark.parametrize("verb", [(), ("train", TOY), ("prepare",), ("scale", "resnet50"), ("recipes",), ("train",)])
def test_help_is_printed(capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]) -> None:
    try:
        code = main([*verb, "--help"])
    except SystemExit as left:
        code = left.code
    assert code == 0
    assert "usage: largebatch" in capsys.readouterr().out


def test_help_of_a_recipe_shows_its_own_options_and_the_run_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", TOY, "--help"])
    told = capsys.readouterr().out
    for option in (
        "--out",
        "--resume",
        "--dry-run",
        "--batch INT",
        "--reset-moments",
        "--seed",
        "--dropout",
        "--weight-decay",
        "--microbatch",
    ):
        assert option in told


def test_a_dry_run_counts_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", TOY, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 stages, 20 steps" in told
    assert "stage one: 12 steps of 10 samples = microbatch 4 x accumulation 3 x ranks 1" in told
    assert "in all 160 samples" in told
    assert list(tmp_path.iterdir()) == []


def test_overrides_reach_the_run_and_its_record(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--steps", "3", "--seed", "5", "--weight-decay", "0.1", "--microbatch", "auto", "--betas", "0.8", "0.9"]
    assert main(["train", TOY, "--out", str(out), *words]) == 0
    record = (out / "run.json").read_text()
    assert '"seed": 5' in record
    assert '"weight_decay": 0.1' in record
    assert '"recipe": "train.toy:toy"' in record
    assert (out / "report.html").exists()
