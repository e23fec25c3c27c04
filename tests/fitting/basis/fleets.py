"""Fleets in memory, random or with a planted subspace."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.core.ids import Digest, digest_of
from onebasis.fitting.basis.hosvd import SiteRows
from onebasis.fitting.basis.stack import SiteStack, stack_updates
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites


@dataclass(frozen=True)
class MemoryAdapter:
    """An adapter whose digest follows from its name."""

    name: str
    updates: dict[str, LowRankUpdate]

    @property
    def digest(self) -> Digest:
        return digest_of(self.name.encode())

    @property
    def sites(self) -> Sequence[str]:
        return tuple(self.updates)

    def update(self, site: str) -> LowRankUpdate:
        return self.updates[site]


def random_update(generator: torch.Generator, d_out: int, d_in: int, rank: int = 3) -> LowRankUpdate:
    """Singular values that fall, so that directions have an order."""
    fall = 0.6 ** torch.arange(rank)
    b = torch.randn(d_out, rank, generator=generator) * fall
    return LowRankUpdate(b, torch.randn(rank, d_in, generator=generator))


def random_fleet(base: LoadedBase, n: int, *, rank: int = 3, seed: int = 0) -> list[MemoryAdapter]:
    """Adapters of every site, each with a start of its own."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: layer.weight.shape for name, layer in linear_sites(base.model).items()}
    return [
        MemoryAdapter(f"adapter-{seed}-{i}", {site: random_update(generator, *s, rank) for site, s in shapes.items()})
        for i in range(n)
    ]


def random_stack(n: int, d_out: int, d_in: int, *, rank: int = 3, seed: int = 0) -> SiteStack:
    generator = torch.Generator().manual_seed(seed)
    return stacked([random_update(generator, d_out, d_in, rank) for _ in range(n)])


def stacked(updates: Sequence[LowRankUpdate], weights: Sequence[float] | None = None) -> SiteStack:
    d_out, d_in = updates[0].b.shape[0], updates[0].a.shape[1]
    pairs = zip(updates, weights or [1.0] * len(updates), strict=True)
    return stack_updates(pairs, d_out=d_out, d_in=d_in)


def nothing(stack: SiteStack) -> SiteRows:
    """No fixed rows."""
    return SiteRows.none(stack.left.shape[1], stack.right.shape[1])


def dense(update: LowRankUpdate) -> Tensor:
    return update.b.double() @ update.a.double()


def projector(rows: Tensor) -> Tensor:
    return rows.T @ rows
