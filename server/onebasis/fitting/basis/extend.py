"""A basis to which rows are appended: its own stay the first ones, bit by bit."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.lineage import Ancestor, ancestors, mixing_digest
from onebasis.core.errors import InvalidBasis
from onebasis.core.ids import Digest
from onebasis.fitting.basis.hosvd import SiteRows
from onebasis.fitting.basis.leading import orthonormal
from onebasis.model.factors import SiteFactors, checked_fingerprint, load_basis
from onebasis.model.loader import LoadedBase


@dataclass(frozen=True)
class OldBasis:
    """The basis to extend, whole in memory. `factors` are in the file's own dtype."""

    path: Path
    spec: BasisSpec
    factors: Mapping[str, SiteFactors]

    def rows(self, site: str) -> SiteRows | None:
        """What its rows span at a site, orthonormal although they were rounded; None if it has none there."""
        factors = self.factors.get(site)
        return None if factors is None else SiteRows(orthonormal(factors.u.double()), orthonormal(factors.v.double()))

    def extended(self, site: str, new: SiteRows) -> SiteFactors:
        """Its own rows at a site, the new ones below them in its dtype."""
        old = self.factors.get(site)
        if old is None:
            return SiteFactors(v=new.v.to(torch.bfloat16), u=new.u.to(torch.bfloat16))
        return SiteFactors(v=torch.cat([old.v, new.v.to(old.v.dtype)]), u=torch.cat([old.u, new.u.to(old.u.dtype)]))

    def lineage(self) -> tuple[Ancestor, ...]:
        """What the extended basis will have to say of its origin: this basis, and those it extends itself."""
        sizes = {site.name: (site.k_out, site.k_in) for site in self.spec.sites}
        own = Ancestor(
            self.spec.digest,
            rows_digest(self.path, sizes),
            self.spec.base_fingerprint,
            sizes,
            mixing_digest(self.spec.mixing),
        )
        return own, *ancestors(self.spec)

    def extended_mixing(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.generic]]:
        """Its mixing cores with zeros at the new rows, all of them zero at new sites; empty if it has none.

        Args:
            sizes: (k_out, k_in) of the extended basis by site.
        """
        if not self.spec.has_mixing_cores:
            return {}
        usual = self.spec.mixing[self.spec.sites[0].name]
        grown: dict[str, NDArray[np.generic]] = {}
        for site, size in sizes.items():
            old = self.spec.mixing.get(site, usual[:, :0, :0])
            n_rows, k_out, k_in = old.shape
            grown[site] = np.zeros((n_rows, *size), old.dtype)
            grown[site][:, :k_out, :k_in] = old
        return grown


def open_old_basis(path: Path, base: LoadedBase) -> OldBasis:
    """Read the basis to extend.

    Raises:
        InvalidBasis: it is malformed, or made for other base weights.
    """
    basis = load_basis(path, dtype=torch.float32, device=torch.device("cpu"))
    checked_fingerprint(base.model, basis)
    with safe_open(path, framework="pt") as file:
        factors = {
            site.name: SiteFactors(v=file.get_tensor(f"{site.name}.V"), u=file.get_tensor(f"{site.name}.U"))
            for site in basis.spec.sites
        }
    return OldBasis(path, basis.spec, factors)


def rows_digest(path: Path, sizes: Mapping[str, tuple[int, int]]) -> Digest:
    """`sha256:<hex>` over the first (k_out, k_in) rows of both factors at each of these sites, as the file has them."""
    state = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for site, (k_out, k_in) in sorted(sizes.items()):
            for name, k in ((f"{site}.U", k_out), (f"{site}.V", k_in)):
                rows: Tensor = file.get_tensor(name)[:k].contiguous()
                state.update(f"{name}:{rows.dtype}:{tuple(rows.shape)}:".encode())
                state.update(rows.view(torch.uint8).numpy().data)
    return Digest("sha256:" + state.hexdigest())


def check_rows(path: Path, spec: BasisSpec) -> tuple[Ancestor, ...]:
    """What a basis extends, nearest first, after a look at every row.

    Raises:
        InvalidBasis: its first rows are not those of the basis that it says it extends.
    """
    found = ancestors(spec)
    for ancestor in found:
        if rows_digest(path, ancestor.sizes) != ancestor.rows_digest:
            raise InvalidBasis(f"basis {path}: its first rows are not those of {ancestor.digest}; build it again")
    return found
