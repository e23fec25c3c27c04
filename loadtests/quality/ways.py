"""The ways to answer a task that need no training, each as updates beside the base's layers."""

from dataclasses import dataclass

from loadtests.quality.material import Fleet
from onebasis.fitting.core_updates import core_updates
from onebasis.fitting.fidelity import Updates
from onebasis.fitting.low_rank import best_of_rank
from onebasis.fitting.projection import project, remainder
from onebasis.fitting.report.ways import added, factor_bytes, largest_triplets, scaled
from onebasis.model.factors import Basis

BYTES_PER_NUMBER = 2  # what every way is stored in: float16 or bfloat16


@dataclass(frozen=True, slots=True)
class Answerer:
    """Updates, and what they take beside what all tasks share.

    size_bytes: of the task's own numbers, 2 bytes each, without the file's header.
    energy_kept: share of the adapter's squared Frobenius norm that the basis holds; None for other ways.
    """

    updates: Updates
    size_bytes: int
    energy_kept: float | None = None


def mean_of_fleet(fleet: Fleet) -> Updates:
    """The mean of the adapters that a fleet basis may have seen."""
    adapters = fleet.in_basis
    sites = dict.fromkeys(site for adapter in adapters for site in adapter.sites)
    share = 1 / len(adapters)
    return {
        site: added([scaled(adapter.update(site), share) for adapter in adapters if site in adapter.sites])
        for site in sites
    }


def imported(updates: Updates, basis: Basis, residual: int | None) -> Answerer:
    """The projection on the basis and, of what is left, the best update of rank `residual`."""
    projection = project(updates, basis)
    inside = core_updates(basis, projection.cores)
    size = BYTES_PER_NUMBER * sum(core.numel() for core in projection.cores.values())
    if residual is None:
        return Answerer(inside, size, projection.energy_kept_total)
    left = {
        site: best_of_rank(remainder(updates[site], core, basis.factors[site]), residual)
        for site, core in projection.cores.items()
    }
    both = {site: added([inside[site], left[site]]) for site in left}
    return Answerer(both, size + factor_bytes(left), projection.energy_kept_total)


def mean_and_import(updates: Updates, mean: Updates, basis: Basis) -> Answerer:
    """The mean of the fleet, and the projection of what the adapter adds to it."""
    difference = {site: added([update, scaled(mean[site], -1)]) for site, update in updates.items()}
    projection = project(difference, basis)
    inside = core_updates(basis, projection.cores)
    size = BYTES_PER_NUMBER * sum(core.numel() for core in projection.cores.values())
    return Answerer({site: added([mean[site], inside[site]]) for site in updates}, size)


def own_triplets(updates: Updates, size_bytes: int) -> Answerer:
    """The adapter's own singular triplets, of all sites, by energy per byte, as many as fit."""
    kept = largest_triplets(updates, size_bytes)
    return Answerer(kept, factor_bytes(kept))


def core_bytes(updates: Updates, k: int) -> int:
    """Of a core of this k at every site of an adapter."""
    return BYTES_PER_NUMBER * k * k * len(updates)
