"""Bases of one site made anew: from all adapters, from all but one, from random ones of the same strengths."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from onebasis.fitting.basis.hosvd import SiteRows, hosvd, refine
from onebasis.fitting.basis.leading import orthonormal
from onebasis.fitting.basis.stack import SiteStack

_NOTHING: Final = 1e-13  # of the energy of all updates: what is less is rounding


def refit(stack: SiteStack, k_out: int, k_in: int, *, n_sweeps: int) -> SiteRows:
    """HOSVD and at most `n_sweeps` alternations; as many rows as the updates have directions, at most k.

    Rows that would hold nothing of them are left out: they could hold something of an update that is not among them.
    """
    n = len(stack.sigma)
    k_out, k_in = min(k_out, n, stack.left.shape[1]), min(k_in, n, stack.right.shape[1])
    none = SiteRows.none(stack.left.shape[1], stack.right.shape[1])
    start, spectrum = hosvd(stack, k_out, k_in, none)
    least = _NOTHING * stack.energy()
    n_out, n_in = (sum(energy > least for energy in side) for side in (spectrum.out_rows, spectrum.in_rows))
    return refine(stack, start.prefix(n_out, n_in), none, n_sweeps)[0]


def without(stack: SiteStack, position: int) -> SiteStack:
    """The stack of the other updates."""
    kept = torch.ones(len(stack.sigma), dtype=torch.bool)
    first = sum(stack.ranks[:position])
    kept[first : first + stack.ranks[position]] = False
    return SiteStack(
        stack.left[kept],
        stack.sigma[kept],
        stack.right[kept],
        stack.ranks[:position] + stack.ranks[position + 1 :],
        stack.norms[:position] + stack.norms[position + 1 :],
        stack.weights[:position] + stack.weights[position + 1 :],
    )


def compact(stack: SiteStack) -> tuple[SiteStack, SiteRows]:
    """The same updates in the coordinates of rows that span them all: smaller, and nothing is lost.

    Returns:
        The stack in these coordinates, and the rows; `rows.u.T @ u` takes coordinates back.
    """
    rows = SiteRows(_span(stack.left), _span(stack.right))
    return stack.inside(rows.u, rows.v), rows


def random_like(stack: SiteStack, generator: torch.Generator) -> SiteStack:
    """Updates of the same singular values between random directions: what shared structure is measured against."""
    blocks = [(_orthonormal(r, stack.left, generator), _orthonormal(r, stack.right, generator)) for r in stack.ranks]
    left, right = (torch.cat([block[side] for block in blocks]) for side in (0, 1))
    return SiteStack(left, stack.sigma, right, stack.ranks, stack.norms, stack.weights)


def held_by_prefixes(stack: SiteStack, rows: SiteRows, prefixes: Sequence[int]) -> Tensor:
    """[n_updates, n_prefixes] share of each update's energy inside of the first k rows of either side."""
    cores = stack.cores(rows.u, rows.v)
    table = cores.square().cumsum(1).cumsum(2)
    energies = torch.stack([block.square().sum() for block in torch.split(stack.sigma, stack.ranks)])
    picked = [table[:, min(k, len(rows.u)) - 1, min(k, len(rows.v)) - 1] for k in prefixes]
    return torch.stack(picked, dim=1) / energies.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(1)


def cumulative_spectrum(rows: Tensor, sigma: Tensor, counts: Sequence[int]) -> tuple[float, ...]:
    """Share of energy inside of the n best directions of one side, for each n. rows: [n_rows, d], scaled by sigma."""
    weighted = rows * sigma.unsqueeze(1)
    gram = weighted @ weighted.T if weighted.shape[0] < weighted.shape[1] else weighted.T @ weighted
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    shares = values.cumsum(0) / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return tuple(float(shares[min(n, len(shares)) - 1]) for n in counts)


def _span(block: Tensor) -> Tensor:
    """Orthonormal rows whose span has every row of `block` [n, d]."""
    n, dimension = block.shape
    return torch.eye(dimension, dtype=block.dtype) if n >= dimension else orthonormal(block)


def _orthonormal(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return orthonormal(torch.randn(n, like.shape[1], generator=generator, dtype=like.dtype))
