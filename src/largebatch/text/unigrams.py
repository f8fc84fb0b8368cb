"""What a model knows that knows only how often each token occurs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def surprise(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return -ln( c(t) / sum of c ) of each token t, float64 [vocabulary_size], with c(t) its count, 1 if it is 0."""
    seen = np.maximum(counts, 1).astype(np.float64)
    return np.log(seen.sum()) - np.log(seen)
