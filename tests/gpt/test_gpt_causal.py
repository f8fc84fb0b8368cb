"""GPT learns what follows, its loss is transformers' own, and its perplexity is exp of nats a token."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from largebatch.cli import main
from largebatch.errors import InputError
from largebatch.gpt.causal import CausalLanguageModel
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare

STAGE: Any = SimpleNamespace(name="only", task_options={"sequence_length": 16})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents that count: each word is followed by the same one."""
    folder = tmp_path_factory.mktemp("gpt")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    documents = [" ".join(words[(n + i) % 10] for i in range(20 + n % 7)) for n in range(200)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    asked = PrepareOptions(
        source=str(folder / "text.txt"), tokenizer="bpe", vocabulary_size=300, held_out_fraction=0.1, workers=1
    )
    return str(prepare(asked, folder / "corpus").folder)


@pytest.fixture
def task(corpus: str) -> CausalLanguageModel:
    return CausalLanguageModel(
        corpus=corpus, hidden_size=32, layers=2, attention_heads=2, max_position_embeddings=16, held_out_sequences=20
    )


def _batch(task: CausalLanguageModel, count: int = 4) -> dict[str, torch.Tensor]:
    data = task.dataset(STAGE, 0)
    return task.collate([data[0, i] for i in range(count)])


def _judged(task: CausalLanguageModel, model: nn.Module) -> tuple[float, dict[str, float]]:
    data = task.evaluation_dataset(STAGE, 0)
    with torch.no_grad():
        sums = task.evaluate(model.eval(), task.collate([data[0, i] for i in range(len(data))]))
    return task.summarise({name: float(value) for name, value in sums.items()})


def test_loss_and_gradients_are_those_of_transformers(
    task: CausalLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("largebatch.gpt.model._TOKENS_AT_ONCE", 7)  # several portions, the last one short
    model: Any = task.build_model(0).double()
    batch = _batch(task)
    loss = task.loss(model, batch)["lm"] / task.counts(batch)["lm"]
    found = torch.autograd.grad(loss, list(model.parameters()))
    theirs = model.network(input_ids=batch["input_ids"]).logits.flatten(0, 1).float()
    wanted = nn.functional.cross_entropy(theirs, batch["targets"].flatten())
    torch.testing.assert_close(loss, wanted)
    expected = torch.autograd.grad(wanted, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    off_by_one = nn.functional.cross_entropy(theirs, batch["input_ids"].flatten())
    assert abs(float(off_by_one.detach() - loss.detach())) > 1e-3


def test_it_learns_what_follows(task: CausalLanguageModel, tmp_path: Path) -> None:
    task.check([STAGE])
    model = task.build_model(0)
    before_loss, before = _judged(task, model)
    assert before["perplexity"] == pytest.approx(math.exp(before_loss))
    assert before["unigram_perplexity"] < 40 < before["perplexity"]
    data = task.dataset(STAGE, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for step in range(80):
        batch = task.collate([data[0, (16 * step + i) % len(data)] for i in range(16)])
        (task.loss(model, batch)["lm"] / task.counts(batch)["lm"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    _, after = _judged(task, model)
    assert after["perplexity"] < before["unigram_perplexity"] / 3
    assert after["accuracy"] > 0.7
    task.export(model, tmp_path / "model")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer("one two three four five", return_tensors="pt")
    follows = theirs.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(follows[0]).startswith("one two three four five six")


def test_evaluation_does_not_depend_on_how_sequences_are_joined(task: CausalLanguageModel) -> None:
    model = task.build_model(1).eval()
    data = task.evaluation_dataset(STAGE, 0)
    whole = _judged(task, model)
    sums: dict[str, float] = {}
    with torch.no_grad():
        for index in range(len(data)):
            for name, value in task.evaluate(model, task.collate([data[0, index]])).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    parts = task.summarise(sums)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == pytest.approx(whole[1], rel=1e-6)


def test_the_same_seed_is_the_same_model(task: CausalLanguageModel) -> None:
    first, again, other = (dict(task.build_model(seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_operations_are_those_that_are_counted(task: CausalLanguageModel) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model: Any = task.build_model(0)
    model.network.set_attn_implementation("eager")
    batch = _batch(task)
    with FlopCounterMode(display=False) as counter:
        model.network(input_ids=batch["input_ids"]).logits.sum().backward()
    rows, length = batch["input_ids"].shape
    # The counter takes attention as it is computed, to both sides of each token.
    both_sides = 3 * rows * task.layers * 2 * task.hidden_size * length**2
    assert task.flops(batch) + both_sides == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_a_run_of_the_recipe(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--corpus", corpus, "--batch", "16", "--samples", "256", "--sequence-length", "16", "--hidden-size", "32"]
    for optimizer in ("lamb", "adamw"):
        out = tmp_path / optimizer
        assert main(["train", "gpt-mini", *words, "--optimizer", optimizer, "--out", str(out)]) == 0
        told = capsys.readouterr().out
        assert "Perplexity, held-out" in told
        assert (out / "model" / "config.json").is_file()
        assert "Perplexity on held-out text" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({"hidden_size": 31}, {"sequence_length": 16}, "the heads must divide"),
        ({"layers": 0}, {"sequence_length": 16}, "layers is 0"),
        ({"dropout": 1.0}, {"sequence_length": 16}, "dropout is 1.0"),
        ({}, {"sequence_length": 17}, "sequence_length is 17, allowed is 1 up to max_position_embeddings, 16"),
        ({}, {}, "allowed is sequence_length alone"),
        ({}, {"sequence_length": 16, "max_predictions": 2}, "allowed is sequence_length alone"),
        ({"corpus": "nowhere"}, {"sequence_length": 16}, "no prepared corpus at nowhere"),
        ({"max_position_embeddings": 10**6}, {"sequence_length": 10**6}, "has not the 1000001 tokens of one sequence"),
    ],
)
def test_what_cannot_work_is_refused(
    task: CausalLanguageModel, changed: dict[str, Any], options: dict[str, int], said: str
) -> None:
    stage: Any = SimpleNamespace(name="only", task_options=options)
    with pytest.raises(InputError, match=said):
        replace(task, **changed).check([stage])


@pytest.mark.parametrize("recipe", ["gpt-mini", "gpt2"])
def test_a_rate_that_is_none_is_named_as_it_was_given(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "--lr-at-32", "nan", "--out", str(tmp_path / "run")]) == 2
    assert "lr_at_32 is nan, allowed is more than 0 and finite" in capsys.readouterr().err
