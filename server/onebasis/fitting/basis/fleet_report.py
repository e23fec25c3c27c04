"""What a basis made from a fleet says of itself. All energies are of the adapters it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onebasis import __version__
from onebasis.coefficients.lineage import EXTENDS, Ancestor
from onebasis.fitting.basis.hosvd import SiteRows, Spectrum
from onebasis.fitting.basis.stack import SiteStack
from onebasis.fitting.basis.writing import deviation_from_orthonormal
from onebasis.fitting.low_rank import NamedAdapter
from onebasis.model.factors import SiteFactors


@dataclass(frozen=True, slots=True)
class SiteOutcome:
    """What became of one site, before rounding.

    share_held: of the energy of the weighted updates, the share inside of the rows. n_directions: sum of the ranks.
    spectrum: share of energy that each new row of the HOSVD holds on its own side, whatever the other side holds.
    gain: share of the energy that alternation won over the HOSVD. n_sweeps: alternations until it won nothing.
    base_rows: rows (of U, of V) that come from the base weight.
    held, energies: by update, unweighted: the energy inside of the rows, and all of it.
    """

    share_held: float
    n_directions: int
    spectrum: Spectrum
    gain: float
    n_sweeps: int
    base_rows: tuple[int, int]
    held: tuple[float, ...]
    energies: tuple[float, ...]

    @staticmethod
    def of(
        stack: SiteStack, rows: SiteRows, spectrum: Spectrum, steps: Sequence[float], base_rows: tuple[int, int]
    ) -> "SiteOutcome":
        total = stack.energy() or 1.0
        weighted = stack.cores(rows.u, rows.v).square().sum((1, 2)).tolist()
        own = [norm**2 for norm in stack.norms]
        return SiteOutcome(
            share_held=sum(weighted) / total,
            n_directions=len(stack.sigma),
            spectrum=Spectrum(*(tuple(e / total for e in side) for side in (spectrum.out_rows, spectrum.in_rows))),
            gain=(steps[-1] - steps[0]) / total,
            n_sweeps=len(steps) - 1,
            base_rows=base_rows,
            held=tuple(e * n / w**2 for e, n, w in zip(weighted, own, stack.weights, strict=True)),
            energies=tuple(own),
        )


def fleet_report(
    adapters: Sequence[NamedAdapter],
    groups: Sequence[Sequence[str]],
    weights: Mapping[str, float],
    max_sweeps: int,
    outcomes: Mapping[str, SiteOutcome],
    factors: Mapping[str, SiteFactors],
    lineage: Sequence[Ancestor],
) -> dict[str, Any]:
    """The report's JSON; numbers are rounded, it is read by people and compared by bytes."""
    n = len(adapters)
    deviation = max(deviation_from_orthonormal(rows) for site in factors.values() for rows in (site.u, site.v))
    return {
        "tool": f"onebasis {__version__}",
        "adapters": [
            {"name": a.name, "digest": a.digest, "weight": weights.get(a.name, 1.0), "energy_held_in_sample": share}
            for a, share in zip(adapters, _shares(adapters, outcomes), strict=True)
        ],
        "seed_groups": [list(group) for group in groups],
        "weighting": "unit Frobenius norm at each site, times the adapter's weight",
        "max_sweeps": max_sweeps,
        "k_rule_of_thumb": {
            "half_the_adapters_plus_7": n // 2 + 7,
            "exact": max(o.n_directions for o in outcomes.values()),
        },
        "orthonormality_deviation_after_rounding": round(deviation, 5),
        "core_numbers": sum(len(site.u) * len(site.v) for site in factors.values()),
        "energy_held_in_sample": _mean([outcome.share_held for outcome in outcomes.values() if outcome.n_directions]),
        "sites": {name: _site(outcome) for name, outcome in outcomes.items()},
        EXTENDS: [ancestor.as_report() for ancestor in lineage],
    }


def _shares(adapters: Sequence[NamedAdapter], outcomes: Mapping[str, SiteOutcome]) -> list[float]:
    """Of each adapter's energy over all sites, unweighted, the share that the basis holds."""
    held, energies = [0.0] * len(adapters), [0.0] * len(adapters)
    for site, outcome in outcomes.items():
        members = [i for i, adapter in enumerate(adapters) if site in adapter.sites]
        for i, inside, energy in zip(members, outcome.held, outcome.energies, strict=True):
            held[i] += inside
            energies[i] += energy
    return [round(inside / (energy or 1.0), 4) for inside, energy in zip(held, energies, strict=True)]


def _site(outcome: SiteOutcome) -> dict[str, Any]:
    return {
        "energy_held_in_sample": round(outcome.share_held, 4),
        "won_by_alternation": round(outcome.gain, 4),
        "sweeps": outcome.n_sweeps,
        "directions": outcome.n_directions,
        "base_rows": list(outcome.base_rows),
        "spectrum_out": [round(share, 4) for share in outcome.spectrum.out_rows],
        "spectrum_in": [round(share, 4) for share in outcome.spectrum.in_rows],
    }


def _mean(numbers: Sequence[float]) -> float:
    return round(sum(numbers) / len(numbers), 4) if numbers else 0.0
