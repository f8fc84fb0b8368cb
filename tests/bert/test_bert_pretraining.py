"""The pre-training task as the training loop sees it: checks, data, counts, evaluation and export."""

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert_corpora import PIECES, SPECIAL, random_documents, write_corpus, write_tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForPreTraining, AutoTokenizer

from largebatch.bert import pretraining
from largebatch.bert.masking import IGNORED
from largebatch.bert.pretraining import BertPretraining
from largebatch.bert.shapes import filling
from largebatch.errors import InputError
from largebatch.text.shards import PreparedCorpus, write_manifest, write_shard
from largebatch.train.task import Task

LENGTH = 32


@dataclass
class SomeStage:
    name: str = "first"
    task_options: Mapping[str, Any] = field(default_factory=lambda: {"sequence_length": LENGTH, "max_predictions": 5})


STAGE = SomeStage()


def tiny_task(folder: Path, **changes: Any) -> BertPretraining:
    settings = {
        "hidden_size": 32,
        "layers": 1,
        "attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return BertPretraining(corpus=str(folder), **{**settings, **changes})


@pytest.fixture
def task(corpus_folder: Path) -> BertPretraining:
    return tiny_task(corpus_folder)


def first_batch(task: BertPretraining, samples: int = 16, epoch: int = 0) -> dict[str, Tensor]:
    dataset = task.dataset(STAGE, 1)
    return task.collate(dataset.__getitems__([(epoch, index) for index in range(samples)]))


def test_satisfies_the_protocol(task: BertPretraining) -> None:
    as_task: Task = task  # the type checker compares the two
    as_task.check([STAGE])
    assert as_task.weights == {"mlm": 1.0, "nsp": 1.0}


def test_every_field_is_a_documented_scalar() -> None:
    for one in fields(BertPretraining):
        assert one.type in (int, float, bool, str, str | None), one.name
        assert one.kw_only
    source = Path(pretraining.__file__).read_text(encoding="utf-8")
    for one in fields(BertPretraining):
        following = source.split(f"\n    {one.name}: ", 1)[1].split("\n")[1]
        assert following.strip().startswith('"""'), one.name


def test_data_workers_need_no_transformers() -> None:
    """Importing it takes seconds, in every worker; only the model needs it."""
    code = "import sys, largebatch.bert.pretraining; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Checks.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_heads": 3}, "hidden_size is 32 and attention_heads 3: the heads must divide the hidden size"),
        ({"layers": 0}, "layers is 0, allowed is 1 or more"),
        ({"held_out_pairs": 0}, "held_out_pairs is 0, allowed is 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0, allowed is 0 or more and less than 1"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1, allowed is 0 or more and less than 1"),
        ({"dropout": math.nan}, "dropout is nan, allowed is 0 or more and less than 1"),
        ({"encoder_init_std": 0.0}, "encoder_init_std is 0.0, allowed is more than 0"),
        ({"encoder_init_std": math.inf}, "encoder_init_std is inf, allowed is more than 0"),
        ({"masked_fraction": 0.0}, "masked_fraction is 0.0, allowed is more than 0 and up to 1"),
        ({"short_sequence_probability": 1.5}, "short_sequence_probability is 1.5, allowed is from 0 to 1"),
        (
            {"max_position_embeddings": 31},
            "stage 'first': sequence_length is 32, the model's max_position_embeddings allow 31",
        ),
    ],
)
def test_bad_fields_are_one_sentence(corpus_folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        tiny_task(corpus_folder, **changes).check([STAGE])
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"task_options are \[\], they must be \['sequence_length', 'max_predictions'\]"),
        ({"sequence_length": 32}, r"task_options are \['sequence_length'\], they must be"),
        ({"sequence_length": 32, "max_predictions": 5, "sequence_len": 3}, "'sequence_len', 'sequence_length'"),
        ({"sequence_length": 4, "max_predictions": 5}, "sequence_length is 4, allowed is 5 or more"),
        ({"sequence_length": "32", "max_predictions": 5}, "sequence_length is '32', allowed is 5 or more"),
        ({"sequence_length": 32, "max_predictions": 0}, "max_predictions is 0, allowed is 1 or more"),
    ],
)
def test_bad_stage_options_name_the_stage(task: BertPretraining, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"stage 'second': .*{message}"):
        task.check([STAGE, SomeStage("second", options)])


def test_corpora_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        tiny_task(tmp_path / "nowhere").check([STAGE])
    for train, held_out, message in (
        (1, 5, "the training part .* holds 1 of"),
        (9, 0, "the held-out part .* holds 0 of"),
    ):
        folder = tmp_path / f"{train}-{held_out}"
        folder.mkdir()
        write_shard(folder, "train", 0, random_documents(train, 0))
        if held_out:
            write_shard(folder, "held_out", 0, random_documents(held_out, 1))
        write_tokenizer(folder)
        write_manifest(folder, vocabulary_size=len(PIECES), special_ids=SPECIAL)
        with pytest.raises(InputError, match=message):
            tiny_task(folder).check([STAGE])
    whole = write_corpus(tmp_path / "whole")
    (whole / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json"):
        tiny_task(whole).check([STAGE])


def test_encoder_init_std_is_that_of_encoder_pooler_and_head_for_pairs_alone(task: BertPretraining) -> None:
    usual: Any = task.build_model(0)
    wide: Any = replace(task, encoder_init_std=0.1).build_model(0)
    for (name, theirs), ours in zip(usual.network.named_parameters(), wide.network.parameters(), strict=True):
        inside = (
            any(part in name for part in (".encoder.layer.", ".pooler.", ".seq_relationship.")) and theirs.ndim == 2
        )
        torch.testing.assert_close(ours, theirs * (5 if inside else 1), rtol=1e-6, atol=0)
    query = wide.network.bert.encoder.layer[0].attention.self.query.weight
    assert query.std().item() == pytest.approx(0.1, rel=0.1)


def test_init_from_is_checked_before_anything_is_built(task: BertPretraining, tmp_path: Path) -> None:
    def refused(message: str, folder: Path, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            replace(task, init_from=str(folder), **changes).check([STAGE])

    refused("is not a folder with a Hugging Face model: no config.json", tmp_path / "nowhere")
    model = tmp_path / "model"
    task.export(task.build_model(0), model)
    replace(task, init_from=str(model)).check([STAGE])
    refused("has hidden_size 32, layers 1, the task other sizes", model, hidden_size=64, layers=2)

    write_tokenizer(model, [*PIECES[:-2], PIECES[-1], PIECES[-2]])
    refused("number their tokens differently, '##", model)
    (model / "tokenizer.json").unlink()
    refused("number their tokens differently, '##", model)  # vocab.txt still tells
    (model / "vocab.txt").unlink()
    replace(task, init_from=str(model)).check([STAGE])

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"vocab_size": 70}, f"a vocabulary of 70 tokens and the corpus .* one of {len(PIECES)}"),
        ({"model_type": "gpt2"}, "holds a model of type 'gpt2', allowed is 'bert'"),
        ({"type_vocab_size": 1}, "has type_vocab_size 1, allowed is 2"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', allowed is 'absolute'"),
        ({"hidden_size": None}, "does not give hidden_size as a whole number"),
    ):
        (model / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
        refused(message, model)
    (model / "config.json").write_text("{", encoding="utf-8")
    refused("is not valid JSON", model)


# Data.


def test_counts_and_tokens_are_those_of_the_batch(task: BertPretraining) -> None:
    batch = first_batch(task)
    assert task.counts(batch) == {"mlm": int((batch["masked_labels"] != IGNORED).sum()), "nsp": 16}
    assert task.tokens(batch) == int((batch["input_ids"] != SPECIAL.pad).sum())  # no sentence holds [PAD]
    fixed = first_batch(replace(task, fixed_shapes=True))
    assert task.counts(fixed) == task.counts(batch)
    assert len(fixed["masked_labels"]) == 16 * 5


def test_batches_are_framed_as_bert_wants_them(task: BertPretraining) -> None:
    dataset = task.dataset(STAGE, 1)
    samples = dataset.__getitems__([(0, index) for index in range(40)])
    batch = task.collate(samples)
    assert {name: (t.dtype, t.ndim) for name, t in batch.items() if name != "attention_mask"} == {
        "input_ids": (torch.int64, 2),
        "token_type_ids": (torch.int64, 2),
        "masked_positions": (torch.int64, 1),
        "masked_labels": (torch.int64, 1),
        "next_sentence_labels": (torch.int64, 1),
    }
    for row, sample in enumerate(samples):
        a, b = sample.first_length, sample.second_length
        assert batch["attention_mask"][row].tolist() == [n < a + b + 3 for n in range(LENGTH)]
        assert batch["token_type_ids"][row].tolist() == [int(a + 2 <= n < a + b + 3) for n in range(LENGTH)]
        assert batch["next_sentence_labels"][row] == int(sample.is_random)
        for place, kind in ((0, SPECIAL.cls), (a + 1, SPECIAL.sep), (a + b + 2, SPECIAL.sep)):
            assert batch["input_ids"][row, place] == kind
    place = 0
    for row, sample in enumerate(samples):
        for position, label in zip(sample.positions, sample.labels, strict=True):
            if label != IGNORED:
                assert batch["masked_positions"][place] == row * LENGTH + position
                assert batch["masked_labels"][place] == label
                place += 1
    assert place == len(batch["masked_positions"])


def check_sample_depends_on_epoch_and_index_alone(read: Any, size: int) -> None:
    generator = np.random.default_rng(0)
    ids = [(int(generator.integers(3)), int(generator.integers(size))) for _ in range(50)]
    together = read(ids)
    backwards = read(ids[::-1])[::-1]
    in_parts = [sample for first in range(0, 50, 7) for sample in read(ids[first : first + 7])]
    for one, two, three in zip(together, backwards, in_parts, strict=True):
        for ours, theirs, again in zip(one, two, three, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize("whole_word_masking", [False, True])
def test_a_sample_depends_on_epoch_and_index_alone(task: BertPretraining, whole_word_masking: bool) -> None:
    task = replace(task, whole_word_masking=whole_word_masking)
    dataset = task.dataset(STAGE, 1)
    check_sample_depends_on_epoch_and_index_alone(dataset.__getitems__, len(dataset))
    with pytest.raises(AssertionError):  # as if the place in the batch chose the sample
        check_sample_depends_on_epoch_and_index_alone(
            lambda ids: dataset.__getitems__([(epoch, row) for row, (epoch, _) in enumerate(ids)]), len(dataset)
        )
    np.testing.assert_array_equal(dataset[2, 5].tokens, dataset.__getitems__([(1, 0), (2, 5)])[1].tokens)
    again = task.dataset(SomeStage("other"), 1)
    np.testing.assert_array_equal(dataset[2, 5].tokens, again[2, 5].tokens)
    with pytest.raises(IndexError):
        dataset[0, len(dataset)]


def test_epochs_and_seeds_change_the_masks_and_epochs_not_the_number(task: BertPretraining) -> None:
    dataset, other = task.dataset(STAGE, 1), task.dataset(STAGE, 2)
    ids = range(min(len(dataset), len(other), 60))
    positions = [
        [sample.positions.tolist() for sample in source.__getitems__([(epoch, i) for i in ids])]
        for source, epoch in ((dataset, 0), (dataset, 1), (other, 0))
    ]
    for changed in positions[1:]:
        assert np.mean([a != b for a, b in zip(positions[0], changed, strict=True)]) > 0.6
    labels = [[s.is_random for s in dataset.__getitems__([(e, i) for i in ids])] for e in (0, 1)]
    assert labels[0] == labels[1]


def test_whole_words_follow_the_vocabulary(task: BertPretraining) -> None:
    dataset = replace(task, whole_word_masking=True, masked_fraction=0.3).dataset(STAGE, 1)
    table = dataset.masking.continuations
    assert table is not None
    assert [PIECES[number] for number in np.flatnonzero(table)] == ["##s", "##ing", "##ly"]
    assert task.dataset(STAGE, 1).masking.continuations is None
    write_tokenizer(Path(task.corpus), [piece.replace("##", "@") for piece in PIECES])
    shutil.copytree(task.corpus, f"{task.corpus}-2", ignore=shutil.ignore_patterns("manifest.json"))
    write_manifest(Path(f"{task.corpus}-2"), vocabulary_size=len(PIECES), special_ids=SPECIAL)
    tiny_task(Path(f"{task.corpus}-2")).check([STAGE])
    with pytest.raises(
        InputError, match=r"whole_word_masking needs a WordPiece vocabulary: no token of .* begins with"
    ):
        tiny_task(Path(f"{task.corpus}-2"), whole_word_masking=True).check([STAGE])


def test_workers_give_the_same_samples(task: BertPretraining) -> None:
    dataset: Any = task.dataset(STAGE, 1)  # a data set by structure, which DataLoader's annotation does not know
    assert len(pickle.dumps(dataset)) < 20 * len(dataset) + 10_000  # the index, no tokens
    ids = [(1, index) for index in range(12)]
    sampler: Any = ids
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        num_workers=1,
        collate_fn=task.collate,
        multiprocessing_context="spawn",
    )
    for number, batch in enumerate(loader):
        here = task.collate(dataset.__getitems__(ids[4 * number : 4 * number + 4]))
        assert batch.keys() == here.keys()
        assert all(torch.equal(batch[name], here[name]) for name in here)


def test_held_out_pairs_are_the_same_for_every_seed_and_spread(task: BertPretraining) -> None:
    whole = task.evaluation_dataset(STAGE, 1)
    one, two = (replace(task, held_out_pairs=20).evaluation_dataset(STAGE, seed) for seed in (1, 2))
    assert (len(one), len(two)) == (20, 20)
    assert len(whole) == len(whole.pairs) > 60
    for index in range(20):
        for ours, theirs in zip(one[0, index], two[0, index], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(one[0, index].tokens, whole[0, index * len(whole) // 20].tokens)
    names = {path.name for shard in whole.pairs.store.shards for path in shard.paths}
    assert names
    assert all(name.startswith("held_out-") for name in names)


# Loss and evaluation.


def test_loss_sums_and_counts_give_hugging_faces_mean(task: BertPretraining) -> None:
    model, batch = task.build_model(0), first_batch(task)
    sums, counts = task.loss(model, batch), task.counts(batch)
    labels = torch.full(batch["input_ids"].shape, IGNORED)
    labels.view(-1)[batch["masked_positions"]] = batch["masked_labels"]
    network: Any = model.network
    expected = network(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        attention_mask=batch["attention_mask"].long(),
        labels=labels,
        next_sentence_label=batch["next_sentence_labels"],
    ).loss
    assert sums.keys() == counts.keys() == task.weights.keys()
    torch.testing.assert_close(sum(sums[term] / counts[term] for term in sums), expected)


def test_unequal_microbatches_add_up(task: BertPretraining) -> None:
    model = task.build_model(0)
    dataset = task.dataset(STAGE, 1)
    samples = dataset.__getitems__([(0, index) for index in range(12)])
    parts = [task.collate(samples[a:b]) for a, b in ((0, 1), (1, 8), (8, 12))]
    whole = task.loss(model, task.collate(samples))
    for term in whole:
        torch.testing.assert_close(sum(task.loss(model, part)[term] for part in parts), whole[term])
    assert sum(task.counts(part)["mlm"] for part in parts) == task.counts(task.collate(samples))["mlm"]


@torch.no_grad()
def evaluated(task: BertPretraining, model: torch.nn.Module, portion: int) -> dict[str, float]:
    dataset = task.evaluation_dataset(STAGE, 0)
    totals: dict[str, float] = {}
    model.eval()
    for first in range(0, len(dataset), portion):
        ids = [(0, index) for index in range(first, min(first + portion, len(dataset)))]
        for name, value in task.evaluate(model, task.collate(dataset.__getitems__(ids))).items():
            assert value.dtype == torch.float64
            totals[name] = totals.get(name, 0.0) + value.item()
    return totals


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_evaluation_against_plain_arithmetic(tmp_path: Path, fixed_shapes: bool) -> None:
    folder = write_corpus(tmp_path / "c", train=3, held_out=25)  # so little text that tokens are unseen in training
    task = tiny_task(folder, fixed_shapes=fixed_shapes)
    model = task.build_model(2)
    loss, metrics = task.summarise(evaluated(task, model, 7))
    other_loss, other = task.summarise(evaluated(task, model, 50))
    assert metrics == pytest.approx(other, rel=1e-5)
    assert loss == pytest.approx(other_loss, rel=1e-5) == pytest.approx(metrics["mlm_loss"] + metrics["nsp_loss"])
    assert metrics["mlm_loss"] == pytest.approx(math.log(len(PIECES)), abs=0.3)  # untrained: all are equally likely
    assert metrics["nsp_loss"] == pytest.approx(math.log(2), abs=0.1)

    corpus = PreparedCorpus.open(folder)
    seen = [int(t) for n in range(corpus.train.documents) for s in corpus.train.document(n) for t in s]
    counts = {token: max(seen.count(token), 1) for token in range(len(PIECES))}
    total = sum(counts.values())
    dataset = task.evaluation_dataset(STAGE, 0)
    targets = [int(label) for index in range(len(dataset)) for label in dataset[0, index].labels if label != IGNORED]
    assert any(target not in seen for target in targets)
    expected = sum(-math.log(counts[target] / total) for target in targets) / len(targets)
    assert metrics["unigram_loss"] == pytest.approx(expected)
    most_frequent = max(counts, key=lambda token: counts[token])
    assert metrics["most_frequent_accuracy"] == pytest.approx(targets.count(most_frequent) / len(targets))
    random = [dataset[0, index].is_random for index in range(len(dataset))]
    assert metrics["nsp_majority_accuracy"] == pytest.approx(max(np.mean(random), 1 - np.mean(random)))
    # Add-one on every token is another number: the smoothing touches unseen tokens only.
    add_one = sum(-math.log((seen.count(t) + 1) / (len(seen) + len(PIECES))) for t in targets) / len(targets)
    assert metrics["unigram_loss"] != pytest.approx(add_one)


def steps(task: BertPretraining, model: torch.nn.Module, batches: Iterable[dict[str, Tensor]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for batch in batches:
        sums, counts = task.loss(model, batch), task.counts(batch)
        optimizer.zero_grad()
        torch.stack([sums[term] / counts[term] for term in sums]).sum().backward()
        optimizer.step()


def test_training_learns_what_the_text_holds(tmp_path: Path) -> None:
    """Sentences that repeat one word are predictable from their neighbours: far below the unigram's entropy."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    generator = np.random.default_rng(0)
    text = [[[int(generator.integers(5, 60))] * 6 for _ in range(8)] for _ in range(70)]
    write_shard(folder, "train", 0, text[:60])
    write_shard(folder, "held_out", 0, text[60:])
    write_tokenizer(folder)
    write_manifest(folder, vocabulary_size=len(PIECES), special_ids=SPECIAL)
    task = tiny_task(folder)
    dataset, model = task.dataset(STAGE, 0), task.build_model(0)
    ids = [(n // len(dataset), n % len(dataset)) for n in range(150 * 32)]
    portions = (dataset.__getitems__(ids[first : first + 32]) for first in range(0, len(ids), 32))
    steps(task, model, (task.collate(portion) for portion in portions))
    _, metrics = task.summarise(evaluated(task, model, 64))
    assert metrics["mlm_loss"] < metrics["unigram_loss"] - 1.5
    assert metrics["mlm_accuracy"] > 5 * metrics["most_frequent_accuracy"]


# Weights in and out.


def logits(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out = network.eval()(
            input_ids=batch["input_ids"],
            token_type_ids=batch["token_type_ids"],
            attention_mask=batch["attention_mask"].long(),
        )
    return out.prediction_logits, out.seq_relationship_logits


def test_exported_folder_loads_with_equal_logits(task: BertPretraining, tmp_path: Path) -> None:
    model: Any = task.build_model(4)
    folder, batch = tmp_path / "run" / "model", first_batch(task)
    steps(task, model, [batch, batch])
    wrapped: Any = torch.compile(model, backend="eager")
    task.export(wrapped, folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertForPreTraining"]
    loaded = AutoModelForPreTraining.from_pretrained(folder)
    for ours, theirs in zip(logits(model.network, batch), logits(loaded, batch), strict=True):
        assert torch.equal(ours, theirs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == {piece: number for number, piece in enumerate(PIECES)}
    assert tokenizer("word3 word7s", add_special_tokens=False)["input_ids"] == [8, 12, PIECES.index("##s")]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (SPECIAL.mask, SPECIAL.pad)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_training_goes_on_from_an_exported_folder(task: BertPretraining, tmp_path: Path) -> None:
    model: Any = task.build_model(4)
    task.export(model, tmp_path / "model")
    again = tiny_task(Path(task.corpus), hidden_size=64, layers=3).starting_from(str(tmp_path / "model"))
    assert again == replace(task, init_from=str(tmp_path / "model"))
    again.check([STAGE])
    loaded = again.build_model(9)
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    batch = first_batch(task)
    torch.testing.assert_close(task.loss(loaded, batch), task.loss(model, batch))


def test_an_encoder_without_heads_can_be_the_start(
    task: BertPretraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source: Any = task.build_model(4)
    encoder = source.network.bert
    encoder.save_pretrained(tmp_path / "encoder")
    start = task.starting_from(str(tmp_path / "encoder"))
    start.check([STAGE])
    loaded: Any = start.build_model(1)
    assert "no weights for cls.predictions, cls.seq_relationship: they start at random" in caplog.text
    assert torch.equal(loaded.network.bert.pooler.dense.weight, encoder.pooler.dense.weight)


def test_model_has_the_sizes_and_the_dropout_of_the_fields(task: BertPretraining) -> None:
    model: Any = replace(task, dropout=0.3, attention_dropout=0.2, layers=2).build_model(0)
    config = model.network.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (64, 48, len(PIECES))
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.2)
    assert config.pad_token_id == SPECIAL.pad


def _wasteful_or_many(round_up: Callable[[int], int]) -> bool:
    """Say whether a rounding of the number of slots adds more than a sixteenth, or lets too many sizes occur."""
    sizes = [count + round_up(count) for count in range(1, 5000)]
    waste = max((size - count) / count for count, size in enumerate(sizes, start=1))
    return waste > 1 / 16 or len(set(sizes)) > 160


def test_few_numbers_of_slots_occur_and_few_slots_are_wasted() -> None:
    assert not _wasteful_or_many(filling)
    assert _wasteful_or_many(lambda count: 0)
    assert _wasteful_or_many(lambda count: (1 << count.bit_length()) - count)
    assert _wasteful_or_many(lambda count: -count % 64)
