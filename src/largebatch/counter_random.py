"""Random numbers as pure functions of a key and a counter, so that no order of calls can change them.

Every draw that shapes the data (the order of samples, pairs, masks) is ``bits(key, counter)``: it depends on
the words that were folded into the key, such as (seed, epoch, sample), and on nothing that a process did
before. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection on 64 bits.
Not for cryptography.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def _mix_integer(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map each 64-bit word to another by the SplitMix64 finaliser, a bijection."""
    with np.errstate(over="ignore"):  # products are meant modulo 2^64; NumPy warns of it for scalars
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key(*words: int) -> int:
    """Fold integers (a seed, a stream number, an epoch, a sample, ...) into one 64-bit key.

    The order of the words matters and their number is part of the key. Negative words are taken modulo 2^64.
    """
    folded = _mix_integer(len(words) + _GOLDEN)
    for word in words:
        folded = _mix_integer((folded + _GOLDEN) ^ _mix_integer((word & _MASK) + _GOLDEN))
    return folded


def keys(prefix: int, words: ArrayLike) -> NDArray[np.uint64]:
    """Extend one key by each of many words: ``keys(k, [a, b])`` gives a key for a and a key for b."""
    array = np.asarray(words).astype(np.uint64)
    with np.errstate(over="ignore"):
        return mix(np.uint64((prefix + _GOLDEN) & _MASK) ^ mix(array + np.uint64(_GOLDEN)))


def bits(key: int | NDArray[np.uint64], counters: ArrayLike) -> NDArray[np.uint64]:
    """Return 64 random bits for each counter; key and counters broadcast against each other."""
    counter = np.asarray(counters).astype(np.uint64)
    base: Any = np.uint64(key) if isinstance(key, int) else key
    with np.errstate(over="ignore"):
        return mix(base + (counter + np.uint64(1)) * np.uint64(_GOLDEN))


def uniform(key: int | NDArray[np.uint64], counters: ArrayLike) -> NDArray[np.float64]:
    """Return float64 numbers uniform on [0, 1), 53 bits each."""
    return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: int | NDArray[np.uint64], counters: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Return integers uniform on [0, high), for high up to 2^53; the bias is below high / 2^53."""
    return (uniform(key, counters) * np.asarray(high, dtype=np.float64)).astype(np.int64)
