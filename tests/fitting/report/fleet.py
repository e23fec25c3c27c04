"""Adapters in memory, for measures that need no files."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.core.ids import Digest, digest_of
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import Basis


@dataclass(frozen=True)
class MemoryAdapter:
    name: str
    updates: Mapping[str, LowRankUpdate]

    @property
    def digest(self) -> Digest:
        return digest_of(self.name.encode())

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.updates)

    def update(self, site: str) -> LowRankUpdate:
        return self.updates[site]


def random_update(d_out: int, d_in: int, rank: int, generator: torch.Generator, scale: float = 0.1) -> LowRankUpdate:
    b = scale * torch.randn(d_out, rank, generator=generator)
    return LowRankUpdate(b=b, a=torch.randn(rank, d_in, generator=generator))


def random_fleet(basis: Basis, n: int, *, rank: int = 2, seed: int = 0, scale: float = 0.1) -> list[MemoryAdapter]:
    """Every adapter changes every site; the i-th is i + 1 times as strong."""
    generator = torch.Generator().manual_seed(seed)
    return [
        MemoryAdapter(
            f"adapter-{i}",
            {
                site.name: random_update(site.d_out, site.d_in, rank, generator, scale * (i + 1))
                for site in basis.spec.sites
            },
        )
        for i in range(n)
    ]


def dense(update: LowRankUpdate) -> Tensor:
    return update.b.double() @ update.a.double()


def orthonormal_rows(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.double().T).Q.T


def share_inside(update: Tensor, u: Tensor, v: Tensor) -> float:
    """By the dense projection P = U^T U dW V^T V: 1 - |dW - P|^2 / |dW|^2."""
    inside = u.T @ (u @ update @ v.T) @ v
    return float(1 - (update - inside).square().sum() / update.square().sum())
