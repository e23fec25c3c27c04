"""Measure one site: what the basis, bases made anew, and the null hold of every adapter's update there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from onebasis.fitting.basis.hosvd import SiteRows
from onebasis.fitting.basis.leading import orthonormal
from onebasis.fitting.basis.stack import SiteStack, stack_updates
from onebasis.fitting.low_rank import LowRankUpdate, compact_svd
from onebasis.fitting.report.refit import (
    compact,
    cumulative_spectrum,
    held_by_prefixes,
    random_like,
    refit,
    without,
)
from onebasis.fitting.report.subspaces import SiteAngle, site_angle
from onebasis.model.factors import SiteFactors

RESIDUAL_RANKS: Final = (1, 2, 4)
OWN_RANKS: Final = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What to measure: prefixes of the basis, points of the spectrum, how to make bases anew."""

    prefixes: tuple[int, ...]
    spectrum_rows: tuple[int, ...]
    leave_one_out: bool
    n_sweeps: int


@dataclass(frozen=True, slots=True)
class SiteMeasure:
    """Shares of each update's energy; tensors are [n_updates, n_prefixes] float64, in the order of `names`.

    left_out: [n_updates, 0] when it was not measured.
    with_residual, own: [n_updates, ranks] what the basis and a residual of so many ranks keep; what the update's own
    largest singular triplets keep. largest_ranks: of each update.
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    ranks: tuple[int, ...]
    held: Tensor
    refitted: Tensor
    left_out: Tensor
    null_in_sample: Tensor
    null_new: Tensor
    with_residual: Tensor
    own: Tensor
    angles_out: tuple[SiteAngle, ...]
    angles_in: tuple[SiteAngle, ...]
    spectrum_out: tuple[float, ...]
    spectrum_in: tuple[float, ...]
    null_spectrum_out: tuple[float, ...]
    null_spectrum_in: tuple[float, ...]


def measure_site(
    updates: Mapping[str, LowRankUpdate], factors: SiteFactors, plan: WeightPlan, generator: torch.Generator
) -> SiteMeasure:
    """All of one site's numbers.

    Args:
        updates: by adapter; none is zero.
        factors: of the basis.
        generator: of the null.
    """
    rows = orthonormal_rows(factors)
    (d_out, d_in), (k_out, k_in) = (rows.u.shape[1], rows.v.shape[1]), (len(rows.u), len(rows.v))
    stack = stack_updates(((update, 1.0) for update in updates.values()), d_out=d_out, d_in=d_in)
    small, _ = compact(stack)
    everybody = refit(small, k_out, k_in, n_sweeps=plan.n_sweeps)
    null = random_like(stack, generator)
    null_rows = _refit_whole(null, k_out, k_in, plan.n_sweeps)
    return SiteMeasure(
        names=tuple(updates),
        norms=stack.norms,
        ranks=tuple(stack.ranks),
        held=held_by_prefixes(stack, rows, plan.prefixes),
        refitted=held_by_prefixes(small, everybody, plan.prefixes),
        left_out=_left_out(small, k_out, k_in, plan),
        null_in_sample=held_by_prefixes(null, null_rows, plan.prefixes),
        null_new=held_by_prefixes(random_like(stack, generator), null_rows, plan.prefixes),
        with_residual=_with_residual(stack, rows),
        own=_own(stack),
        angles_out=tuple(site_angle(block, rows.u) for block in torch.split(stack.left, stack.ranks)),
        angles_in=tuple(site_angle(block, rows.v) for block in torch.split(stack.right, stack.ranks)),
        spectrum_out=cumulative_spectrum(stack.left, stack.sigma, plan.spectrum_rows),
        spectrum_in=cumulative_spectrum(stack.right, stack.sigma, plan.spectrum_rows),
        null_spectrum_out=cumulative_spectrum(null.left, null.sigma, plan.spectrum_rows),
        null_spectrum_in=cumulative_spectrum(null.right, null.sigma, plan.spectrum_rows),
    )


def orthonormal_rows(factors: SiteFactors) -> SiteRows:
    """Rows of the same spans, prefix by prefix, orthonormal in float64: stored ones are so up to their rounding."""
    return SiteRows(orthonormal(factors.u.double()), orthonormal(factors.v.double()))


def left_out_rows(
    updates: Mapping[str, LowRankUpdate], name: str, factors: SiteFactors, *, n_sweeps: int
) -> SiteRows | None:
    """Rows made from all updates but one, as many as the basis has; None where there is no other."""
    others = [(update, 1.0) for other, update in updates.items() if other != name]
    if not others:
        return None
    stack = stack_updates(others, d_out=factors.u.shape[1], d_in=factors.v.shape[1])
    return _refit_whole(stack, len(factors.u), len(factors.v), n_sweeps)


def _refit_whole(stack: SiteStack, k_out: int, k_in: int, n_sweeps: int) -> SiteRows:
    small, span = compact(stack)
    rows = refit(small, k_out, k_in, n_sweeps=n_sweeps)
    return SiteRows(rows.u @ span.u, rows.v @ span.v)


def _left_out(stack: SiteStack, k_out: int, k_in: int, plan: WeightPlan) -> Tensor:
    """Of each update, by rows made from the others; nothing is held where there is no other."""
    n = len(stack.ranks)
    shares = torch.zeros(n, len(plan.prefixes) if plan.leave_one_out else 0, dtype=torch.float64)
    if not plan.leave_one_out:
        return shares
    for i in range(n if n > 1 else 0):
        rows = refit(without(stack, i), k_out, k_in, n_sweeps=plan.n_sweeps)
        shares[i] = held_by_prefixes(stack, rows, plan.prefixes)[i]
    return shares


def _with_residual(stack: SiteStack, rows: SiteRows) -> Tensor:
    """The remainder is -U^T S V beside the update itself, so its singular values need no dense matrix."""
    cores = stack.cores(rows.u, rows.v)
    kept = torch.zeros(len(stack.ranks), len(RESIDUAL_RANKS), dtype=torch.float64)
    for i, (left, sigma, right) in enumerate(_blocks(stack)):
        b = torch.cat([left.T * sigma, -(rows.u.T @ cores[i])], dim=1)
        rest = compact_svd(LowRankUpdate(b, torch.cat([right, rows.v])))[1].square()
        lost = torch.stack([rest[rank:].sum() for rank in RESIDUAL_RANKS])
        kept[i] = 1 - lost / sigma.square().sum()
    return kept


def _own(stack: SiteStack) -> Tensor:
    """Singular values are descending within a block."""
    shares = [
        [float(sigma[:rank].square().sum() / sigma.square().sum()) for rank in OWN_RANKS]
        for _, sigma, _ in _blocks(stack)
    ]
    return torch.tensor(shares, dtype=torch.float64)


def _blocks(stack: SiteStack) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
    parts = (torch.split(tensor, stack.ranks) for tensor in (stack.left, stack.sigma, stack.right))
    return list(zip(*parts, strict=True))
