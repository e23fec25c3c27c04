"""What is in a coefficient file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import CoefficientError
from onebasis.core.residual import size_bytes


@dataclass(frozen=True, slots=True)
class SiteNorm:
    """Frobenius norm of one site's core."""

    site: str
    norm: float


@dataclass(frozen=True, slots=True)
class CoefficientFacts:
    """norm, largest: of the numbers in the file. k, sites: None for all rows, all sites.

    residual_sites, residual_rank, residual_bytes: how many sites have a residual, its largest rank, its bytes; or 0.
    largest_site, smallest_site: by the norm of the core; None without a basis that the file fits.
    """

    form: str
    dtype: str
    n_numbers: int
    k: int | None
    sites: tuple[str, ...] | None
    task: str | None
    basis: str
    base_fingerprint: str
    norm: float
    largest: float
    residual_sites: int
    residual_rank: int
    residual_bytes: int
    largest_site: SiteNorm | None
    smallest_site: SiteNorm | None
    provenance: Mapping[str, Any]


def inspect_coefficients(path: Path, basis: BasisSpec | None) -> tuple[CoefficientFacts, list[str]]:
    """The facts, and the reason why a server with this basis would refuse the file, if it would.

    Raises:
        CoefficientError: a server would refuse it whatever its basis.
    """
    file = parse_coefficients(path.read_bytes())
    if basis is None:
        return _facts(file, []), []
    try:
        return _facts(file, _site_norms(bind(file, basis))), []
    except CoefficientError as error:
        return _facts(file, []), [str(error)]


def _facts(file: CoefficientFile, norms: list[SiteNorm]) -> CoefficientFacts:
    numbers = file.numbers()
    dtypes = {"uint16": "bfloat16"}
    return CoefficientFacts(
        form=file.form,
        dtype=dtypes.get(str(file.values.dtype), str(file.values.dtype)),
        n_numbers=numbers.size,
        k=file.k,
        sites=file.sites,
        task=file.task,
        basis=file.basis,
        base_fingerprint=file.base_fingerprint,
        norm=_norm(numbers),
        largest=float(np.abs(numbers).max(initial=0.0)),
        residual_sites=len(file.residual),
        residual_rank=max((factors.rank for factors in file.residual.values()), default=0),
        residual_bytes=size_bytes(file.residual),
        largest_site=max(norms, key=lambda site: site.norm, default=None),
        smallest_site=min(norms, key=lambda site: site.norm, default=None),
        provenance=file.provenance,
    )


def _site_norms(bound: BoundCoefficients) -> list[SiteNorm]:
    """Of the sites that the file names."""
    cores = bound.flat_cores()
    named = set(bound.file.sites or (site.name for site in bound.basis.sites))
    norms: list[SiteNorm] = []
    start = 0
    for site in bound.basis.sites:
        end = start + site.k_out * site.k_in
        if site.name in named:
            norms.append(SiteNorm(site.name, _norm(cores[start:end])))
        start = end
    return norms


def _norm(numbers: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(numbers.astype(np.float64)))
