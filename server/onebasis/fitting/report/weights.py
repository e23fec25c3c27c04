"""The part of a report that follows from weights alone: site by site, so that memory holds one site of the fleet."""

from collections.abc import Callable, Mapping, Sequence

import torch

from onebasis.coefficients.basis_file import SiteSpec
from onebasis.core.errors import InvalidReport
from onebasis.fitting.basis.seed_groups import seed_groups
from onebasis.fitting.low_rank import LowRankUpdate, ReadAdapter
from onebasis.fitting.report.results import AdapterWeights, NullRow, SiteWeights, WeightReport
from onebasis.fitting.report.site import SiteMeasure, WeightPlan, measure_site
from onebasis.fitting.report.subspaces import summary
from onebasis.fitting.report.totals import AdapterSites, bytes_and_energy
from onebasis.model.factors import Basis


def measure_weights(
    adapters: Sequence[ReadAdapter],
    basis: Basis,
    *,
    leave_one_out: bool,
    n_sweeps: int,
    seed: int,
    on_site: Callable[[], None],
) -> WeightReport:
    """Measure every adapter at every site of the basis.

    Args:
        leave_one_out: also make a basis of the same size without each adapter, site by site.
        n_sweeps: alternations after the HOSVD when bases are made anew.
        seed: of the null's directions.

    Raises:
        InvalidReport: two adapters of one name, one adapter twice, or one that changes no site of the basis.
    """
    _check(adapters, basis)
    plan = _plan(basis, adapters, leave_one_out=leave_one_out and len(adapters) > 1, n_sweeps=n_sweeps)
    places = {adapter.name: AdapterSites() for adapter in adapters}
    known = frozenset(adapter.name for adapter in adapters if adapter.digest in made_from(basis))
    sites: list[SiteWeights] = []
    measures: list[SiteMeasure] = []
    generator = torch.Generator().manual_seed(seed)
    for site in basis.spec.sites:
        updates = site_updates(adapters, site.name)
        if updates:
            found = measure_site(updates, basis.factors[site.name], plan, generator)
            for i, name in enumerate(found.names):
                places[name].places.append((found, i))
            sites.append(_site(plan, site, found, known))
            measures.append(found)
        on_site()
    return WeightReport(
        prefixes=plan.prefixes,
        spectrum_rows=plan.spectrum_rows,
        refit=f"HOSVD and at most {n_sweeps} alternations" if n_sweeps else "HOSVD alone",
        adapters=tuple(_adapter(adapter, places[adapter.name], basis, known) for adapter in adapters),
        sites=tuple(sites),
        null=_null_rows(plan, measures, known),
        bytes_and_energy=bytes_and_energy(plan, basis.spec.sites, places, known),
        seed_groups=tuple(tuple(group) for group in seed_groups(adapters)),
    )


def site_updates(adapters: Sequence[ReadAdapter], site: str) -> dict[str, LowRankUpdate]:
    """By adapter's name, of those that change the site."""
    found = {adapter.name: adapter.update(site) for adapter in adapters if site in adapter.sites}
    return {name: update for name, update in found.items() if update.energy() > 0}


def _check(adapters: Sequence[ReadAdapter], basis: Basis) -> None:
    names = [adapter.name for adapter in adapters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidReport(f"two adapters are called {twice[0]!r}; rename a folder")
    same = {adapter.digest: adapter.name for adapter in adapters}
    for adapter in adapters:
        if same[adapter.digest] != adapter.name:
            raise InvalidReport(f"{adapter.name!r} and {same[adapter.digest]!r} are the same adapter; give it once")
        if not any(site in basis.factors and adapter.update(site).energy() > 0 for site in adapter.sites):
            raise InvalidReport(f"adapter {adapter.name!r} changes no site of the basis; leave it out")


def _plan(basis: Basis, adapters: Sequence[ReadAdapter], *, leave_one_out: bool, n_sweeps: int) -> WeightPlan:
    largest = basis.spec.largest_k
    prefixes = tuple(sorted({k for k in (4, 8, 16, 32, 64, 128) if k < largest} | {largest}))
    n_directions = max(
        sum(adapter.update(site).rank for adapter in adapters if site in adapter.sites)
        for site in (adapters[0].sites[0], adapters[-1].sites[-1])
    )
    counts = {2**i for i in range(12) if 2**i < n_directions} | {n_directions}
    return WeightPlan(prefixes, tuple(sorted(counts)), leave_one_out, n_sweeps)


def _adapter(adapter: ReadAdapter, found: AdapterSites, basis: Basis, known: frozenset[str]) -> AdapterWeights:
    outside = sum(adapter.update(site).energy() for site in adapter.sites if site not in basis.factors)
    return AdapterWeights(
        name=adapter.name,
        digest=adapter.digest,
        in_sample=adapter.name in known,
        n_sites=len(found.places),
        largest_rank=max(site.ranks[i] for site, i in found.places),
        norm=found.energy() ** 0.5,
        outside=outside / (outside + found.energy()),
        held=found.share(lambda site: site.held),
        left_out=found.share(lambda site: site.left_out) or None,
        angles_in=summary([site.angles_in[i] for site, i in found.places]),
        angles_out=summary([site.angles_out[i] for site, i in found.places]),
    )


def made_from(basis: Basis) -> frozenset[str]:
    """Digests of the adapters that the basis says it was made from."""
    adapters = basis.spec.report.get("adapters", [])
    return frozenset(adapter["digest"] for adapter in adapters)


def _site(plan: WeightPlan, site: SiteSpec, found: SiteMeasure, known: frozenset[str]) -> SiteWeights:
    (in_sample,), (held_out,) = _split_means([found], known, slice(-1, None))
    return SiteWeights(
        site=site.name,
        d_in=site.d_in,
        d_out=site.d_out,
        k_in=site.k_in,
        k_out=site.k_out,
        n_adapters=len(found.names),
        in_sample=in_sample,
        held_out=held_out,
        left_out=float(found.left_out[:, -1].mean()) if plan.leave_one_out else None,
        spectrum_out=found.spectrum_out,
        spectrum_in=found.spectrum_in,
        null_out=found.null_spectrum_out,
        null_in=found.null_spectrum_in,
    )


def _null_rows(plan: WeightPlan, sites: Sequence[SiteMeasure], known: frozenset[str]) -> tuple[NullRow, ...]:
    in_sample, held_out = _split_means(sites, known, slice(None))
    columns = zip(
        plan.prefixes,
        in_sample,
        held_out,
        _means([site.refitted for site in sites]),
        _optional_means([site.left_out for site in sites if plan.leave_one_out], len(plan.prefixes)),
        _means([site.null_in_sample for site in sites]),
        _means([site.null_new for site in sites]),
        strict=True,
    )
    return tuple(NullRow(*row) for row in columns)


def _split_means(
    sites: Sequence[SiteMeasure], known: frozenset[str], prefixes: slice
) -> tuple[list[float | None], list[float | None]]:
    """What the basis holds at these prefixes: mean over adapters that it was made from, and over the others."""
    both = []
    for wanted in (True, False):
        rows = [
            site.held[i, prefixes] for site in sites for i, name in enumerate(site.names) if (name in known) is wanted
        ]
        both.append(_optional_means([row.unsqueeze(0) for row in rows], len(sites[0].held[0, prefixes])))
    return both[0], both[1]


def _optional_means(shares: Sequence[torch.Tensor], n: int) -> list[float | None]:
    return [*_means(shares)] if shares else [None] * n


def _means(shares: Sequence[torch.Tensor]) -> list[float]:
    """Of [n, n_prefixes] shares, over all rows of all of them."""
    values: list[float] = torch.cat(list(shares)).mean(dim=0).tolist()
    return values


def mapping_of(adapter: ReadAdapter) -> Mapping[str, LowRankUpdate]:
    """All of an adapter's updates at once."""
    return {site: adapter.update(site) for site in adapter.sites}
