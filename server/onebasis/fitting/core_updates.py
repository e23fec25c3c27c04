"""A task's cores as updates of the layers, so that a model can run under them without a server."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import Basis


def core_updates(basis: Basis, cores: Mapping[str, Tensor]) -> dict[str, LowRankUpdate]:
    """What cores [k_out, k_in] amount to: b = U^T S, a = V at every site that has one."""
    factors = {site: basis.factors[site] for site in cores}
    return {
        site: LowRankUpdate(b=factors[site].u.float().T @ core.float(), a=factors[site].v.float())
        for site, core in cores.items()
    }


def site_cores(flat: NDArray[np.float32], spec: BasisSpec) -> dict[str, Tensor]:
    """The core [k_out, k_in] of every site, of [n_core_numbers] numbers in the basis's order."""
    parts = torch.split(torch.from_numpy(flat.astype(np.float32)), [site.k_out * site.k_in for site in spec.sites])
    return {site.name: part.view(site.core_shape()) for site, part in zip(spec.sites, parts, strict=True)}


def file_cores(data: bytes, basis: Basis) -> dict[str, Tensor]:
    """The cores [k_out, k_in] float32 that a coefficient file stores, at every site of its basis.

    Raises:
        CoefficientError: not such a file, or for another basis.
    """
    return site_cores(bind(parse_coefficients(data), basis.spec).flat_cores(), basis.spec)
