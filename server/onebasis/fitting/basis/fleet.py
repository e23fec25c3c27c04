"""Build a basis from a fleet of adapters, one site at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import torch

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.basis.base_rows import base_rows
from onebasis.fitting.basis.extend import OldBasis, check_rows
from onebasis.fitting.basis.fleet_report import SiteOutcome, fleet_report
from onebasis.fitting.basis.hosvd import SiteRows, Spectrum, hosvd, nest, refine
from onebasis.fitting.basis.seed_groups import seed_groups
from onebasis.fitting.basis.sizes import (
    ROW_STEP,
    ByteBudget,
    EnergyShare,
    EnergyTable,
    FixedSize,
    RowSize,
    by_budget,
    by_energy,
)
from onebasis.fitting.basis.stack import SiteStack, stack_updates
from onebasis.fitting.basis.writing import write_basis
from onebasis.fitting.low_rank import ReadAdapter
from onebasis.model.factors import SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites


@dataclass(frozen=True, slots=True)
class FleetRecipe:
    """How a basis is made from a fleet.

    size: rows of the finished basis.
    n_base_rows: how many of them, the last ones of each factor, come from the base weight (kind mixed).
    n_sweeps: at most so many alternations after the HOSVD.
    weights: by adapter's name, relative to the others; 1 where it says nothing.
    """

    size: FixedSize | EnergyShare | ByteBudget
    n_base_rows: int = 0
    n_sweeps: int = 8
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_visits(self) -> int:
        """How often each site is read: once, and once before that when sizes have to be chosen first."""
        return 1 if isinstance(self.size, FixedSize) else 2


def build_fleet_basis(
    base: LoadedBase,
    adapters: Sequence[ReadAdapter],
    recipe: FleetRecipe,
    *,
    path: Path,
    old: OldBasis | None,
    progress: Callable[[int, int], None],
) -> BasisSpec:
    """Write a basis of the directions in which these adapters change the base's weights.

    Memory holds all adapters' updates of one site in float64, about three times over, and the basis. The result is
    the same, bit by bit, whatever order the adapters come in.

    Args:
        old: a basis whose rows stay, and come first.
        progress: called with (visits of sites that are done, visits in all).

    Raises:
        InvalidBasis: sizes that the fleet or the model can't fill, an adapter twice, or nothing to build from.
        OSError: a file can't be read or written.
    """
    ordered = _in_order(adapters)
    builder = _FleetBuilder(base, ordered, recipe, old)
    n_visits = recipe.n_visits * len(builder.sites)
    visits = count(1)

    def visited() -> None:
        progress(next(visits), n_visits)

    sizes = builder.choose_sizes(visited)
    factors: dict[str, SiteFactors] = {}
    outcomes: dict[str, SiteOutcome] = {}
    for site in builder.sites:
        factors[site], outcomes[site] = builder.build_site(site, sizes[site])
        visited()
    lineage = () if old is None else old.lineage()
    report = fleet_report(ordered, seed_groups(ordered), recipe.weights, recipe.n_sweeps, outcomes, factors, lineage)
    kind = "mixed" if recipe.n_base_rows else "fleet"
    mixing = {} if old is None else old.extended_mixing(sizes)
    if old is not None and mixing:
        report["mixing"] = old.spec.report.get("mixing", {})
    spec = write_basis(path, base, factors, kind=kind, report=report | {"kind": kind}, mixing=mixing)
    check_rows(path, spec)
    return spec


class _FleetBuilder:
    """Builds site by site; keeps what was found when sizes were chosen, so that it need not be found again."""

    def __init__(
        self, base: LoadedBase, adapters: Sequence[ReadAdapter], recipe: FleetRecipe, old: OldBasis | None
    ) -> None:
        self._layers = linear_sites(base.model)
        self._adapters = adapters
        self._recipe = recipe
        self._old = old
        self._starts: dict[str, tuple[SiteRows, Spectrum]] = {}
        wanted = {site for adapter in adapters for site in adapter.sites} | set(() if old is None else old.factors)
        self.sites = [site for site in self._layers if site in wanted]
        self._adapted = {site for adapter in adapters for site in adapter.sites}

    def choose_sizes(self, visited: Callable[[], None]) -> dict[str, RowSize]:
        """(k_out, k_in) of the finished basis at each site."""
        size = self._recipe.size
        if isinstance(size, FixedSize):
            return dict.fromkeys(self.sites, (size.k_out, size.k_in))
        if self._old is not None:
            raise InvalidBasis("an extension has one size at all sites; give it as --k, or as --k-in and --k-out")
        tables = {}
        for site in self.sites:
            tables[site] = self._survey(site, size.k_max)
            visited()
        return by_energy(tables, size.share) if isinstance(size, EnergyShare) else by_budget(tables, size.n_bytes)

    def build_site(self, site: str, size: RowSize) -> tuple[SiteFactors, SiteOutcome]:
        """A site's factors, old rows first, and what there is to tell of them.

        An extension grows at every site alike: where no adapter is, by rows from the base weight.
        """
        stack, fixed = self._read(site), self._fixed(site)
        grown = size[0] - len(fixed.u), size[1] - len(fixed.v)
        n_base = (self._recipe.n_base_rows,) * 2 if site in self._adapted else grown
        k_out, k_in = grown[0] - n_base[0], grown[1] - n_base[1]
        self._check_size(site, (k_out, k_in), stack, fixed)
        if site not in self._starts:
            self._starts[site] = hosvd(stack, k_out, k_in, fixed)
        start, spectrum = self._starts.pop(site)
        rows, held = refine(stack, start.prefix(k_out, k_in), fixed, self._recipe.n_sweeps)
        rows = nest(stack, rows, fixed, self._recipe.n_sweeps)
        if max(n_base) > 0:
            rows = rows.then(base_rows(self._layers[site].weight, *n_base, fixed.then(rows)))
        outcome = SiteOutcome.of(stack, fixed.then(rows), spectrum, held, n_base)
        if self._old is None:
            return SiteFactors(v=rows.v.to(torch.bfloat16), u=rows.u.to(torch.bfloat16)), outcome
        return self._old.extended(site, rows), outcome

    def _survey(self, site: str, k_max: int) -> EnergyTable:
        """What a site would hold with so many rows, up to the most that make sense."""
        stack, fixed = self._read(site), self._fixed(site)
        k_out, k_in = (min(k_max, most) for most in self._most(site, stack, fixed))
        if min(k_out, k_in) < ROW_STEP:
            raise InvalidBasis(f"{site}: {k_out} rows can be had, sizes are chosen from {ROW_STEP} up; give --k")
        self._starts[site] = hosvd(stack, k_out, k_in, fixed)
        start, _ = self._starts[site]
        return EnergyTable.of_cores(stack.cores(start.u, start.v), stack.energy())

    def _check_size(self, site: str, new: RowSize, stack: SiteStack, fixed: SiteRows) -> None:
        sides = (("k_out", len(fixed.u)), ("k_in", len(fixed.v)))
        for (name, n_fixed), k, most in zip(sides, new, self._most(site, stack, fixed), strict=True):
            least = 0 if n_fixed else 1
            if not least <= k <= most:
                kept = f" beside {n_fixed} that stay" if n_fixed else ""
                raise InvalidBasis(
                    f"{site}: {name} asks for {k} rows from the fleet{kept}, allowed are {least} to {most} "
                    f"(its adapters have {len(stack.sigma)} directions there)"
                )

    def _most(self, site: str, stack: SiteStack, fixed: SiteRows) -> RowSize:
        """Rows from the fleet that a site has room and directions for."""
        d_out, d_in = self._layers[site].weight.shape
        taken = self._recipe.n_base_rows
        n = len(stack.sigma)
        return min(d_out - len(fixed.u) - taken, n), min(d_in - len(fixed.v) - taken, n)

    def _read(self, site: str) -> SiteStack:
        weights = self._recipe.weights
        d_out, d_in = self._layers[site].weight.shape
        return stack_updates(
            ((a.update(site), weights.get(a.name, 1.0)) for a in self._adapters if site in a.sites),
            d_out=d_out,
            d_in=d_in,
        )

    def _fixed(self, site: str) -> SiteRows:
        rows = None if self._old is None else self._old.rows(site)
        d_out, d_in = self._layers[site].weight.shape
        return SiteRows.none(d_out, d_in) if rows is None else rows


def _in_order(adapters: Sequence[ReadAdapter]) -> list[ReadAdapter]:
    """By digest, which no renaming changes."""
    ordered = sorted(adapters, key=lambda adapter: adapter.digest)
    if not ordered:
        raise InvalidBasis("there is no adapter to build from")
    for left, right in pairwise(ordered):
        if left.digest == right.digest:
            raise InvalidBasis(f"adapters {left.name!r} and {right.name!r} are the same file; give it once")
    names = [adapter.name for adapter in ordered]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidBasis(f"two adapters are called {twice[0]!r}; rename a folder")
    return ordered
