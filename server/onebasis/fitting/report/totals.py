"""One adapter's numbers put together over its sites, and what they mean in bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from onebasis.coefficients.basis_file import SiteSpec
from onebasis.fitting.report.results import BytesPoint
from onebasis.fitting.report.site import OWN_RANKS, RESIDUAL_RANKS, SiteMeasure, WeightPlan

_BYTES: Final = 2  # of a number in float16


@dataclass(frozen=True, slots=True)
class AdapterSites:
    """One adapter's places in the measures of its sites; grows site by site."""

    places: list[tuple[SiteMeasure, int]] = field(default_factory=list)

    def energy(self) -> float:
        return sum(site.norms[i] ** 2 for site, i in self.places)

    def share(self, of: Callable[[SiteMeasure], Tensor]) -> tuple[float, ...]:
        """The adapter's row of some shares, each site weighing as much as it has energy."""
        rows = torch.stack([site.norms[i] ** 2 * of(site)[i] for site, i in self.places])
        return tuple((rows.sum(dim=0) / self.energy()).tolist())


def bytes_and_energy(
    plan: WeightPlan, sites: Sequence[SiteSpec], totals: Mapping[str, AdapterSites], known: frozenset[str]
) -> tuple[BytesPoint, ...]:
    """Mean over adapters; those that the basis was made from (`known`) apart. Bytes are of a task with every site."""
    factor_bytes = _BYTES * sum(site.d_in + site.d_out for site in sites)
    whole = _core_bytes(sites, None)
    points: list[BytesPoint] = []
    for in_sample, label in ((True, "in-sample"), (False, "held out")):
        group = [total for name, total in totals.items() if (name in known) is in_sample]
        if group:
            points += [
                BytesPoint(f"import, {label}, k={k}", _core_bytes(sites, k), kept, in_sample)
                for k, kept in zip(plan.prefixes, _means(group, lambda site: site.held), strict=True)
            ]
            points += [
                BytesPoint(f"import + residual, {label}, r={rank}", whole + rank * factor_bytes, kept, in_sample)
                for rank, kept in zip(RESIDUAL_RANKS, _means(group, lambda site: site.with_residual), strict=True)
            ]
    everybody = list(totals.values())
    if plan.leave_one_out:
        points += [
            BytesPoint(f"import, basis made without it, k={k}", _core_bytes(sites, k), kept, in_sample=False)
            for k, kept in zip(plan.prefixes, _means(everybody, lambda site: site.left_out), strict=True)
        ]
    points += [
        BytesPoint(f"own SVD, r={rank}", rank * factor_bytes, kept, in_sample=None)
        for rank, kept in zip(OWN_RANKS, _means(everybody, lambda site: site.own), strict=True)
    ]
    return tuple(points)


def _core_bytes(sites: Sequence[SiteSpec], k: int | None) -> int:
    return _BYTES * sum(rows * columns for rows, columns in (site.core_shape(k) for site in sites))


def _means(adapters: Sequence[AdapterSites], of: Callable[[SiteMeasure], Tensor]) -> list[float]:
    shares = [adapter.share(of) for adapter in adapters]
    return [sum(column) / len(shares) for column in zip(*shares, strict=True)]
