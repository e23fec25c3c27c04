"""TIES: trim small numbers, elect a sign, average what agrees (Yadav et al., arXiv 2306.01708), on cores.

It works number by number, so its result depends on the basis: a rotation of the same rows gives another merge.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ties(
    cores: Sequence[NDArray[np.float32]], weights: Sequence[float], *, density: float, scale: float
) -> NDArray[np.float32]:
    """Merge flat cores.

    Args:
        cores: of each task, [n_core_numbers].
        weights: of each task, above 0; only their ratios count.
        density: the share of each task's numbers that survive trimming, the largest by magnitude; 0 < density <= 1.
        scale: factor of the result, the paper's lambda.

    Returns:
        [n_core_numbers] float32: where the weighted sum of the trimmed tasks has a sign, the weighted mean of the
        numbers of that sign; elsewhere 0.
    """
    trimmed = np.stack([_trimmed(one, density) for one in cores]).astype(np.float64)
    weight = np.asarray(weights, dtype=np.float64)[:, None]
    elected = np.sign((weight * trimmed).sum(axis=0))
    agrees = (np.sign(trimmed) == elected) & (elected != 0)
    share = (weight * agrees).sum(axis=0)
    total = (weight * trimmed * agrees).sum(axis=0)
    merged: NDArray[np.float64] = np.divide(scale * total, share, out=np.zeros_like(total), where=share > 0)
    return merged.astype(np.float32)


def _trimmed(cores: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    """Zero but for the largest; numbers as large as the smallest of these stay too."""
    n_kept = max(1, round(density * cores.size))
    magnitudes = np.abs(cores)
    threshold = np.partition(magnitudes, cores.size - n_kept)[cores.size - n_kept]
    return np.where(magnitudes >= threshold, cores, np.float32(0))
