"""What a task's inputs look like through the basis, gathered by running the task on its own data."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.calibration import second_moments
from onebasis.fitting.core_updates import core_updates, site_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.merging.regmean import Grams
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase


def gather_grams(
    base: LoadedBase,
    basis: Basis,
    cores: NDArray[np.float32],
    examples: Sequence[TokenExample],
    on_example: Callable[[], None],
) -> Grams:
    """G = E[z z^T], z = V x, at every site, over all tokens of prompts and answers, under these cores.

    Args:
        cores: [n_core_numbers] of the task whose data it is.
        examples: at least one.

    Returns:
        by site [k_in, k_in] float64; z is taken in float32.
    """
    rows = {name: site.v.float() for name, site in basis.factors.items()}
    with applied_updates(base, core_updates(basis, site_cores(cores, basis.spec))):
        moments = second_moments(base, rows, examples, on_example)
    return {name: moment.numpy() for name, moment in moments.items()}
