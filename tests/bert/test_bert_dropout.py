"""Dropout: the share, the mean, the gradient, and a seed that decides over all."""

import pytest
import torch
from torch import nn

from largebatch.bert.dropout import QuickDropout, dropout, mask, quicken_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_share_and_the_mean(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(1)
    count = 2_000_000
    found = dropout(torch.ones(count, dtype=dtype), p).double()
    values = found.unique().tolist()
    assert len(values) == 2
    assert values[0] == 0
    assert values[1] == float(torch.tensor(1 / (1 - p), dtype=dtype))
    share = float((found == 0).double().mean())
    # What the dtype's scale stands for, 1 - 1 / scale, within five standard deviations, and near what was asked for.
    stated = 1 - 1 / values[1]
    assert abs(share - stated) < 5 * (stated * (1 - stated) / count) ** 0.5
    assert abs(stated - p) < 0.004
    assert abs(float(found.mean()) - 1) < 5 * (stated / (1 - stated) / count) ** 0.5


def test_the_mean_would_be_off_with_the_share_that_was_asked_for() -> None:
    """The wrong rule: drop with p itself, and scale by what bfloat16 makes of 1 / (1 - p)."""
    torch.manual_seed(1)
    count = 2_000_000
    scale = float(torch.tensor(1 / 0.9, dtype=torch.bfloat16))
    wrong = (torch.rand(count) < 0.9).double() * scale
    assert abs(float(wrong.mean()) - 1) > 5 * (0.1 / 0.9 / count) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_independent(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    kept = (mask(torch.Size([1_000_000]), dtype, 0.5) > 0).double()
    for step in (1, 2, 3, 4, 8):
        both = float((kept[:-step] * kept[step:]).mean())
        assert abs(both - 0.25) < 5 * (0.25 * 0.75 / 1e6) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.rand(shape, dtype=torch.float64).add(0.5).to(dtype).requires_grad_()
    y = dropout(x, 0.5)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x.detach(), y.detach())
    assert set(gradient.double().flatten().tolist()) <= {0.0, 2.0}


def test_the_seed_decides() -> None:
    x = torch.ones(1000)
    torch.manual_seed(4)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(4)
    again = dropout(x, 0.3)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_other_dtypes_and_no_dropout() -> None:
    x = torch.ones(100_000, dtype=torch.float64)
    torch.manual_seed(5)
    assert abs(float((dropout(x, 0.3) == 0).double().mean()) - 0.3) < 0.01
    assert dropout(x, 0.0) is x


def test_layers_are_replaced_and_are_off_outside_of_training() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.3)), nn.AlphaDropout(0.1))
    names = list(network.state_dict())
    quicken_(network)
    inner = network[1][0]  # pyright: ignore[reportIndexIssue]
    assert isinstance(inner, QuickDropout)
    assert inner.p == 0.3
    assert type(network[2]) is nn.AlphaDropout
    assert list(network.state_dict()) == names
    x = torch.ones(1000)
    assert (inner(x) == 0).any()
    assert torch.equal(inner.eval()(x), x)
    off = nn.Sequential(nn.Dropout(0.3)).eval()
    quicken_(off)
    assert torch.equal(off[0](x), x), "a network that is evaluated stays so"
