"""Operations a second: counted as the model asks for them, and a share of what the device can do."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining

from largebatch.bert.flops import BertSizes
from largebatch.train.distributed import World
from largebatch.train.utilisation import Utilisation, matrix_flops_per_second
from train.toy import toy

SIZES = BertSizes(layers=3, hidden_size=32, intermediate_size=80)
VOCABULARY = 57


def _counted(length: int, rows: int) -> tuple[float, int]:
    """Return the operations of a forward and backward pass of transformers' own BERT, every position predicted."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=80,
        max_position_embeddings=length,
    )
    config._attn_implementation = "eager"
    model: nn.Module = BertForPreTraining(config)
    ids = torch.randint(0, VOCABULARY, (rows, length))
    with FlopCounterMode(display=False) as counter:
        output = model(input_ids=ids, labels=ids, next_sentence_label=torch.zeros(rows, dtype=torch.long))
        output.loss.backward()
    return float(counter.get_total_flops()), rows * length


@pytest.mark.parametrize(("length", "rows"), [(7, 1), (16, 3)])
def test_the_count_is_that_of_a_bert_without_padding(length: int, rows: int) -> None:
    counted, predicted = _counted(length, rows)
    mask = torch.ones(rows, length, dtype=torch.bool)
    assert SIZES.pretraining(mask, predicted, VOCABULARY) == pytest.approx(counted, rel=1e-6)
    assert SIZES.pretraining(mask, predicted - 1, VOCABULARY) < counted * 0.9999


def test_padding_counts_nothing() -> None:
    mask = torch.arange(9) < torch.tensor([9, 4])[:, None]
    apart = SIZES.encoder(mask[:1]) + SIZES.encoder(mask[1:, :4])
    assert SIZES.encoder(mask) == pytest.approx(apart)
    assert SIZES.spans(mask) == pytest.approx(3 * (apart + 4 * 32 * 13))


def test_a_share_of_what_was_measured() -> None:
    rate = matrix_flops_per_second(torch.device("cpu"), torch.float32)
    assert rate > 1e8
    world = World(0, 1, torch.device("cpu"))

    class Told:
        def flops(self, batch: dict[str, torch.Tensor]) -> float:
            return float(len(batch["a"]))

    task: Any = Told()
    told = Utilisation(task)
    assert told.fields(10.0, 2.0) == {}, "nothing before it was measured"
    session = told.measure(world, torch.float32)
    ceiling = session["matrix_flops_per_second"]
    flops = told.flops([{"a": torch.zeros(3)}, {"a": torch.zeros(4)}])
    assert told.fields(flops, 2.0) == {"flops_per_second": 3.5, "utilisation": 3.5 / ceiling}


def test_a_task_that_does_not_tell_has_no_share() -> None:
    untold = Utilisation(toy().task)
    assert untold.measure(World(0, 1, torch.device("cpu")), torch.float32) == {}
    assert untold.fields(untold.flops([{}]), 1.0) == {}
