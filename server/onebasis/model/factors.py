"""The numbers of a basis, as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.core.errors import InvalidBasis
from onebasis.model.sites import base_fingerprint, linear_sites


@dataclass(frozen=True, slots=True)
class SiteFactors:
    """V [k_in, d_in] and U [k_out, d_out] of one site."""

    v: Tensor
    u: Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """A basis that is resident: its header and every site's factors, in the spec's order."""

    spec: BasisSpec
    factors: Mapping[str, SiteFactors]


def load_basis(path: Path, *, dtype: torch.dtype, device: torch.device) -> Basis:
    """Read a basis file; it is memory-mapped, so host memory holds no second copy.

    Raises:
        InvalidBasis: the file is malformed, or a factor has a number that is not finite.
    """
    spec = read_basis_spec(path)
    factors: dict[str, SiteFactors] = {}
    with safe_open(path, framework="pt") as file:
        for site in spec.sites:
            v = file.get_tensor(f"{site.name}.V").to(device, dtype)
            u = file.get_tensor(f"{site.name}.U").to(device, dtype)
            if not (v.isfinite().all() and u.isfinite().all()):
                raise InvalidBasis(f"basis {path}: {site.name} has NaN or infinite numbers; build it again")
            factors[site.name] = SiteFactors(v=v, u=u)
    return Basis(spec, factors)


def checked_fingerprint(model: nn.Module, basis: Basis | None) -> str:
    """Fingerprint of the model's weights at the basis's sites, at all linear layers without a basis.

    Raises:
        InvalidBasis: the basis was made for other weights.
    """
    if basis is None:
        return base_fingerprint(model, linear_sites(model))
    found = base_fingerprint(model, basis.factors)
    if found != basis.spec.base_fingerprint:
        raise InvalidBasis(
            f"the basis is for base weights {basis.spec.base_fingerprint} ({basis.spec.base_model}), "
            f"the loaded model has {found}; load that model or build a basis for this one"
        )
    return found
