"""What the fused CPU kernels are given and cannot take: it is refused before anything changes, or taken another way."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from largebatch.optim import LAMB, LANS, LARS
from largebatch.optim.kernels import geometry

OPTIMIZERS = [LAMB, LANS, LARS]


def _other_gradient(p: nn.Parameter) -> None:
    p.data = torch.ones(100, 3)


def _grown(p: nn.Parameter) -> None:
    p.grad = None
    p.data = torch.ones(100, 3)
    p.grad = torch.ones(100, 3)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("change", [_other_gradient, _grown])
def test_arrays_of_another_shape_are_refused(
    make: type[LAMB | LANS | LARS], change: Callable[[nn.Parameter], None]
) -> None:
    p = nn.Parameter(torch.ones(4, 3))
    p.grad = torch.ones(4, 3)
    optimizer = make([p], lr=0.1, fused=True)
    optimizer.step()
    change(p)
    with pytest.raises(RuntimeError, match=r"of a parameter of shape .* has the shape"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(100, 3))


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("first", [0, 1])
def test_layers_whose_moments_have_other_dtypes(make: type[LAMB | LANS | LARS], first: int) -> None:
    def train(fused: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        model = nn.ParameterList([torch.randn(30, 20, generator=generator) for _ in range(2)])
        optimizer = make(model.parameters(), lr=0.01, fused=fused, foreach=None if fused else False)
        model[first].grad = torch.randn(30, 20, generator=generator)
        optimizer.step()
        model.double()
        for p in model:
            p.grad = torch.randn(30, 20, generator=generator).double()
        optimizer.step()
        return [p.detach() for p in model]

    for ours, plain in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [True, None])
def test_a_gradient_of_zeros_without_a_place(fused: bool | None) -> None:
    p = nn.Parameter(torch.ones(50))
    p.grad = torch._efficientzerotensor(50)
    LAMB([p], lr=0.1, weight_decay=0.1, fused=fused).step()
    torch.testing.assert_close(p.detach(), torch.full((50,), 0.9))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_gradients_of_other_dtypes_take_the_plain_kernels(dtype: torch.dtype) -> None:
    def step(fused: bool | None, foreach: bool | None) -> Tensor:
        p = nn.Parameter(torch.ones(50))
        p.grad_dtype = dtype
        p.grad = torch.ones(50).to(dtype)
        LAMB([p], lr=0.1, fused=fused, foreach=foreach).step()
        return p.detach()

    assert torch.equal(step(None, None), step(None, False))
    with pytest.raises(RuntimeError, match="of another dtype"):
        step(True, None)


class _Subclass(Tensor):
    pass


def test_gradients_of_a_subclass_take_the_plain_kernels() -> None:
    p = nn.Parameter(torch.ones(50))
    p.grad = torch.ones(50).as_subclass(_Subclass)
    LAMB([p], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.full((50,), 0.9))
    with pytest.raises(RuntimeError, match="subclass of Tensor"):
        LAMB([p], lr=0.1, fused=True).step()


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((300, 300), (7, 1), True),
        ((5, 4), (0, 1), True),
        ((2, 2), (3, 2), False),
        ((3, 4), (3, 2), True),
        ((4, 5), (10, 2), False),
        ((1, 5), (0, 1), False),
    ],
)
def test_overlap_is_found_exactly(shape: tuple[int, int], strides: tuple[int, int], overlaps: bool) -> None:
    places = [i * strides[0] + j * strides[1] for i in range(shape[0]) for j in range(shape[1])]
    assert (len(set(places)) < len(places)) == overlaps
    a = torch.zeros(max(places) + 1).as_strided(shape, strides)
    if not overlaps:
        geometry.refuse_overlap(a)
        return
    with pytest.raises(RuntimeError, match="one place in memory"):
        geometry.refuse_overlap(a)
    p = nn.Parameter(a)
    p.grad = torch.ones(shape)
    with pytest.raises(RuntimeError, match="one place in memory"):
        LAMB([p], lr=0.1, fused=True).step()
    assert not a.any()


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        p = nn.Parameter(torch.ones(5))
    optimizer = LAMB([p], lr=0.1, fused=True)
    p.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match="inference mode"):
        optimizer.step()
