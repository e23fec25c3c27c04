"""Make a basis file for a base model without any adapters: its own singular vectors, or random directions."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec, SiteSpec, basis_metadata, read_basis_spec
from onebasis.coefficients.container import Container, RawTensor, write_container
from onebasis.core.errors import InvalidBasis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import base_fingerprint, linear_sites

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
    tensors: dict[str, RawTensor] = {}
    sites: list[SiteSpec] = []
    energy: dict[str, float] = {}
    deviation = 0.0
    for name, layer in layers.items():
        u, v = _factors(layer, kind, k, generator)
        if kind is BasisKind.BASE_SVD:
            energy[name] = round(_energy_held(layer, v), 4)
        for suffix, factor in (("U", u), ("V", v)):
            rounded = factor.to(torch.bfloat16)
            deviation = max(deviation, _deviation_from_orthonormal(rounded))
            tensors[f"{name}.{suffix}"] = _raw(rounded)
        sites.append(SiteSpec(name, d_in=layer.in_features, d_out=layer.out_features, k_in=k, k_out=k))
        progress(name)
    metadata = basis_metadata(
        kind=kind,
        base_model=base.name,
        base_fingerprint=base_fingerprint(base.model, layers),
        sites=tuple(sites),
        report=_report(kind, k, seed, deviation, energy),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_container(Container(metadata, tensors)))
    return read_basis_spec(path)


def _factors(layer: nn.Linear, kind: BasisKind, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(U [k, d_out], V [k, d_in]) float32 with orthonormal rows."""
    if kind is BasisKind.BASE_SVD:
        left, _, right = torch.linalg.svd(layer.weight.float(), full_matrices=False)
        return _fix_signs(left[:, :k].T), _fix_signs(right[:k])
    d_out, d_in = layer.weight.shape
    u = torch.linalg.qr(torch.randn(d_out, k, generator=generator)).Q.T
    v = torch.linalg.qr(torch.randn(d_in, k, generator=generator)).Q.T
    return u, v


def _fix_signs(rows: Tensor) -> Tensor:
    """Make each row's largest entry positive, so that a singular vector's sign does not depend on the library."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0)


def _energy_held(layer: nn.Linear, v: Tensor) -> float:
    """Share of the squared Frobenius norm of W inside the row space of V."""
    weight = layer.weight.float()
    return float((weight @ v.T).square().sum() / weight.square().sum())


def _deviation_from_orthonormal(rows: Tensor) -> float:
    wide = rows.float()
    return float((wide @ wide.T - torch.eye(rows.shape[0])).abs().max())


def _raw(factor: Tensor) -> RawTensor:
    data = factor.contiguous().view(torch.int16).numpy().tobytes()
    return RawTensor("BF16", tuple(factor.shape), data)


def _report(kind: BasisKind, k: int, seed: int, deviation: float, energy: Mapping[str, float]) -> dict[str, object]:
    return {
        "tool": f"onebasis {__version__}",
        "kind": str(kind),
        "k": k,
        "seed": seed if kind is BasisKind.RANDOM else None,
        "orthonormality_deviation_after_rounding": round(deviation, 5),
        "base_weight_energy_by_site": dict(energy),
    }
