"""Who decays and who adapts: by module type, by name, with tied and frozen weights, and as a table."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining

from largebatch.optim import LAMB, LayerGroups, layer_groups


def named(groups: LayerGroups, *, decays: bool | None = None, adapts: bool | None = None) -> set[str]:
    return {
        name
        for group in groups
        for name in group["param_names"]
        if decays in (None, group["weight_decay"] > 0) and adapts in (None, group["adapt"])
    }


def assert_complete(model: nn.Module, groups: LayerGroups) -> None:
    """Every parameter stands in one group, once, under the name that the model gives it first."""
    expected = dict(model.named_parameters())
    pairs = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    assert len(pairs) == len(expected)
    assert all(expected[name] is p for name, p in pairs)


@pytest.fixture
def bert() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )


def test_bert_as_published(bert: BertForPreTraining) -> None:
    groups = layer_groups(bert)
    assert_complete(bert, groups)
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [(0.01, True), (0.0, False)]
    excluded = {name for name, _ in bert.named_parameters() if name.endswith("bias") or "LayerNorm" in name}
    assert named(groups, adapts=False) == named(groups, decays=False) == excluded
    # The decoder is tied to the embeddings, and its bias to a bias one level up: each is there once.
    assert "bert.embeddings.word_embeddings.weight" in named(groups, decays=True)
    assert not [name for name in named(groups) if "decoder" in name]
    assert bert.cls.predictions.decoder.weight is bert.bert.embeddings.word_embeddings.weight


def test_bert_trains_with_its_groups(bert: BertForPreTraining) -> None:
    optimizer = LAMB(layer_groups(bert), lr=0.1)
    tokens = torch.arange(24).reshape(2, 12)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        bert.train(False)
        loss = bert(tokens, labels=tokens, next_sentence_label=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    ratios = optimizer.trust_ratios()
    assert set(ratios) == {name for name, _ in bert.named_parameters()}
    assert float(ratios["cls.predictions.bias"]) == 1
    assert float(ratios["bert.embeddings.word_embeddings.weight"]) != 1
    assert not any(ratio.isnan().any() for ratio in ratios.values())


class RMSScale(nn.Module):
    """A normalisation that neither its class nor a base of it says."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class T5LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class Renamed(T5LayerNorm):
    pass


class NormalisedLinear(nn.Module):
    """A linear map that normalises its input: its matrix is a layer like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 4))
        self.gain = nn.Parameter(torch.ones(1, 4, 1))


class PreNorm(nn.Module):
    """A wrapper: what it wraps does not become a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerNorm([2, 4])
        self.rms = nn.RMSNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.batch = nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm1d(4, affine=True)
        self.sync = nn.SyncBatchNorm(4)
        self.t5 = T5LayerNorm()
        self.renamed = Renamed()
        self.unsaid = RMSScale()
        self.cosine = NormalisedLinear()
        self.wrapper = PreNorm()
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(4, 4)
        self.relative_attention_bias = nn.Embedding(8, 2)
        self.normal_bias_free = nn.Linear(4, 4, bias=False)


def test_norms_and_biases_are_told_by_type_and_name() -> None:
    model = Zoo()
    groups = layer_groups(model)
    assert_complete(model, groups)
    assert named(groups, decays=True) == {
        "unsaid.gain",
        "cosine.matrix",
        "wrapper.inner.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "relative_attention_bias.weight",
        "normal_bias_free.weight",
    }
    # What a search for words in names would have made of it: a wrong rule that the list above tells apart.
    wrong = {name for name in named(groups) if "bias" in name or "norm" in name}
    assert wrong != named(groups, decays=False)


def test_the_two_decisions_are_separate() -> None:
    groups = layer_groups(Zoo(), 0.1, no_decay=("bias",), no_adapt=("norm", "unsaid", nn.Embedding))
    assert len(groups) == 4
    assert named(groups, decays=True, adapts=True) >= {"cosine.matrix", "wrapper.inner.weight"}
    assert named(groups, decays=True, adapts=False) >= {"layer.weight", "unsaid.gain", "relative_attention_bias.weight"}
    assert named(groups, decays=False, adapts=True) >= {"wrapper.inner.bias", "lstm.bias_ih_l0"}
    assert named(groups, decays=False, adapts=False) >= {"layer.bias", "batch.bias"}
    everything = layer_groups(Zoo(), no_decay=(), no_adapt=())
    assert [(group["weight_decay"], group["adapt"]) for group in everything] == [(0.01, True)]
    assert named(layer_groups(Zoo(), weight_decay=0), decays=True) == set()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("attention", {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}),
        ("attention.out_proj", {"out_proj.weight", "out_proj.bias"}),
        ("out_proj.weight", {"out_proj.weight"}),
        ("in_proj_*", {"in_proj_weight", "in_proj_bias"}),
        ("atten*.*bias", {"in_proj_bias", "out_proj.bias"}),
    ],
)
def test_patterns_are_globs_over_whole_parts(rule: str, expected: set[str]) -> None:
    groups = layer_groups(Zoo(), no_decay=(rule,))
    assert named(groups, decays=False) == {f"attention.{name}" for name in expected}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.norm = nn.LayerNorm(3)
        self.again = self.norm
        self.copied = nn.Parameter(torch.ones(5))
        self.head.bias = self.copied

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.norm(self.embedding(x))))


def test_tied_weights_appear_once_and_any_of_their_names_counts() -> None:
    model = Tied()
    groups = layer_groups(model, no_adapt=("head",))
    assert_complete(model, groups)
    assert named(groups) == {"copied", "embedding.weight", "norm.weight", "norm.bias"}
    assert named(groups, decays=False) == {"copied", "norm.weight", "norm.bias"}, "copied is also head.bias"
    assert named(groups, adapts=False) == {"copied", "embedding.weight"}
    shared = layer_groups(model, no_decay=("again",))
    assert named(shared, decays=False) == {"norm.weight", "norm.bias"}, "a module under two names"
    LAMB(groups)


def test_frozen_parameters_are_included_and_cost_nothing_until_thawed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = layer_groups(model)
    assert_complete(model, groups)
    assert str(groups).count("(frozen)") == 2
    optimizer = LAMB(groups)
    optimizer.init_state()
    assert len(optimizer.state) == 2
    model[0].requires_grad_(True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 4


def test_the_groups_serve_any_optimizer_and_stay_as_they_were() -> None:
    model = Tied()
    groups = layer_groups(model, 0.3)
    before = [dict(group) for group in groups]
    LAMB(groups, lr=0.5)
    assert [set(group) for group in groups] == [set(group) for group in before]
    assert [group["weight_decay"] for group in torch.optim.AdamW(groups, lr=0.1).param_groups] == [0.3, 0.0]


def test_the_table_says_who_decays_and_who_adapts(bert: BertForPreTraining, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(layer_groups(bert))
    lines = table.splitlines()
    assert lines[0].split() == ["parameters", "shape", "count", "elements", "weight_decay", "adapt"]
    shared = next(line for line in lines if "layer.*.intermediate.dense.weight" in line)
    assert shared.split() == [
        "bert.encoder.layer.*.intermediate.dense.weight",
        *["32", "x", "16", "3", "1,536", "0.01", "yes"],
    ]
    assert sum(int(line.split()[2]) for line in lines if line.startswith("in all")) == len(list(bert.parameters()))
    assert capsys.readouterr().out == ""
    assert max(map(len, lines)) < 120


class Empty(nn.Module):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"weight_decay": "0.01"}, "weight_decay is '0.01'"),
        ({"no_decay": "bias"}, "no_decay is 'bias'; it must be a sequence"),
        ({"no_adapt": nn.LayerNorm}, "no_adapt is .*; it must be a sequence"),
        ({"no_adapt": None}, "no_adapt is None"),
        ({"no_adapt": (3,)}, "no_adapt has the rule 3"),
        ({"no_adapt": (int,)}, "no_adapt has the rule <class 'int'>"),
        ({"no_decay": ("biass",)}, "'biass', which matches no parameter"),
        ({"no_decay": ("LayerNorm.weight",)}, "which matches no parameter"),
        ({"no_decay": (nn.Conv2d,)}, "Conv2d'>, which matches no parameter"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_groups(Tied(), **options)
    with pytest.raises(ValueError, match="Empty has no parameters"):
        layer_groups(Empty())
    assert len(layer_groups(nn.Linear(2, 2, bias=False))) == 1, "'bias' and 'norm' need not match"


class Stacked(nn.Module):
    """Several layers in one parameter, in the ways they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.c_attn = nn.Linear(12, 4)  # as GPT-2's Conv1D: the inputs first
        self.experts = nn.Parameter(torch.ones(3, 4, 5))
        self.norm = nn.LayerNorm(4)


def test_stacked_parameters_have_groups_of_their_own() -> None:
    model = Stacked()
    rules: dict[Any, tuple[int, int]] = {"in_proj_weight": (0, 3), "c_attn.weight": (1, 3), "experts": (0, 3)}
    groups = layer_groups(model, stacked=rules)
    assert_complete(model, groups)
    found = {name: group.get("stacked") for group in groups for name in group["param_names"]}
    assert {name: cut for name, cut in found.items() if cut} == {
        "attention.in_proj_weight": (0, 3),
        "c_attn.weight": (1, 3),
        "experts": (0, 3),
    }
    optimizer = LAMB(groups)
    for p in model.parameters():
        p.grad = torch.arange(p.numel(), dtype=p.dtype).view(p.shape)
    optimizer.step()
    ratios = optimizer.trust_ratios()
    assert ratios["experts"].shape == (1, 3)
    assert ratios["experts"].unique().numel() > 1
    assert ratios["attention.out_proj.weight"].shape == (1, 1)
    lines = str(groups).splitlines()
    assert lines[0].split()[-1] == "stacked"
    assert next(line for line in lines if line.startswith("c_attn.weight")).endswith("3 along 1")
    assert "stacked" not in str(layer_groups(model))


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        ({"experts": (0, 2)}, r"by the rule 'experts', experts has shape \(3, 4, 5\).*a dimension 0 that 2 divides"),
        ({"experts": (3, 1)}, "needs a dimension 3"),
        ({"experts": 3}, "stacked is 3; it must be None or two integers"),
        ({"experts": (0, 0)}, r"stacked is \(0, 0\)"),
        ((0, 3), r"stacked is \(0, 3\); it must be a mapping from rules"),
        ({"export": (0, 3)}, "stacked has the rule 'export', which matches no parameter"),
        ({"experts": (0, 3), "exp*": (1, 2)}, "two rules for experts, which cut it differently"),
        ({3: (0, 3)}, "stacked has the rule 3; a rule is a string or a module class"),
    ],
)
def test_what_cannot_be_cut_is_refused(stacked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_groups(Stacked(), stacked=stacked)


def test_numbers_of_numpy_are_numbers() -> None:
    rules: dict[Any, Any] = {"experts": (np.int64(0), np.int64(3))}
    groups = layer_groups(Stacked(), weight_decay=np.float32(0.25), stacked=rules)  # pyright: ignore[reportArgumentType]
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert (0, 3) in [group.get("stacked") for group in groups]


@pytest.mark.parametrize(
    ("model", "message"),
    [(None, "model is of type NoneType"), ([nn.Linear(2, 2)], "of type list"), (nn.Linear, "the class Linear")],
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}; it must be a torch.nn.Module"):
        layer_groups(model)


def test_parametrized_tensors_are_told_by_their_own_names() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    for layer, tensor in ((model[0], "bias"), (model[0], "weight"), (model[1], "weight")):
        nn.utils.parametrize.register_parametrization(layer, tensor, nn.Identity())
    nn.utils.parametrizations.weight_norm(model[2])
    groups = layer_groups(model)
    assert_complete(model, groups)
    assert named(groups, decays=True) == {
        "0.parametrizations.weight.original",
        "2.parametrizations.weight.original1",
    }
    single = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(single, "bias", nn.Identity())
    assert named(layer_groups(single), decays=False) == {"parametrizations.bias.original"}
    assert named(layer_groups(model, no_decay=("0.bias",)), decays=False) == {"0.parametrizations.bias.original"}


class EnormousModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


class layernorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def test_norm_is_a_word_and_no_part_of_one() -> None:
    assert named(layer_groups(EnormousModel()), decays=True) == {"gain"}
    assert named(layer_groups(layernorm()), decays=False) == {"gain"}
    for name in ("NormalHead", "LogNormalHead", "normal_head"):
        assert named(layer_groups(type(name, (EnormousModel,), {})()), decays=True) == {"gain"}, name
    for name in ("RMSNorm", "BatchNorm2d", "LayerNormalization", "Normalizer", "NormAct", "rms_norm_1", "ADANORM"):
        assert named(layer_groups(type(name, (EnormousModel,), {})()), decays=False) == {"gain"}, name


def test_the_table_takes_groups_that_were_added_by_hand() -> None:
    groups = layer_groups(nn.Linear(3, 2))
    groups.append({"params": [nn.Parameter(torch.ones(5))]})
    line = next(line for line in str(groups).splitlines() if line.startswith("parameter 0"))
    assert line.split() == ["parameter", "0", "5", "1", "5", "default", "default"]
