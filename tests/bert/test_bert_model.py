"""The model with its projection at predicted positions only, against Hugging Face's own losses and gradients."""

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, DistilBertConfig, DistilBertModel

from largebatch.bert.dataset import MaskedPair, collate
from largebatch.bert.masking import IGNORED
from largebatch.bert.model import PretrainingModel, pretrained_model, random_model
from largebatch.errors import InputError

VOCABULARY, LENGTH, ROWS, SLOTS = 68, 24, 6, 4
HEADS = ["cls.predictions", "cls.seq_relationship"]


def config(**changes: Any) -> BertConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**settings, **changes})


def batch_of(rows: int = ROWS, seed: int = 0, fixed_shapes: bool = False, length: int = LENGTH) -> dict[str, Tensor]:
    """Return a batch with padding and with unused slots."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(rows):
        first, second = (int(n) for n in torch.randint(2, 10, (2,), generator=generator))
        used = int(torch.randint(1, SLOTS + 1, (), generator=generator))
        tokens = torch.randint(5, VOCABULARY, (length,), generator=generator)
        tokens[first + second + 3 :] = 0
        positions = torch.zeros(SLOTS, dtype=torch.int64)
        labels = torch.full((SLOTS,), IGNORED)
        positions[:used] = (1 + torch.randperm(first + second, generator=generator)[:used]).sort().values
        labels[:used] = torch.randint(5, VOCABULARY, (used,), generator=generator)
        random = bool(torch.rand((), generator=generator) < 0.5)
        samples.append(MaskedPair(tokens.numpy(), first, second, random, positions.numpy(), labels.numpy()))
    return collate(samples, fixed_shapes=fixed_shapes)


def spread_labels(batch: dict[str, Tensor]) -> Tensor:
    """Return labels [B, L] as Hugging Face wants them: ``IGNORED`` wherever nothing is predicted."""
    labels = torch.full(batch["input_ids"].shape, IGNORED)
    used = batch["masked_labels"] != IGNORED
    labels.view(-1)[batch["masked_positions"][used]] = batch["masked_labels"][used]
    return labels


def losses_of_hugging_face(network: BertForPreTraining, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return its loss, the sum of the two means, and the logits."""
    out = network(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        attention_mask=batch["attention_mask"].long(),
        labels=spread_labels(batch),
        next_sentence_label=batch["next_sentence_labels"],
    )
    return out.loss, out.prediction_logits, out.seq_relationship_logits


def mean_loss(sums: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    predicted = (batch["masked_labels"] != IGNORED).sum()
    return sums["mlm"] / predicted + sums["nsp"] / len(batch["next_sentence_labels"])


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal_to_hugging_face(model: PretrainingModel, batch: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    """Assert equal loss and gradients, to float32 rounding: both are compared with float64."""
    ours = mean_loss(sums, batch)
    found = gradients(model.network, ours)
    theirs = losses_of_hugging_face(model.network, batch)[0]
    expected = gradients(model.network, theirs)
    exact_network = BertForPreTraining(model.network.config).double()
    exact_network.load_state_dict(model.network.state_dict())
    loss = losses_of_hugging_face(exact_network, batch)[0]
    exact = gradients(exact_network, loss)
    assert abs(ours.double() - loss) <= 2 * abs(theirs.double() - loss) + 1e-6
    assert found.keys() == expected.keys() == exact.keys()
    for name in exact:
        scale = exact[name].abs().max() + 1e-6
        torch.testing.assert_close(found[name].double() / scale, exact[name] / scale, rtol=0, atol=3e-5, msg=name)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_loss_and_gradients_equal_hugging_face(fixed_shapes: bool) -> None:
    model, batch = random_model(config(), 1), batch_of(fixed_shapes=fixed_shapes)
    assert not batch["attention_mask"].all()
    assert (batch["masked_labels"] == IGNORED).any() == fixed_shapes
    check_equal_to_hugging_face(model, batch, model(**batch))
    tied = model.network.bert.embeddings.word_embeddings.weight
    assert model.network.cls.predictions.decoder.weight is tied
    assert tied.grad is not None
    assert tied.grad.abs().sum(dim=1).count_nonzero() == VOCABULARY  # the projection reaches every token


def test_wrong_models_are_caught() -> None:
    model, batch = random_model(config(), 1), batch_of()
    full_attention = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    one_segment = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    first_row_only = {**batch, "masked_positions": batch["masked_positions"] % LENGTH}
    labels_swapped = {**batch, "next_sentence_labels": 1 - batch["next_sentence_labels"]}
    for wrong in (full_attention, one_segment, first_row_only, labels_swapped):
        with pytest.raises(AssertionError):
            check_equal_to_hugging_face(model, batch, model(**wrong))
    untied = random_model(config(), 1)
    decoder = untied.network.cls.predictions.decoder
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    with pytest.raises(AssertionError):
        check_equal_to_hugging_face(untied, batch, untied(**batch))


def test_fixed_shapes_change_neither_sums_nor_counts() -> None:
    model = random_model(config(), 1).eval()
    ragged, fixed = batch_of(), batch_of(fixed_shapes=True)
    assert len(fixed["masked_labels"]) == ROWS * SLOTS > len(ragged["masked_labels"])
    one, two = model(**ragged, count_correct=True), model(**fixed, count_correct=True)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_correct_predictions_are_counted() -> None:
    model, batch = random_model(config(initializer_range=0.5), 3).eval(), batch_of(rows=40)
    sums = model(**batch, count_correct=True)
    _, tokens, pairs = losses_of_hugging_face(model.network, batch)
    assert sums["mlm_correct"] == (tokens.argmax(-1) == spread_labels(batch)).sum()
    assert sums["nsp_correct"] == (pairs.argmax(-1) == batch["next_sentence_labels"]).sum()
    assert 0 < sums["nsp_correct"] < 40


def test_losses_are_float32_under_autocast() -> None:
    model, batch = random_model(config(), 1), batch_of(rows=30)
    plain = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch)
        hidden = model.network.bert(input_ids=batch["input_ids"]).last_hidden_state
        in_half = hidden @ model.network.bert.embeddings.word_embeddings.weight.T
    assert in_half.dtype == torch.bfloat16  # autocast was at work
    for name in ("mlm", "nsp"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], plain[name], rtol=5e-3, atol=0)
        # In bfloat16 a sum of this size would be a multiple of a half at least: float32 keeps the digits.
        assert half[name] != half[name].bfloat16()


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_every_parameter_takes_part_under_ddp() -> None:
    model, batch = random_model(config(), 1), batch_of()
    expected = gradients(model, mean_loss(model(**batch), batch))
    assert expected.keys() == dict(model.named_parameters()).keys()
    replica = DistributedDataParallel(model)
    for _ in range(2):  # a parameter left out of the first pass would make the second one raise
        found = gradients(model, mean_loss(replica(**batch), batch))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("fixed_shapes", "graphs"), [(True, 1), (False, 2)])
def test_compiles_without_breaks_and_rarely(fixed_shapes: bool, graphs: int) -> None:
    """Fixed shapes compile once; else once more, for a number of predicted tokens that varies."""
    torch._dynamo.reset()
    model, counter = random_model(config(), 1), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    sizes = set()
    for seed in range(5):
        batch = batch_of(seed=seed, fixed_shapes=fixed_shapes)
        sizes.add(len(batch["masked_labels"]))
        torch.testing.assert_close(compiled(**batch), model(**batch))
    assert (len(sizes) == 1) == fixed_shapes
    assert counter.frame_count == graphs
    torch._dynamo.reset()


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    one = random_model(config(), 7)
    torch.testing.assert_close(torch.rand(3), expected_draw)  # the global generator was left alone
    two, other = random_model(config(), 7), random_model(config(), 8)
    for name, parameter in one.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, two.get_parameter(name))
    weight = "network.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(one.get_parameter(weight), other.get_parameter(weight))
    assert one.training


def test_initial_weights_are_those_of_bert() -> None:
    model = random_model(config(hidden_size=128), 0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "LayerNorm" in name:
            assert (parameter == 1).all()
        else:
            spread = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            padding = parameter.numel() / VOCABULARY if "word_embeddings" in name else 0  # its row is zero
            expected = 0.02 * (1 - padding / parameter.numel()) ** 0.5
            assert abs(parameter.std() - expected) < spread, name


def load(folder: Path, seed: int = 0) -> PretrainingModel:
    return pretrained_model(folder, seed, dropout=0.0, attention_dropout=0.0)


def test_weights_of_a_whole_model_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = random_model(config(layer_norm_eps=1e-5, hidden_act="relu"), 3).network
    source.save_pretrained(tmp_path)
    model = pretrained_model(tmp_path, 0, dropout=0.2, attention_dropout=0.3)
    assert not caplog.records
    for name, parameter in source.named_parameters():
        assert torch.equal(model.network.get_parameter(name), parameter)
    found = model.network.config
    assert (found.layer_norm_eps, found.hidden_act) == (1e-5, "relu")
    assert (found.hidden_dropout_prob, found.attention_probs_dropout_prob) == (0.2, 0.3)
    assert model.training
    assert model.network.bert.embeddings.dropout.p == 0.2


@pytest.mark.parametrize(
    ("kind", "missing"), [(BertModel, HEADS), (BertForMaskedLM, ["bert.pooler", "cls.seq_relationship"])]
)
def test_missing_heads_start_at_random_and_are_reported(
    kind: type, missing: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    source = kind(config()).half()
    source.save_pretrained(tmp_path)
    capfd.readouterr()
    with caplog.at_level(logging.INFO):
        model, again, other = load(tmp_path, 5), load(tmp_path, 5), load(tmp_path, 6)
    assert capfd.readouterr() == ("", "")  # no table, no progress bar
    assert [record.message for record in caplog.records] == [
        f"{tmp_path} has no weights for {', '.join(missing)}: they start at random"
    ] * 3
    own = {name.removeprefix("bert."): p for name, p in source.named_parameters()}
    for name, parameter in model.network.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, again.network.get_parameter(name))
        if name.removeprefix("bert.") in own:
            assert torch.equal(parameter, own[name.removeprefix("bert.")].float())
    head = "cls.seq_relationship.weight"
    assert not torch.equal(model.network.get_parameter(head), other.network.get_parameter(head))
    predictions = model.network.cls.predictions
    assert predictions.decoder.weight is model.network.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    sums = model(**batch_of())
    (sums["mlm"] + sums["nsp"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere cannot be loaded"):
        load(tmp_path / "nowhere")
    torch.manual_seed(0)
    other = DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=2, hidden_dim=48, max_position_embeddings=40
    )
    DistilBertModel(other).save_pretrained(tmp_path / "other")
    config().save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is not a BERT encoder: it has no weights for bert"):
        load(tmp_path / "other")
    random_model(config(), 0).network.save_pretrained(tmp_path / "sizes")
    config(intermediate_size=64).save_pretrained(tmp_path / "sizes")
    with pytest.raises(InputError, match=r"has the shape \(48,\), by its config.json it should be \(64,\)"):
        load(tmp_path / "sizes")
    weights = tmp_path / "sizes" / "model.safetensors"
    whole = weights.read_bytes()
    for length in (len(whole) // 2, 10, 0):
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match="sizes cannot be loaded"):
            load(tmp_path / "sizes")
    weights.unlink()
    for content in (b"torn", b"", pickle.dumps({})[:3]):
        (tmp_path / "sizes" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(InputError, match="sizes cannot be loaded"):
            load(tmp_path / "sizes")
