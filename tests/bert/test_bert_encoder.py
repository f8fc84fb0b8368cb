"""The encoder that leaves out padding: what transformers' computes, from fewer rows."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from largebatch.bert.encoder import TokenPlaces, encode, encode_at

LENGTHS = (9, 4, 1)
TOKENS = sum(LENGTHS)  # of 27 places
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Two BERTs of transformers of the same weights."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    theirs, mine = BertModel(config).double().eval(), BertModel(config).double().eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Tokens and their types, of padding too."""
    return torch.randint(0, 30, (3, 9)), torch.randint(0, 2, (3, 9))


@pytest.fixture(params=["padding left out", "padding kept"])
def places(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TokenPlaces:
    """Those of a CPU, and those of a compiled model."""
    if request.param == "padding kept":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = TokenPlaces(MASK)
    monkeypatch.undo()
    return found


def test_it_is_transformers_encoder(pair: tuple[Any, Any], batch: tuple[Tensor, Tensor], places: TokenPlaces) -> None:
    theirs, mine = pair
    ids, types = batch
    wanted = theirs(input_ids=ids, token_type_ids=types, attention_mask=MASK.long()).last_hidden_state[MASK]
    found = places.padded(encode(mine, ids, types, places)).view(3, 9, 16)[MASK]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    wanted.pow(3).sum().backward()
    found.pow(3).sum().backward()
    for (name, his), own in zip(theirs.named_parameters(), mine.parameters(), strict=True):
        if "pooler" not in name:
            torch.testing.assert_close(own.grad, his.grad, rtol=1e-9, atol=1e-10, msg=name)
    blind = TokenPlaces(torch.ones_like(MASK))
    wrong = encode(mine, ids, types, blind).view(3, 9, 16)[MASK]
    assert not torch.allclose(wrong, wanted, rtol=1e-3), "padding that is attended to would be seen"


def test_some_positions_are_those_of_all(
    pair: tuple[Any, Any], batch: tuple[Tensor, Tensor], places: TokenPlaces
) -> None:
    _, mine = pair
    positions = torch.tensor([0, 9, 18, 3, 12, 8, 3])
    every = places.padded(encode(mine, *batch, places))
    torch.testing.assert_close(encode_at(mine, *batch, places, positions), every[positions], rtol=1e-12, atol=1e-12)


def test_no_product_is_made_at_padding(pair: tuple[Any, Any], batch: tuple[Tensor, Tensor]) -> None:
    _, mine = pair
    seen: list[int] = []
    for module in mine.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[:-1].numel()))
    encode(mine, *batch, TokenPlaces(MASK))
    assert seen == [TOKENS] * 12
    seen.clear()
    encode_at(mine, *batch, TokenPlaces(MASK), torch.tensor([0, 9]))
    assert seen == [TOKENS] * 9 + [2] * 3


def test_places_of_a_full_batch_are_all_of_it() -> None:
    full = TokenPlaces(torch.ones(2, 3, dtype=torch.bool))
    values = torch.arange(6.0)
    assert full.packed(values) is full.padded(values) is values
    some = TokenPlaces(torch.tensor([[True, True, False], [True, False, False]]))
    assert some.packed(values).tolist() == [0, 1, 3]
    assert some.padded(some.packed(values)).tolist() == [0, 1, 0, 3, 0, 0]
    assert some.numbers(torch.tensor([3, 0])).tolist() == [2, 0]


def test_gradients_of_the_way_there_and_back() -> None:
    places = TokenPlaces(MASK)
    everywhere = torch.randn(27, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(places.packed, (everywhere,))
    tokens = torch.randn(TOKENS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(places.padded, (tokens,))


def test_numbers_of_rows_are_few_whatever_the_lengths() -> None:
    """Each number of rows costs a CPU's kernels their set-up, and what they keep of it stays."""
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(300):
        lengths = torch.randint(40, 129, (32, 1), generator=generator)
        mask = torch.arange(128) < lengths
        rows = TokenPlaces(mask).packed(torch.ones(32 * 128, 1))
        assert int(rows.sum()) == int(mask.sum()), "what is added is zero"
        found.add(len(rows))
    assert 1 < len(found) <= 12
