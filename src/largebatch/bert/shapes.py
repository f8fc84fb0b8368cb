"""Few shapes: counts that differ from batch to batch, rounded up."""


def filling(count: int) -> int:
    """Return what to add to a count, at most a sixteenth of it, so that only a few sums occur.

    Matrix kernels are prepared, and kept, for each shape that they meet: with every number of predicted tokens there is
    (some hundreds), the cache of oneDNN alone held 2 GB.
    """
    unit = 1 << max(0, count.bit_length() - 5)
    return -count % unit
