"""The sweeps of `gpu.py` in Triton; imported only where they run."""

import torch
import triton
import triton.language as tl

TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
BLOCK = 1024
"""Elements that a program works on at once."""


@triton.jit
def _root(a, COMPUTE: tl.constexpr):
    # Of float32 the plain root and quotient are approximations.
    if COMPUTE == tl.float32:
        found = tl.sqrt_rn(a)
    else:
        found = tl.sqrt(a)
    return found


@triton.jit
def _quotient(a, b, COMPUTE: tl.constexpr):
    if COMPUTE == tl.float32:
        found = tl.div_rn(a, b)
    else:
        found = a / b
    return found


@triton.jit
def _places(i, shapes, layer, ARRAY: tl.constexpr, NDIM: tl.constexpr):
    """Return where elements i of one array of a layer lie: i itself where the arrays are dense."""
    if NDIM == 0:
        found = i
    else:
        row = shapes + layer * (6 * NDIM)
        found = tl.zeros_like(i)
        left = i
        for k in tl.static_range(NDIM):
            d = NDIM - 1 - k
            size = tl.load(row + d)
            found += left % size * tl.load(row + (1 + ARRAY) * NDIM + d)
            left = left // size
    return found


@triton.jit
def _pointers(
    addresses, shapes, layer, i, ARRAY: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, ALIGNED: tl.constexpr
):
    pointer = tl.load(addresses + layer * 5 + ARRAY).to(tl.pointer_type(TYPE))  # pyright: ignore[reportArgumentType]
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + _places(i, shapes, layer, ARRAY, NDIM)


@triton.jit
def _joined(sums, a, NORM: tl.constexpr):
    wide = a.to(tl.float64)
    if NORM == 2:
        found = sums + wide * wide
    elif NORM == 1:
        found = sums + tl.abs(wide)
    else:
        size = tl.abs(wide)
        found = tl.where((size > sums) | (size != size), size, sums)
    return found


@triton.jit
def _larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def _total(sums, NORM: tl.constexpr):
    if NORM == 0:
        found = tl.reduce(sums, 0, _larger)
    else:
        found = tl.sum(sums, axis=0)
    return found


@triton.jit
def _span(chunk, elements, layers, starts, keep, HAS_KEEP: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    """Return the layer of a chunk, and from where to where its elements go."""
    layer = tl.load(layers + chunk)
    start = tl.multiple_of(tl.load(starts + chunk), 16)
    end = tl.minimum(tl.load(elements + layer), start + CHUNK)
    if ALIGNED:
        end = tl.multiple_of(end, 16)
    if HAS_KEEP:
        end = tl.where(tl.load(keep) != 0, end, 0)  # of a step that is not taken nothing is touched
    return layer, start, end


@triton.jit
def _numbers(numbers, layer, COMPUTE: tl.constexpr):
    """Return scale of the gradient, a1, b1, a2, b2 of a layer."""
    own = numbers + layer * 5
    scale = tl.load(own).to(COMPUTE)
    a1 = tl.load(own + 1).to(COMPUTE)
    b1 = tl.load(own + 2).to(COMPUTE)
    a2 = tl.load(own + 3).to(COMPUTE)
    b2 = tl.load(own + 4).to(COMPUTE)
    return scale, a1, b1, a2, b2


@triton.jit
def _fraction(m, v, g, a1, b1, a2, b2, eps, AHEAD: tl.constexpr, COMPUTE: tl.constexpr):
    """Return mhat and sqrt(vhat) + eps."""
    n = a1 * m
    w = a2 * v
    if AHEAD:
        n += b1 * g
        w += b2 * (g * g)
    return n, _root(w, COMPUTE) + eps


@triton.jit
def first_phase(
    addresses,
    elements,
    shapes,
    layers,
    starts,
    options,
    keep,
    numbers,
    partial,
    RULE: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    AHEAD: tl.constexpr,
    BUFFER: tl.constexpr,
    NORM: tl.constexpr,
    NDIM: tl.constexpr,
    ALIGNED: tl.constexpr,
    X: tl.constexpr,
    G: tl.constexpr,
    COMPUTE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Phase 0 or 1 of one chunk: update the moments, leave the sums."""
    chunk = tl.program_id(0).to(tl.int64)
    layer, start, end = _span(chunk, elements, layers, starts, keep, HAS_KEEP, ALIGNED, CHUNK)  # pyright: ignore[reportGeneralTypeIssues]
    scale, a1, b1, a2, b2 = _numbers(numbers, layer, COMPUTE)
    wide1 = tl.load(options)
    wide2 = tl.load(options + 1)
    beta1 = wide1.to(COMPUTE)
    rest1 = (1 - wide1).to(COMPUTE)
    beta2 = wide2.to(COMPUTE)
    rest2 = (1 - wide2).to(COMPUTE)
    eps = tl.load(options + 2).to(COMPUTE)
    decay = tl.load(options + 3).to(COMPUTE)
    sums0 = tl.zeros([BLOCK], tl.float64)
    sums1 = tl.zeros([BLOCK], tl.float64)
    sums2 = tl.zeros([BLOCK], tl.float64)
    for block in range(0, CHUNK, BLOCK):
        i = start + block + tl.arange(0, BLOCK).to(tl.int64)
        inside = i < end
        g_at = _pointers(addresses, shapes, layer, i, 1, G, NDIM, ALIGNED)
        g = scale * tl.load(g_at, mask=inside, other=0.0).to(COMPUTE)
        if RULE == "squares":
            sums0 = _joined(sums0, g, NORM)
        else:
            x_at = _pointers(addresses, shapes, layer, i, 0, X, NDIM, ALIGNED)
            x = tl.load(x_at, mask=inside, other=0.0).to(COMPUTE)
            u = g
            if RULE == "lars":
                u = g + decay * x
                if BUFFER:
                    m_at = _pointers(addresses, shapes, layer, i, 2, COMPUTE, NDIM, ALIGNED)
                    m = beta1 * tl.load(m_at, mask=inside, other=0.0) + rest1 * u
                    tl.store(m_at, m, mask=inside)
                    if AHEAD:
                        u = beta1 * m + rest1 * u
                    else:
                        u = m
            if RULE == "lamb" or RULE == "lans":
                m_at = _pointers(addresses, shapes, layer, i, 2, COMPUTE, NDIM, ALIGNED)
                v_at = _pointers(addresses, shapes, layer, i, 3, COMPUTE, NDIM, ALIGNED)
                m = beta1 * tl.load(m_at, mask=inside, other=0.0) + rest1 * g
                v = beta2 * tl.load(v_at, mask=inside, other=0.0) + rest2 * (g * g)
                tl.store(m_at, m, mask=inside)
                tl.store(v_at, v, mask=inside)
                n, d = _fraction(m, v, g, a1, b1, a2, b2, eps, AHEAD, COMPUTE)
                u = _quotient(n, d, COMPUTE) + decay * x
                if RULE == "lans":
                    sums2 = _joined(sums2, _quotient(g, d, COMPUTE) + decay * x, NORM)
            sums0 = _joined(sums0, x, NORM)
            sums1 = _joined(sums1, u, NORM)
    tl.store(partial + chunk * COLUMNS, _total(sums0, NORM))
    if COLUMNS > 1:
        tl.store(partial + chunk * COLUMNS + 1, _total(sums1, NORM))
    if COLUMNS > 2:
        tl.store(partial + chunk * COLUMNS + 2, _total(sums2, NORM))


@triton.jit
def add_chunks(partial, first, sums, COLUMNS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    """Add the sums of a layer's chunks, always in the same order."""
    layer = tl.program_id(0).to(tl.int64)
    begin = tl.load(first + layer)
    end = tl.load(first + layer + 1)
    for column in tl.static_range(COLUMNS):  # pyright: ignore[reportGeneralTypeIssues]
        lanes = tl.zeros([BLOCK], tl.float64)
        for block in range(begin, end, BLOCK):
            i = block + tl.arange(0, BLOCK).to(tl.int64)
            one = tl.load(partial + i * COLUMNS + column, mask=i < end, other=0.0)
            if NORM == 0:
                lanes = _larger(one, lanes)
            else:
                lanes += one
        tl.store(sums + layer * COLUMNS + column, _total(lanes, NORM))


@triton.jit
def last_phase(
    addresses,
    elements,
    shapes,
    layers,
    starts,
    options,
    keep,
    numbers,
    lengths,
    RULE: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    AHEAD: tl.constexpr,
    BUFFER: tl.constexpr,
    NORM: tl.constexpr,
    NDIM: tl.constexpr,
    ALIGNED: tl.constexpr,
    X: tl.constexpr,
    G: tl.constexpr,
    COMPUTE: tl.constexpr,
    HAS_ROUNDED: tl.constexpr,
    ROUNDED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Phase 3 of one chunk: move the weights; for LARS of 2017 the momentum too."""
    # Backwards: what phase 1 has touched last is still in the cache.
    chunk = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    layer, start, end = _span(chunk, elements, layers, starts, keep, HAS_KEEP, ALIGNED, CHUNK)  # pyright: ignore[reportGeneralTypeIssues]
    scale, a1, b1, a2, b2 = _numbers(numbers, layer, COMPUTE)
    wide1 = tl.load(options)
    beta1 = wide1.to(COMPUTE)
    rest1 = (1 - wide1).to(COMPUTE)
    eps = tl.load(options + 2).to(COMPUTE)
    decay = tl.load(options + 3).to(COMPUTE)
    length1 = tl.load(lengths + layer * 3).to(COMPUTE)
    length2 = tl.load(lengths + layer * 3 + 1).to(COMPUTE)
    rate = tl.load(lengths + layer * 3 + 2).to(COMPUTE)
    for block in range(0, CHUNK, BLOCK):
        i = start + block + tl.arange(0, BLOCK).to(tl.int64)
        inside = i < end
        x_at = _pointers(addresses, shapes, layer, i, 0, X, NDIM, ALIGNED)
        x = tl.load(x_at, mask=inside, other=0.0).to(COMPUTE)
        g = x
        if AHEAD or RULE == "lans" or RULE == "lars-2017" or (RULE == "lars" and not BUFFER):
            g_at = _pointers(addresses, shapes, layer, i, 1, G, NDIM, ALIGNED)
            g = scale * tl.load(g_at, mask=inside, other=0.0).to(COMPUTE)
        if RULE == "lamb" or RULE == "lans":
            m = tl.load(_pointers(addresses, shapes, layer, i, 2, COMPUTE, NDIM, ALIGNED), mask=inside, other=0.0)
            v = tl.load(_pointers(addresses, shapes, layer, i, 3, COMPUTE, NDIM, ALIGNED), mask=inside, other=0.0)
            n, d = _fraction(m, v, g, a1, b1, a2, b2, eps, AHEAD, COMPUTE)
            step = length1 * (_quotient(n, d, COMPUTE) + decay * x)
            if RULE == "lans":
                step += length2 * (_quotient(g, d, COMPUTE) + decay * x)
        elif RULE == "lars":
            if BUFFER:
                m = tl.load(_pointers(addresses, shapes, layer, i, 2, COMPUTE, NDIM, ALIGNED), mask=inside, other=0.0)
                u = m
                if AHEAD:
                    u = beta1 * m + rest1 * (g + decay * x)
            else:
                u = g + decay * x
            step = length1 * u
        else:
            newest = length1 * (g + decay * x)
            step = newest
            if BUFFER:
                m_at = _pointers(addresses, shapes, layer, i, 2, COMPUTE, NDIM, ALIGNED)
                m = beta1 * tl.load(m_at, mask=inside, other=0.0) + newest
                tl.store(m_at, m, mask=inside)
                if AHEAD:
                    step = beta1 * m + newest
                else:
                    step = m
            step = rate * step
        x -= step
        tl.store(x_at, x.to(X), mask=inside)
        if HAS_ROUNDED:
            tl.store(_pointers(addresses, shapes, layer, i, 4, ROUNDED, NDIM, ALIGNED), x.to(ROUNDED), mask=inside)
