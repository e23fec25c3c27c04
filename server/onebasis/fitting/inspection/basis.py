"""What is in a basis file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.container import read_header
from onebasis.model.factors import load_basis


@dataclass(frozen=True, slots=True)
class BasisFacts:
    """k_in, k_out: smallest and largest number of rows of any site.

    orthonormality_deviation: the largest entry of |V V^T - 1| or |U U^T - 1|, and the factor that has it.
    """

    basis_kind: str
    base_model: str
    base_fingerprint: str
    n_sites: int
    k_in: tuple[int, int]
    k_out: tuple[int, int]
    dtypes: tuple[str, ...]
    n_core_numbers: int
    orthonormality_deviation: float
    least_orthonormal: str
    report: Mapping[str, Any]


def inspect_basis(path: Path, basis: BasisSpec | None) -> tuple[BasisFacts, list[str]]:
    """The facts, and a problem if it is not the basis asked for.

    Raises:
        InvalidBasis: a server would not load it.
    """
    loaded = load_basis(path, dtype=torch.float32, device=torch.device("cpu"))
    spec = loaded.spec
    deviations = {
        f"{name}.{suffix}": _deviation(factor)
        for name, site in loaded.factors.items()
        for suffix, factor in (("V", site.v), ("U", site.u))
    }
    worst = max(deviations, key=deviations.__getitem__)
    facts = BasisFacts(
        basis_kind=spec.kind,
        base_model=spec.base_model,
        base_fingerprint=spec.base_fingerprint,
        n_sites=len(spec.sites),
        k_in=(min(site.k_in for site in spec.sites), max(site.k_in for site in spec.sites)),
        k_out=(min(site.k_out for site in spec.sites), max(site.k_out for site in spec.sites)),
        dtypes=tuple(sorted(set(read_header(path).dtypes.values()))),
        n_core_numbers=spec.n_core_numbers,
        orthonormality_deviation=deviations[worst],
        least_orthonormal=worst,
        report=spec.report,
    )
    if basis is None or basis.digest == spec.digest:
        return facts, []
    return facts, [f"it is another basis than --basis, which is {basis.digest}"]


def _deviation(rows: Tensor) -> float:
    return float((rows @ rows.T - torch.eye(len(rows))).abs().max())
