"""Ways to answer a task without training: what they put beside the base's layers, and what that takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from onebasis.fitting.basis.hosvd import SiteRows
from onebasis.fitting.low_rank import LowRankUpdate, ReadAdapter, balanced, best_of_rank, compact_svd
from onebasis.fitting.report.site import left_out_rows, orthonormal_rows
from onebasis.fitting.report.weights import site_updates
from onebasis.model.factors import Basis

_BYTES: Final = 2  # of a number in float16

Updates = Mapping[str, LowRankUpdate]
"""By site."""

Rows = Mapping[str, SiteRows]
"""By site, in float64."""


@dataclass(frozen=True, slots=True)
class Way:
    """Updates, and the bytes of the task's own numbers in float16; None where it has none.

    in_sample: the rows that it is projected on were made from the very adapter; None where there are none.
    """

    name: str
    updates: Updates
    size_bytes: int | None
    in_sample: bool | None = None


def rows_of(basis: Basis) -> Rows:
    return {name: orthonormal_rows(site) for name, site in basis.factors.items()}


def random_rows(basis: Basis, seed: int) -> Rows:
    """Orthonormal rows of the basis's sizes, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: SiteRows(_random_like(site.u, generator), _random_like(site.v, generator))
        for name, site in basis.factors.items()
    }


def rows_without(adapters: Sequence[ReadAdapter], name: str, basis: Basis, *, n_sweeps: int) -> Rows:
    """Made anew from the other adapters, site by site; no rows where no other adapter is."""
    found = {
        site: left_out_rows(site_updates(adapters, site), name, factors, n_sweeps=n_sweeps)
        for site, factors in basis.factors.items()
    }
    return {site: rows for site, rows in found.items() if rows is not None}


def projected(updates: Updates, rows: Rows) -> dict[str, LowRankUpdate]:
    """U^T (U dW V^T) V at every site that has rows: the closest update inside of orthonormal rows."""
    inside: dict[str, LowRankUpdate] = {}
    for name, update in updates.items():
        if name in rows:
            u, v = rows[name].u, rows[name].v
            core = (u @ update.b.double()) @ (update.a.double() @ v.T)
            inside[name] = LowRankUpdate(b=(u.T @ core).float(), a=v.float())
    return inside


def remainders(updates: Updates, inside: Updates, rank: int) -> dict[str, LowRankUpdate]:
    """The best update of that rank of what `inside` leaves of each site."""
    return {
        name: best_of_rank(added([update, scaled(inside[name], -1)]) if name in inside else update, rank)
        for name, update in updates.items()
    }


def mean_update(adapters: Sequence[ReadAdapter], site_names: Sequence[str]) -> dict[str, LowRankUpdate]:
    """The mean of the adapters' updates; one that leaves a site alone counts as zero there."""
    means: dict[str, LowRankUpdate] = {}
    for site in site_names:
        found = [adapter.update(site) for adapter in adapters if site in adapter.sites]
        if found:
            means[site] = scaled(added(found), 1 / len(adapters))
    return means


def null_of(updates: Updates, seed: int) -> dict[str, LowRankUpdate]:
    """The adapter's singular values between directions drawn at random: as strong, and nothing learnt."""
    generator = torch.Generator().manual_seed(seed)
    nulls: dict[str, LowRankUpdate] = {}
    for site, update in updates.items():
        _, sigma, _ = compact_svd(update)
        left = _random(len(sigma), update.b.shape[0], generator).T
        nulls[site] = balanced(left, sigma, _random(len(sigma), update.a.shape[1], generator))
    return nulls


def largest_triplets(updates: Updates, size_bytes: int) -> dict[str, LowRankUpdate]:
    """The adapter's own singular triplets, of all sites, by energy per byte, as many as fit into so many bytes."""
    triplets = []
    for site, update in updates.items():
        left, sigma, right = compact_svd(update)
        n_bytes = _BYTES * (left.shape[0] + right.shape[1])
        triplets += [(float(s) ** 2 / n_bytes, n_bytes, site) for s in sigma]
    ranks: dict[str, int] = {}
    used = 0
    for _, n_bytes, site in sorted(triplets, reverse=True):
        if used + n_bytes <= size_bytes:
            ranks[site] = ranks.get(site, 0) + 1
            used += n_bytes
    return {site: best_of_rank(updates[site], rank) for site, rank in ranks.items()}


def added(updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
    """The sum, of the summed rank."""
    return LowRankUpdate(b=torch.cat([u.b for u in updates], dim=1), a=torch.cat([u.a for u in updates]))


def joined(left: Updates, right: Updates) -> dict[str, LowRankUpdate]:
    """The sum at every site of either."""
    both = {site: [part[site] for part in (left, right) if site in part] for site in {**left, **right}}
    return {site: added(parts) for site, parts in both.items()}


def scaled(update: LowRankUpdate, factor: float) -> LowRankUpdate:
    return LowRankUpdate(b=factor * update.b, a=update.a)


def factor_bytes(updates: Updates) -> int:
    """Of both factors of every site in float16."""
    return _BYTES * sum(update.b.numel() + update.a.numel() for update in updates.values())


def core_bytes(updates: Updates, rows: Rows) -> int:
    """Of a core in float16 at every site of the adapter that has rows."""
    return _BYTES * sum(len(rows[site].u) * len(rows[site].v) for site in updates if site in rows)


def _random(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    """[n, dimension] orthonormal, float64."""
    q: Tensor = torch.linalg.qr(torch.randn(dimension, n, generator=generator, dtype=torch.float64)).Q
    return q.T


def _random_like(rows: Tensor, generator: torch.Generator) -> Tensor:
    return _random(rows.shape[0], rows.shape[1], generator)
