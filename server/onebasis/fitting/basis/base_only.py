"""Make a basis file for a base model without any adapters: its own singular vectors, or random directions."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.basis.leading import fix_signs
from onebasis.fitting.basis.writing import deviation_from_orthonormal, write_basis
from onebasis.model.factors import SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites

ProgressCallback = Callable[[str], None]


class BasisKind(StrEnum):
    """Where the directions come from.

    base-svd: the leading singular vectors of each base weight (LoRA-XS, arXiv 2405.17604).
    random: orthonormal directions drawn at random; the baseline that any other kind has to beat.
    """

    BASE_SVD = "base-svd"
    RANDOM = "random"


def build_basis(
    base: LoadedBase, *, kind: BasisKind, k: int, seed: int, path: Path, progress: ProgressCallback
) -> BasisSpec:
    """Write a basis of `k` rows per factor at every linear site, and read its header back.

    Factors are orthonormal in float32 and stored in bfloat16; the report has the largest deviation of V V^T and
    U U^T from the identity after that rounding, and for base-svd the energy of the weight that the rows hold.

    Args:
        k: rows of V and U, at most the smallest side of any site's weight.
        progress: called with each site's name when it is done.

    Raises:
        InvalidBasis: k does not fit the model.
        OSError: `path` can't be written.
    """
    layers = linear_sites(base.model)
    smallest = min(min(layer.weight.shape) for layer in layers.values())
    if not 1 <= k <= smallest:
        raise InvalidBasis(f"k={k}: this model allows 1 to {smallest} (its smallest site)")
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, SiteFactors] = {}
    energy: dict[str, float] = {}
    deviation = 0.0
    for name, layer in layers.items():
        u, v = _factors(layer, kind, k, generator)
        if kind is BasisKind.BASE_SVD:
            energy[name] = round(_energy_held(layer, v), 4)
        factors[name] = SiteFactors(v=v.to(torch.bfloat16), u=u.to(torch.bfloat16))
        deviation = max(deviation, *map(deviation_from_orthonormal, (factors[name].u, factors[name].v)))
        progress(name)
    return write_basis(path, base, factors, kind=kind, report=_report(kind, k, seed, deviation, energy))


def _factors(layer: nn.Linear, kind: BasisKind, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(U [k, d_out], V [k, d_in]) float32 with orthonormal rows."""
    if kind is BasisKind.BASE_SVD:
        left, _, right = torch.linalg.svd(layer.weight.float(), full_matrices=False)
        return fix_signs(left[:, :k].T), fix_signs(right[:k])
    d_out, d_in = layer.weight.shape
    u = torch.linalg.qr(torch.randn(d_out, k, generator=generator)).Q.T
    v = torch.linalg.qr(torch.randn(d_in, k, generator=generator)).Q.T
    return u, v


def _energy_held(layer: nn.Linear, v: Tensor) -> float:
    """Share of the squared Frobenius norm of W inside the row space of V."""
    weight = layer.weight.float()
    return float((weight @ v.T).square().sum() / weight.square().sum())


def _report(kind: BasisKind, k: int, seed: int, deviation: float, energy: Mapping[str, float]) -> dict[str, object]:
    return {
        "tool": f"onebasis {__version__}",
        "kind": str(kind),
        "k": k,
        "seed": seed if kind is BasisKind.RANDOM else None,
        "orthonormality_deviation_after_rounding": round(deviation, 5),
        "base_weight_energy_by_site": dict(energy),
    }
