"""The parts in which an extended basis is applied, so that its older tasks keep every bit of their outputs.

A library's matrix product may add in another order when a matrix gets more rows. So the rows that a basis began
with are multiplied by themselves, as they were before; rows that were appended come in products of their own, which
add exact zeros for a task that does not use them. A basis that extends none is one piece.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onebasis.coefficients.lineage import ancestors
from onebasis.model.factors import Basis, SiteFactors

_Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of U and of V at some sites, and the part of the cores [n_rows, k_out, k_in] between them, views."""

    factors: Mapping[str, SiteFactors]
    cores: Mapping[str, Tensor]


def pieces_of(basis: Basis, cores: Mapping[str, Tensor]) -> list[Piece]:
    """What sums up to the whole update, oldest rows first.

    Raises:
        InvalidBasis: its record of what it extends is malformed.
    """
    whole = {name: (site.u.shape[0], site.v.shape[0]) for name, site in basis.factors.items()}
    generations: list[_Sizes] = [*(ancestor.sizes for ancestor in reversed(ancestors(basis.spec))), whole]
    pieces: list[Piece] = []
    before: _Sizes = {}
    for sizes in generations:
        old_by_new: dict[str, tuple[slice, slice]] = {}
        new_by_all: dict[str, tuple[slice, slice]] = {}
        for name in (name for name in basis.factors if name in sizes):
            (n_out, n_in), (k_out, k_in) = before.get(name, (0, 0)), sizes[name]
            old_by_new[name] = slice(0, n_out), slice(n_in, k_in)
            new_by_all[name] = slice(n_out, k_out), slice(0, k_in)
        pieces += [_piece(basis, cores, parts) for parts in (old_by_new, new_by_all)]
        before = sizes
    return [piece for piece in pieces if piece.factors]


def _piece(basis: Basis, cores: Mapping[str, Tensor], parts: Mapping[str, tuple[slice, slice]]) -> Piece:
    kept = {name: part for name, part in parts.items() if all(side.start < side.stop for side in part)}
    return Piece(
        {n: SiteFactors(v=basis.factors[n].v[ins], u=basis.factors[n].u[outs]) for n, (outs, ins) in kept.items()},
        {n: cores[n][:, outs, ins] for n, (outs, ins) in kept.items()},
    )
