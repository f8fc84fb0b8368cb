"""The multi-tensor kernels: how the layers are portioned, what memory they take, and who chooses them."""

import logging
import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from rules import MAKERS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from largebatch.optim import LAMB, LANS, base
from largebatch.optim.gathering import Member, portions
from largebatch.optim.kernels import pieces


def _address(a: Tensor) -> int:
    return a.untyped_storage().data_ptr()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations have made and that still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_address(a) for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for a in tree_leaves(made):
            if isinstance(a, Tensor) and (key := _address(a)) not in given | self.known:
                size = a.untyped_storage().nbytes()
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(a, self.forget, key, size)
        return made

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([3, 4, 5], 7, [[3, 4], [5]]),
        ([3, 4, 5], 6, [[3], [4], [5]]),
        ([9, 1, 1, 0, 9], 2, [[9], [1, 1, 0], [9]]),
        ([2, 2], math.inf, [[2, 2]]),
        ([], 5, []),
    ],
)
def test_layers_are_portioned_by_their_elements(sizes: list[int], limit: float, expected: list[list[int]]) -> None:
    members = [Member(n, a, a, a, None, None, ()) for n, a in enumerate(map(torch.empty, sizes))]
    found = list(portions(members, limit))
    assert [[member.p.numel() for member in portion] for portion in found] == expected
    assert [member.number for portion in found for member in portion] == list(range(len(sizes)))


@contextmanager
def limits(monkeypatch: pytest.MonkeyPatch, piece: int, kept: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "CPU_PIECE_ELEMENTS", piece)
        patch.setattr(pieces, "CPU_KEPT_ELEMENTS", kept)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LAMB", {}),
        ("LANS", {}),
        ("LARS", {}),
        ("LARS", {"nesterov": True}),
        ("LARS", {"momentum": 0.0}),
        ("LARS 2017", {}),
    ],
)
def test_foreach_needs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    piece, kept = 1 << 12, 1 << 14

    def peak(piece: int, kept: int) -> int:
        made = [nn.Parameter(torch.ones(n, dtype=dtype)) for n in (1 << 18, 3000, 1 << 14, 20, *[5000] * 30)]
        for p in made:
            p.grad = torch.ones_like(p)
        clip = {} if name == "LANS" else {"max_grad_norm": 1.0}
        optimizer = MAKERS[name](made, foreach=True, **clip, **options)
        optimizer.init_state()
        with limits(monkeypatch, piece, kept), LiveBytes() as count:
            optimizer.step()
            optimizer.grad_norm()
        return count.peak

    # Kept directions, and five float32 temporaries of a piece (three, and copies of x and g in float32), and scalars.
    bound = 4 * (kept + 5 * piece) + 20_000
    assert peak(piece, kept) < bound
    if name == "LAMB":
        assert 4 * kept < peak(piece, kept)
        assert peak(piece, 10**9) > 2 * bound
    assert peak(10**9, kept) > 2 * bound


def test_a_rule_that_keeps_two_arrays_gets_half_as_many_elements() -> None:
    cpu = torch.device("cpu")
    assert 2 * LANS._phases["foreach"].elements_at_once(cpu) == pieces.kept_elements(cpu)


class Marked(Tensor):
    """A subclass of Tensor, for which multi-tensor operations may not exist."""


def test_the_default_chooses_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "_logged", set())
    caplog.set_level(logging.INFO, logger="largebatch.optim")
    choices: list[dict[str, Any]] = [{}, {}, {"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}]
    for options in choices:
        x = nn.Parameter(torch.ones(2))
        x.grad = torch.ones(2)
        optimizer = LAMB([x], **options)
        optimizer.step()
        optimizer.step()
    marked = torch.ones(2).as_subclass(Marked).requires_grad_()
    marked.grad = torch.ones(2)
    LAMB([marked]).step()
    x, y = (nn.Parameter(torch.ones(2)) for _ in range(2))
    several: list[dict[str, Any]] = [{"params": [marked]}, {"params": [x], "foreach": False}, {"params": [y]}]
    assert LAMB(several).kernels() == ("fused cpu", "plain")
    assert [record.getMessage() for record in caplog.records] == [
        f"LAMB: {kernels} kernels on cpu (the default; fused=... or foreach=... chooses)"
        for kernels in ("fused", "foreach", "plain")
    ]


@pytest.mark.parametrize("lie", ["transposed", "expanded", "in steps"])
def test_gradients_with_gaps_are_cast_part_by_part(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_CAST_AT_ONCE", 10)
    seen: list[int] = []
    norm = torch.linalg.vector_norm

    def noticed(a: Tensor, *words: Any, **options: Any) -> Tensor:
        seen.append(a.numel())
        return norm(a, *words, **options)

    monkeypatch.setattr(torch.linalg, "vector_norm", noticed)
    whole = torch.arange(1.0, 8 * 31 + 1).view(8, 31)
    grad = {"transposed": whole.t(), "expanded": whole[:, :1].expand(8, 31), "in steps": whole[:, ::2]}[lie]
    x = nn.Parameter(torch.zeros_like(grad))
    x.grad = grad
    found = LAMB([x]).grad_norm()
    assert max(seen[:-1]) <= 10 < grad.numel()
    torch.testing.assert_close(found, norm(grad.double()), rtol=1e-14, atol=0)
