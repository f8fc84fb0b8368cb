"""The sizes of a run: global batch, microbatches, samples, tokens, steps, epochs.

    global batch B = microbatch b x accumulation a x ranks R
    steps        T = ceil(samples / B)

Steps are optimizer steps. Everything is exact: integers, or fractions of integers, never a rounded float, so
that 512,000,000 samples at batch 512 are 1,000,000 steps on every machine.
"""

from fractions import Fraction
from numbers import Integral


def whole_number(name: str, value: object, at_least: int = 1) -> int:
    """Return ``value`` as an int if it is one of at least ``at_least``; ``name`` is what the message calls it.

    NumPy's integers count. Raises ValueError for anything else; booleans and floats, even 512.0, are refused.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least:
        return int(value)
    raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {at_least}")


def exact_fraction(name: str, value: int | float | Fraction) -> Fraction:
    """Return the number as it was written: 0.9 becomes 9/10, not the binary fraction beside it.

    Without this, 0.1 x 30 samples would be a little over 3, and its ceiling 4. Raises ValueError unless the
    value is a finite int, float or Fraction of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise ValueError(f"{name} is {value!r}, but must be a number of at least 0")
    if isinstance(value, float):
        if not 0.0 <= value < float("inf"):  # NaN fails this comparison too
            raise ValueError(f"{name} is {value!r}, but must be a finite number of at least 0")
        return Fraction(repr(float(value)))
    if value < 0:
        raise ValueError(f"{name} is {value!r}, but must be a finite number of at least 0")
    return Fraction(value)


def _ceiling(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def round_half_up(value: Fraction) -> int:
    """Return the nearest integer, upwards from the middle (``round`` would go to the even neighbour)."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def global_batch(microbatch_samples: int, accumulation: int, ranks: int) -> int:
    """Return the samples of one optimizer step, B = b x a x R.

    Args:
        microbatch_samples: samples of one forward and backward pass on one rank, b.
        accumulation: microbatches of one rank in a step, a.
        ranks: processes that share a step, R.

    Raises:
        ValueError: one of them is not a whole number of at least 1.
    """
    return (
        whole_number("microbatch_samples", microbatch_samples)
        * whole_number("accumulation", accumulation)
        * whole_number("ranks", ranks)
    )


def accumulation_for(global_batch_samples: int, microbatch_samples: int, ranks: int) -> int:
    """Return how many microbatches each rank runs in a step, a = ceil(B / (b x R)).

    Where b x R does not divide B, the last microbatches are smaller or empty; every rank still runs a.

    Raises:
        ValueError: an argument is not a whole number of at least 1, or the global batch is smaller than the
            number of ranks.
    """
    samples = whole_number("global_batch_samples", global_batch_samples)
    slots = whole_number("microbatch_samples", microbatch_samples) * whole_number("ranks", ranks)
    if samples < ranks:
        raise ValueError(f"global_batch_samples is {samples}, but must be at least the {ranks} ranks")
    return _ceiling(samples, slots)


def steps_for_samples(samples: int, global_batch_samples: int) -> int:
    """Return T = ceil(samples / B), the fewest steps that see at least so many samples.

    Raises:
        ValueError: samples is not a whole number of at least 0, or the batch not one of at least 1.
    """
    return _ceiling(
        whole_number("samples", samples, at_least=0),
        whole_number("global_batch_samples", global_batch_samples),
    )


def steps_for_epochs(epochs: int | float | Fraction, dataset_samples: int, global_batch_samples: int) -> int:
    """Return ceil(epochs x N / B): batches straddle the ends of epochs, so only the last is rounded up.

    Raises:
        ValueError: epochs is negative or not finite, or a size is not a whole number of at least 1.
    """
    return steps_for_samples(samples_for_epochs(epochs, dataset_samples), global_batch_samples)


def samples_for_steps(steps: int, global_batch_samples: int) -> int:
    """Return the samples that so many steps consume, steps x B; ValueError for anything but whole numbers."""
    return whole_number("steps", steps, at_least=0) * whole_number("global_batch_samples", global_batch_samples)


def samples_for_epochs(epochs: int | float | Fraction, dataset_samples: int) -> int:
    """Return ceil(epochs x N), the samples of so many passes, fractions allowed, over N samples.

    A float counts as the decimal it prints as: 0.1 epochs of 30 samples are 3.

    Raises:
        ValueError: epochs is negative or not finite, or N is not a whole number of at least 1.
    """
    samples = exact_fraction("epochs", epochs) * whole_number("dataset_samples", dataset_samples)
    return _ceiling(samples.numerator, samples.denominator)


def samples_for_tokens(tokens: int, sequence_length: int) -> int:
    """Return the fewest sequences that hold so many tokens, ceil(tokens / length); ValueError as above."""
    return _ceiling(whole_number("tokens", tokens, at_least=0), whole_number("sequence_length", sequence_length))


def tokens_for_samples(samples: int, sequence_length: int) -> int:
    """Return samples x length: positions computed, padding among them; ValueError as above."""
    return whole_number("samples", samples, at_least=0) * whole_number("sequence_length", sequence_length)


def epochs_for_samples(samples: int, dataset_samples: int) -> Fraction:
    """Return samples / N as an exact fraction; ``float()`` of it is for showing; ValueError as above."""
    return Fraction(whole_number("samples", samples, at_least=0), whole_number("dataset_samples", dataset_samples))
