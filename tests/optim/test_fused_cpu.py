"""The fused CPU kernels: bits, threads, vectors, memory of any shape and dtype, and what happens without them."""

import dataclasses
import functools
import itertools
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import CASES, MAKERS
from torch import Tensor, nn

from largebatch.optim import LAMB, LANS, LARS, base
from largebatch.optim.kernels import cpu
from largebatch.optim.kernels.geometry import geometry

FUSED = {name: CASES[name] for name in ("LAMB", "LANS", "LARS")}
every_case_and_set = pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, case in FUSED.items() for options in case.option_sets]
)


def kernels() -> cpu.Library:
    found = cpu.library()
    assert isinstance(found, cpu.Library), found
    return found


@contextmanager
def using(monkeypatch: pytest.MonkeyPatch, *, threads: int | None = None, **changes: Any) -> Iterator[None]:
    """Change the number of threads, whose they are, or the kind of vectors."""
    before = torch.get_num_threads()
    changed = dataclasses.replace(kernels(), **changes)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "library", lambda: changed)
        try:
            torch.set_num_threads(threads or before)
            yield
        finally:
            torch.set_num_threads(before)


OWN: Any = (None, None)
"""Threads of our own."""


# ---- bits --------------------------------------------------------------------------------------------------------


def long_parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    """Return parameters of many chunks, of one, of no whole block, and one whose gradient lies otherwise."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in [(700, 301), (40_000,), (63,), (), (300, 200)]]
    made = [nn.Parameter(a.to(dtype)) for a in made]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    made[-1].grad = made[-1].grad.t().contiguous().t() if made[-1].grad is not None else None
    return made


def ends(dtype: torch.dtype, make: Callable[..., Any], **options: Any) -> list[Tensor]:
    made = long_parameters(dtype)
    optimizer = make(made, fused=True, **options)
    for _ in range(3):
        optimizer.step()
    states = [optimizer.state[p][key] for p in made for key in sorted(optimizer.state[p]) if key != "step"]
    return [*[p.detach() for p in made], *states, *optimizer.trust_ratios().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [LAMB, LANS, MAKERS["LARS"], MAKERS["LARS 2017"]])
def test_any_number_of_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, make: Any, dtype: torch.dtype
) -> None:
    clip: dict[str, Any] = {} if make is LANS else {"max_grad_norm": 1.0}
    with using(monkeypatch, threads=1):
        expected = ends(dtype, make, **clip)
    for threads, openmp in itertools.product((2, 3, 4), (kernels().openmp, OWN)):
        with using(monkeypatch, threads=threads, openmp=openmp):
            assert same(ends(dtype, make, **clip), expected), (threads, openmp)
    with monkeypatch.context() as patch:  # the layers in other portions
        patch.setattr(cpu, "cache_bytes", lambda: 1)
        assert same(ends(dtype, make, **clip), expected)


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [LAMB, LANS, MAKERS["LARS"], MAKERS["LARS 2017"]])
def test_all_vectors_give_the_same(monkeypatch: pytest.MonkeyPatch, make: Any, dtype: torch.dtype, norm: Any) -> None:
    found = []
    for vectors in range(kernels().vectors + 1):
        with using(monkeypatch, vectors=vectors):
            found.append(ends(dtype, make, norm=norm))
    for one, other in itertools.pairwise(found[1:]):
        assert same(one, other)
    for end in found[1:]:  # the first has no contracted products
        for a, b in zip(end, found[0], strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-5 if dtype == torch.float32 else None, atol=None if dtype != torch.float32 else 1e-6
            )


@every_case_and_set
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_whole_step_is_its_phases_with_the_ratios_of_all_backends(
    monkeypatch: pytest.MonkeyPatch, name: str, options: str, dtype: torch.dtype
) -> None:
    """The ratios that the kernels make are those of `trust_ratio.py`, but for torch's root, at times a bit off."""
    case = FUSED[name]
    kind = {"LAMB": LAMB, "LANS": LANS, "LARS": LARS}[name]
    found = []
    for whole in (True, False):
        with monkeypatch.context() as patch:
            if not whole:
                phases = {**kind._phases, "fused cpu": kind._phases["fused cpu"]._replace(step_=None)}
                patch.setattr(kind, "_phases", phases)
            made = zoo.parameters(zoo.weights(), dtype)
            optimizer = case.build(zoo.groups_over(made, case.option_sets[options]), fused=True)
            for _ in zoo.run(made, optimizer, steps=12):
                pass
            found.append([p.detach() for p in made])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13 if dtype == torch.float64 else 1e-6, atol=0)


def test_subnormal_numbers_are_flushed_on_all_threads_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> list[Tensor]:
        x = nn.Parameter(torch.full((200_000,), 1e-39))
        x.grad = torch.zeros_like(x)
        LAMB([x], lr=0.25, adapt=False, weight_decay=1.0, fused=True).step()
        return [x.detach()]

    for flush in (False, True):
        if not torch.set_flush_denormal(flush):
            pytest.fail("this processor cannot flush subnormal numbers")
        try:
            with using(monkeypatch, threads=1):
                alone = end()
            for openmp in (kernels().openmp, OWN):
                with using(monkeypatch, threads=2, openmp=openmp):
                    for _ in range(5):
                        assert same(end(), alone)
            assert bool((alone[0] == 0).all()) == flush
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("own", [False, True])
def test_steps_on_several_python_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    expected = ends(torch.float32, LAMB)
    with using(monkeypatch, threads=2, openmp=OWN if own else kernels().openmp):
        found: list[list[Tensor]] = []
        running = [threading.Thread(target=lambda: found.append(ends(torch.float32, LAMB))) for _ in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert len(found) == 4
    assert all(same(end, expected) for end in found)


_FORKED = """
import dataclasses, os, sys
import torch
from largebatch import LAMB
from largebatch.optim.kernels import cpu
from largebatch.optim.kernels.geometry import geometry

own = dataclasses.replace(cpu.library(), openmp=(None, None))
cpu.library = lambda: own
torch.set_num_threads(2)
x = torch.nn.Parameter(torch.ones(500_000))
x.grad = torch.ones_like(x)
optimizer = LAMB([x], lr=0.5, fused=True)
optimizer.step()
child = os.fork()
optimizer.step()
end = x.detach().numpy()
good = bool((end == end[0]).all()) and abs(float(end[0]) - 0.25) < 1e-6
if child == 0:
    os._exit(0 if good else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not good)
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    told = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr


# ---- memory ------------------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Callable[[Tensor], Tensor]]]:
    """Draw a shape, and for x, g and the moments a way to lie in memory."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17]), max_size=4)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 3000)))

    def way() -> Callable[[Tensor], Tensor]:
        order = draw(st.permutations(range(len(shape))))
        gap, offset = draw(st.integers(1, 3)), draw(st.integers(0, 5))

        def lay(a: Tensor) -> Tensor:
            sizes = [shape[d] for d in order]
            room = torch.zeros([*sizes[:-1], gap * sizes[-1] + offset] if sizes else [1 + offset], dtype=a.dtype)
            view = room[..., offset::gap] if sizes else room[offset]
            view = view.permute([order.index(d) for d in range(len(shape))]) if sizes else view
            return view.copy_(a)

        return lay

    return shape, [way() for _ in range(3)]


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(),
    name=st.sampled_from(["LAMB", "LANS", "LARS", "LARS 2017", "LARS outside"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    masters=st.booleans(),
    nesterov=st.booleans(),
    expanded=st.booleans(),
    threads=st.integers(1, 4),
)
def test_memory_of_any_shape_equals_the_plain_kernels(
    layout: tuple[tuple[int, ...], list[Callable[[Tensor], Tensor]]],
    name: str,
    dtype: torch.dtype,
    masters: bool,
    nesterov: bool,
    expanded: bool,
    threads: int,
) -> None:
    shape, (way_x, way_g, way_m) = layout
    generator = torch.Generator().manual_seed(len(shape))
    start = torch.randn(shape, generator=generator).to(dtype)
    found = []
    for how in ({"foreach": False}, {"fused": True}):
        x = nn.Parameter(way_x(start))
        ahead = {"nesterov": ("first" if nesterov else None) if name in ("LAMB", "LANS") else nesterov}
        optimizer = MAKERS[name]([x], lr=0.1, master_weights=masters, **ahead, **how)
        optimizer.init_state()
        for key, moment in optimizer.state[x].items():
            if key != "step":
                optimizer.state[x][key] = way_m(moment)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            generator.manual_seed(7)
            for _ in range(2):
                g = (
                    torch.randn((), generator=generator).expand(shape)
                    if expanded
                    else torch.randn(shape, generator=generator)
                )
                x.grad = g.to(dtype) if expanded else way_g(g.to(dtype))
                held = x.grad.clone()
                optimizer.step()
                assert torch.equal(x.grad, held)
        finally:
            torch.set_num_threads(before)
        found.append([x.detach(), *[a for key, a in optimizer.state[x].items() if key != "step"]])
    for plain, fused in zip(*found, strict=True):
        exact = plain.dtype == torch.float64
        unit = torch.finfo(plain.dtype).eps
        tolerance = 1e-12 if exact else 32 * unit if plain.dtype == torch.float32 else 2 * unit
        torch.testing.assert_close(
            fused, plain, rtol=tolerance, atol=tolerance * float(plain.abs().max()) if plain.numel() else 0
        )


def _every_element(shape: tuple[int, ...], found: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return for each element, in the order of a geometry, its places in the arrays."""
    ndim, sizes = found[0], found[1 : 1 + found[0]]
    rows = [found[1 + ndim * (i + 1) : 1 + ndim * (i + 2)] for i in range((len(found) - 1) // ndim - 1)]
    return [
        tuple(sum(n * stride for n, stride in zip(index, row, strict=True)) for row in rows)
        for index in itertools.product(*map(range, sizes))
    ]


@pytest.mark.parametrize(
    ("shape", "strides", "dimensions"),
    [
        ((4, 3), ((3, 1), (3, 1)), None),
        ((4, 3), ((1, 4), (1, 4)), None),
        ((4, 1, 3), ((3, 99, 1), (3, 7, 1)), None),
        ((1,), ((5,), (9,)), None),
        ((2, 3, 4), ((12, 4, 1), (24, 8, 2)), 1),
        ((4, 3), ((3, 1), (1, 4)), 2),
        ((4, 3), ((6, 1), (3, 1)), 2),
        ((2, 3, 4), ((12, 4, 1), (0, 0, 0)), 1),
        ((2, 3, 4), ((12, 4, 1), (12, 1, 3)), 3),
        ((5,), ((1,), None, (2,)), 1),
    ],
)
def test_geometries_find_every_element_in_as_few_dimensions_as_there_are(
    shape: tuple[int, ...], strides: Any, dimensions: int | None
) -> None:
    found = geometry(shape, strides)
    assert (None if found is None else found[0]) == dimensions
    if found is not None:
        expected = [
            tuple(0 if of is None else sum(n * stride for n, stride in zip(index, of, strict=True)) for of in strides)
            for index in itertools.product(*map(range, shape))
        ]
        assert sorted(_every_element(shape, found)) == sorted(expected)


def _bits(dtype: torch.dtype) -> Tensor:
    """Return float32 numbers: all that the dtype has, those halfway between two and beside, and any others."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    bits = every.view(torch.int32)
    near = [bits + (d << shift) + e for shift in (11, 12, 13, 15) for d in (0, 1) for e in (-1, 0, 1)]
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(1 << 31), 1 << 31, (1 << 19,), generator=generator).to(torch.int32)
    return torch.cat([*near, anything]).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vectors", [0, 1, 2])
def test_half_precision_is_read_and_rounded_as_pytorch_does(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vectors: int
) -> None:
    numbers = _bits(dtype)
    x = nn.Parameter(torch.zeros(numbers.numel(), dtype=dtype))
    x.grad = torch.zeros_like(x)
    optimizer = LARS([x], lr=0.0, momentum=0.0, master_weights=True, adapt=False, fused=True)
    optimizer.init_state()
    optimizer.state[x]["master"].copy_(numbers)
    with using(monkeypatch, vectors=min(vectors, kernels().vectors)):
        optimizer.step()
    # A length of 0 times what is infinite is no number, for the plain kernels too.
    finite = numbers.isfinite()
    assert torch.equal(x[finite].view(torch.int16), numbers[finite].to(dtype).view(torch.int16))
    assert x[~finite].isnan().all()
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for one in (every[every.isfinite()], every[~every.isfinite()][:3]):
        squares = one.double().square()
        with using(monkeypatch, vectors=min(vectors, kernels().vectors)):
            torch.testing.assert_close(
                cpu.squares([a.contiguous() for a in one.split(1)]), squares, rtol=0, atol=0, equal_nan=True
            )


def test_memory_that_overlaps_is_refused_before_anything_changes() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1).expand(3))
    for p in (first, second):
        p.grad = torch.ones(3)
    optimizer = LAMB([first, second], fused=True)
    with pytest.raises(RuntimeError, match=r"shape \(3,\) and strides \(0,\) is to be changed, but.*clone it"):
        optimizer.step()
    assert torch.equal(first.detach(), torch.ones(3))
    assert not optimizer.state[first]["exp_avg"].any()


def test_lazily_negated_gradients_are_seen_as_they_are() -> None:
    negated = torch.complex(torch.zeros(40), torch.linspace(1, 2, 40)).conj().imag
    assert negated.is_neg()
    found = []
    for g in (negated, negated.resolve_neg()):
        x = nn.Parameter(torch.ones(40))
        x.grad = g
        LAMB([x], lr=0.1, max_grad_norm=1.0, fused=True).step()
        found.append(x.detach())
    assert torch.equal(*found)
    x = nn.Parameter(negated)
    x.grad = torch.ones(40)
    with pytest.raises(RuntimeError, match="lazily negated view"):
        LAMB([x], fused=True).step()


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count() -> None:
    count = (1 << 31) + 5
    x = nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    x.grad = torch.ones(1, dtype=torch.bfloat16).expand(count)
    optimizer = LARS([x], lr=0.5, momentum=0.0, weight_decay=0.0, fused=True)
    assert float(optimizer.grad_norm()) == pytest.approx(count**0.5, rel=1e-12)
    optimizer.step()
    assert bool((x.detach()[:: 1 << 10] == 0.5).all())
    assert x.detach()[-5:].tolist() == [0.5] * 5
    assert float(optimizer.trust_ratios()["0"]) == 1.0


# ---- where there are none ----------------------------------------------------------------------------------------


def test_without_compiled_kernels_the_default_is_foreach_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    real = cpu.library
    assert isinstance(real, functools._lru_cache_wrapper)
    monkeypatch.setattr(base, "_logged", set())
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    monkeypatch.setattr(cpu, "library", real.__wrapped__)
    caplog.set_level(logging.INFO, logger="largebatch.optim")
    x = nn.Parameter(torch.ones(2))
    x.grad = torch.ones(2)
    LAMB([x]).step()
    why = "the CPU kernels were not compiled when largebatch was installed; install largebatch where a C++ compiler"
    assert [record.getMessage() for record in caplog.records] == [
        f"LAMB: foreach kernels on cpu (the default; fused=... or foreach=... chooses); {why} (g++ or clang++) is at "
        "hand to have them"
    ]
    for make in (LAMB, LANS, MAKERS["LARS"]):
        with pytest.raises(RuntimeError, match=re.escape(f"fused=True: {why}")):
            make([x], fused=True)
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="fused=True: the CPU kernels cannot be loaded"):
        LAMB([x], fused=True)
    assert "another version" not in str(real())
    monkeypatch.setattr(cpu, "__file__", str(cpu.__spec__.origin))
    monkeypatch.setattr(cpu, "_VERSION", -1)
    with pytest.raises(RuntimeError, match=r"fused=True: the CPU kernels in .*_cpu.so are of another version"):
        LAMB([x], fused=True)


def test_a_subclass_of_tensor_is_refused() -> None:
    class Marked(Tensor):
        pass

    x = torch.ones(2).as_subclass(Marked).requires_grad_()
    x.grad = torch.ones(2)
    optimizer = LAMB([x], fused=True)
    with pytest.raises(RuntimeError, match=r"fused=True: .* subclass of Tensor"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore")  # of what the compiler will not look into
def test_a_compiled_step_leaves_fused_kernels_as_they_are() -> None:
    found = []
    for compiled in (False, True):
        x = nn.Parameter(torch.linspace(1, 2, 1000))
        optimizer = LAMB([x], lr=0.1, fused=True)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(3):
            x.grad = torch.linspace(-1, number, 1000)
            step()
        found.append([x.detach(), optimizer.state[x]["exp_avg"]])
    assert same(*found)


def test_the_size_of_the_cache_is_read_from_the_system() -> None:
    assert cpu.cache_bytes() >= 1 << 23
