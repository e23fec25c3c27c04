"""The cores of an adapter inside a fixed basis, in closed form, and how much of the adapter they are.

"Energy kept" means one thing everywhere: 1 - ||dW - P||^2 / ||dW||^2 for the update dW, scale included and nothing
centred, and what stands in its place P. For P the nearest update in the basis it is the share of dW's squared
Frobenius norm that the basis captures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.coefficients.basis_file import SiteSpec
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import Basis, SiteFactors


@dataclass(frozen=True, slots=True)
class Projection:
    """An adapter's cores, and what they leave out, by site.

    Attributes:
        cores: [k_out, k_in] float32, for each site that the adapter and the basis share.
        energy: ||dW||^2 of every site that the adapter touches, also those that the basis has not.
        lost: ||dW - U^T S V||^2 of the same sites.
        energy_of_random: what a random basis of the same sizes would be expected to capture of each site.
    """

    cores: Mapping[str, Tensor]
    energy: Mapping[str, float]
    lost: Mapping[str, float]
    energy_of_random: Mapping[str, float]

    @property
    def energy_kept(self) -> Mapping[str, float]:
        """By site; 1 where there is nothing to keep."""
        return {site: share_kept(energy, self.lost[site]) for site, energy in self.energy.items()}

    @property
    def energy_kept_total(self) -> float:
        return share_kept(sum(self.energy.values()), sum(self.lost.values()))

    @property
    def energy_kept_by_random(self) -> float:
        """(k / d)^2 on average: what any comparison has to beat."""
        total = sum(self.energy.values())
        return sum(self.energy_of_random.values()) / total if total else 1.0


def share_kept(energy: float, lost: float) -> float:
    """1 - lost / energy; 1 where there is no energy."""
    return 1.0 - lost / energy if energy else 1.0


def project(updates: Mapping[str, LowRankUpdate], basis: Basis, k: int | None = None) -> Projection:
    """The cores nearest to an adapter: at each site S that minimises ||dW - U^T S V||, by least squares.

    U and V need not be orthonormal (a stored basis is not, after rounding): S = (U U^T)^-1 U dW V^T (V V^T)^-1.

    Args:
        updates: by site; read one at a time, so that an adapter's numbers need not be in memory at once.
        k: use the first k rows of U and V alone; all of them when None.
    """
    specs = {site.name: site for site in basis.spec.sites}
    cores: dict[str, Tensor] = {}
    energy: dict[str, float] = {}
    lost: dict[str, float] = {}
    of_random: dict[str, float] = {}
    for site, update in updates.items():
        energy[site] = update.energy()
        if site not in specs:
            lost[site], of_random[site] = energy[site], 0.0
            continue
        factors = prefix(basis.factors[site], k)
        cores[site] = nearest_core(update, factors)
        lost[site] = energy_lost(update, cores[site], factors)
        of_random[site] = energy[site] * _random_share(specs[site], k)
    return Projection(cores, energy, lost, of_random)


def prefix(factors: SiteFactors, k: int | None) -> SiteFactors:
    """The first k rows of each factor."""
    return factors if k is None else SiteFactors(v=factors.v[:k], u=factors.u[:k])


def nearest_core(update: LowRankUpdate, factors: SiteFactors) -> Tensor:
    """[k_out, k_in] float32: the core nearest to an update, in the Frobenius norm of dW."""
    u, v = factors.u.double(), factors.v.double()
    left: Tensor = torch.linalg.solve(u @ u.T, u @ update.b.double())
    right: Tensor = torch.linalg.solve(v @ v.T, v @ update.a.double().T)
    return (left @ right.T).float()


def energy_lost(update: LowRankUpdate, core: Tensor, factors: SiteFactors) -> float:
    """||dW - U^T S V||^2, whatever S is."""
    return max(0.0, remainder(update, core, factors).energy())  # the rounding of nothing lost may be below zero


def remainder(update: LowRankUpdate, core: Tensor, factors: SiteFactors) -> LowRankUpdate:
    """dW - U^T S V as thin factors of rank r + k_in, in float64: most of both cancels."""
    return LowRankUpdate(
        b=torch.cat([update.b.double(), -(factors.u.double().T @ core.double())], dim=1),
        a=torch.cat([update.a.double(), factors.v.double()], dim=0),
    )


def _random_share(site: SiteSpec, k: int | None) -> float:
    k_out, k_in = site.core_shape(k)
    return (k_out / site.d_out) * (k_in / site.d_in)
