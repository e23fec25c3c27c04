"""An adapter's update of one site as a product of two thin factors; never as a dense matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onebasis.core.ids import Digest


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """dW = b a of one site: b [d_out, r], a [r, d_in], float32, every scale (alpha / r) folded in."""

    b: Tensor
    a: Tensor

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def energy(self) -> float:
        """Squared Frobenius norm of dW, in float64."""
        return inner_product(self, self)


class NamedAdapter(Protocol):
    """What files and reports say of an adapter."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> Digest: ...
    @property
    def sites(self) -> Sequence[str]: ...


class ReadAdapter(NamedAdapter, Protocol):
    """An adapter that is read site by site, so that memory need not hold all of it."""

    def update(self, site: str) -> LowRankUpdate: ...


def inner_product(left: LowRankUpdate, right: LowRankUpdate) -> float:
    """<dW_left, dW_right> = tr((B_l^T B_r) (A_r A_l^T)), in float64, without a dense matrix."""
    b = left.b.double().T @ right.b.double()
    a = left.a.double() @ right.a.double().T
    return float((b * a).sum())


def compact_svd(update: LowRankUpdate) -> tuple[Tensor, Tensor, Tensor]:
    """(left [d_out, r], sigma [r] descending, right [r, d_in]) in float64, with dW = left diag(sigma) right.

    QR of both thin factors, then the SVD of an r x r matrix; r is at most the smaller side of dW.
    """
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    left, sigma, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ left, sigma, right @ q_a.T


def balanced(left: Tensor, sigma: Tensor, right: Tensor) -> LowRankUpdate:
    """left diag(sigma) right, its singular values shared evenly between both factors."""
    root = sigma.sqrt()
    return LowRankUpdate(b=(left * root).float(), a=(root.unsqueeze(1) * right).float())


def best_of_rank(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    """The nearest update of a rank, in the Frobenius norm of dW."""
    left, sigma, right = compact_svd(update)
    return balanced(left[:, :rank], sigma[:rank], right[:rank])
