"""DARE: drop numbers at random and rescale the others (Yu et al., arXiv 2311.03099), then average, on cores.

It works number by number, so its result depends on the basis: a rotation of the same rows gives another merge.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.weighted_sum import weighted_sum


def dare(
    cores: Sequence[NDArray[np.float32]], weights: Sequence[float], *, density: float, scale: float, seed: int
) -> NDArray[np.float32]:
    """Merge flat cores; its expectation over seeds is `scale` times the weighted mean.

    Args:
        cores: of each task, [n_core_numbers].
        weights: of each task, above 0; only their ratios count.
        density: the chance of each number to be kept, 0 < density <= 1; what is kept is divided by it.
        scale: factor of the result.
        seed: of the choice; drawn task by task in the order given.
    """
    generator = np.random.default_rng(seed)
    dropped = [np.where(generator.random(one.size) < density, one, np.float32(0)) for one in cores]
    factor = scale / (density * sum(weights))
    return weighted_sum(dropped, [factor * weight for weight in weights])
