"""The one weighted sum of tasks, for a server's blends and merged files: equal parts give equal bits. No torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def weighted_sum(cores: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """sum_t weights[t] cores[t], the same shape, summed in float64 in this order; infinite where float32 ends."""
    total = np.zeros_like(cores[0], dtype=np.float64)
    for one, weight in zip(cores, weights, strict=True):
        total += weight * one.astype(np.float64)
    with np.errstate(over="ignore"):
        return total.astype(np.float32)
