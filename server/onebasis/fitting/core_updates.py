"""A task's cores as updates of the layers, so that a model can run under them without a server."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import Basis


def core_updates(basis: Basis, cores: NDArray[np.float32]) -> Mapping[str, LowRankUpdate]:
    """dW = (U^T S) V at every site of the basis, exact.

    Args:
        cores: [n_core_numbers] float32, row-major, in the basis's site order.
    """
    updates: dict[str, LowRankUpdate] = {}
    start = 0
    for site in basis.spec.sites:
        end = start + site.k_out * site.k_in
        core = torch.from_numpy(cores[start:end].reshape(site.k_out, site.k_in).astype(np.float32))
        factors = basis.factors[site.name]
        updates[site.name] = LowRankUpdate(b=factors.u.float().T @ core, a=factors.v.float())
        start = end
    return updates
