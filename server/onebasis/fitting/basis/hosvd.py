"""The two factors of a site from its fleet: HOSVD of the stacked dW, then alternation, never with a dense dW.

For orthonormal U and V the best cores are S_t = U dW_t V^T, and what they hold is the sum of their squares. HOSVD
takes U from all dW_t side by side and V from all one below the other; the alternation then takes each as the best
for the other (JD-Full of "Compress then Serve", arXiv 2407.00066; HOOI in the tensor literature).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from onebasis.fitting.basis.leading import leading_rows
from onebasis.fitting.basis.sizes import ROW_STEP
from onebasis.fitting.basis.stack import SiteStack

_GAIN: Final = 1e-5  # of the energy held: a sweep that gains less is the last


@dataclass(frozen=True, slots=True)
class SiteRows:
    """u [k_out, d_out] and v [k_in, d_in] of one site, orthonormal, in float64."""

    u: Tensor
    v: Tensor

    @staticmethod
    def none(d_out: int, d_in: int) -> "SiteRows":
        return SiteRows(torch.empty(0, d_out, dtype=torch.float64), torch.empty(0, d_in, dtype=torch.float64))

    def then(self, other: "SiteRows") -> "SiteRows":
        """These rows, the other's below them."""
        return SiteRows(torch.cat([self.u, other.u]), torch.cat([self.v, other.v]))

    def prefix(self, k_out: int, k_in: int) -> "SiteRows":
        return SiteRows(self.u[:k_out], self.v[:k_in])


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Energy that each row of the HOSVD holds on its own side, best first."""

    out_rows: tuple[float, ...]
    in_rows: tuple[float, ...]


def hosvd(stack: SiteStack, k_out: int, k_in: int, fixed: SiteRows) -> tuple[SiteRows, Spectrum]:
    """New rows beside the `fixed` ones, orthogonal to them, by energy."""
    weight = stack.sigma.unsqueeze(1)
    u, of_u = _rows_of(weight * stack.left, k_out, fixed.u)
    v, of_v = _rows_of(weight * stack.right, k_in, fixed.v)
    return SiteRows(u, v), Spectrum(of_u, of_v)


def refine(stack: SiteStack, rows: SiteRows, fixed: SiteRows, n_sweeps: int) -> tuple[SiteRows, list[float]]:
    """Alternate: U best for V, V best for U. The energy held never falls; `fixed` rows stay as they are.

    Returns:
        The rows, each side by energy, and the energy held by them and the fixed ones at the start and after each sweep.
    """
    u, v = rows.u, rows.v
    held = [captured(stack, fixed.then(rows))]
    for _ in range(n_sweeps):
        u = leading_rows(_seen(stack, stack.right, fixed.v, v, stack.left), len(u), fixed.u, start=u)
        v = leading_rows(_seen(stack, stack.left, fixed.u, u, stack.right), len(v), fixed.v, start=v)
        held.append(captured(stack, fixed.then(SiteRows(u, v))))
        if held[-1] - held[-2] < _GAIN * held[-1]:
            break
    return SiteRows(u, v), held


def nest(stack: SiteStack, rows: SiteRows, fixed: SiteRows, n_sweeps: int) -> SiteRows:
    """Turn the rows inside of their spaces so that prefixes are good bases too: the first half, its half and so on.

    The whole holds what it held. A prefix is refined by itself, inside of the next longer one.
    """
    k_out, k_in = len(rows.u), len(rows.v)
    half_out, half_in = (-(-k // (2 * ROW_STEP)) * ROW_STEP for k in (k_out, k_in))
    if half_out >= k_out and half_in >= k_in:
        return rows
    half_out, half_in = min(half_out, k_out), min(half_in, k_in)
    whole = fixed.then(rows)
    inside = stack.inside(whole.u, whole.v)
    kept = SiteRows(
        *(torch.eye(n + k, dtype=torch.float64)[:n] for n, k in ((len(fixed.u), k_out), (len(fixed.v), k_in)))
    )
    first, _ = refine(inside, hosvd(inside, half_out, half_in, kept)[0], kept, n_sweeps)
    beside = kept.then(first)
    weight = stack.sigma.unsqueeze(1)
    rest = SiteRows(
        leading_rows(weight * inside.left, k_out - half_out, beside.u),
        leading_rows(weight * inside.right, k_in - half_in, beside.v),
    )
    first, rest = (SiteRows(part.u @ whole.u, part.v @ whole.v) for part in (first, rest))
    return nest(stack, first, fixed, n_sweeps).then(rest)


def captured(stack: SiteStack, rows: SiteRows) -> float:
    """Energy of the weighted updates inside of the rows' spaces."""
    return float(stack.cores(rows.u, rows.v).square().sum())


def _rows_of(x: Tensor, k: int, fixed: Tensor) -> tuple[Tensor, tuple[float, ...]]:
    rows = leading_rows(x, k, fixed)
    return rows, tuple((x @ rows.T).square().sum(0).tolist())


def _seen(stack: SiteStack, near: Tensor, fixed: Tensor, rows: Tensor, far: Tensor) -> Tensor:
    """[n, d] rows of the far side, whose Gram matrix is that of all updates as seen through rows of the near side."""
    through = (near @ torch.cat([fixed, rows]).T) * stack.sigma.unsqueeze(1)
    n_rows = [min(seen.shape) for seen in torch.split(through, stack.ranks)]  # as few as an update has
    found = far.new_empty(sum(n_rows), far.shape[1])  # filled in place: the pieces and their sum are too much at once
    pieces = (
        torch.split(tensor, sizes) for tensor, sizes in ((through, stack.ranks), (far, stack.ranks), (found, n_rows))
    )
    for seen, block, place in zip(*pieces, strict=True):
        mixed = seen.T if seen.shape[1] < seen.shape[0] else torch.linalg.qr(seen.T).R
        torch.mm(mixed, block, out=place)
    return found
