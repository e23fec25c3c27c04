"""All updates of a fleet at one site, in a form that does not depend on how an adapter split dW into factors."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.fitting.low_rank import LowRankUpdate, compact_svd

_NEGLIGIBLE = 1e-7  # of the largest singular value: adapters are float32 at best


@dataclass(frozen=True, slots=True)
class SiteStack:
    """Update t is `left_t.T diag(sigma_t) right_t`, its compact SVD; the blocks of all t one below the other.

    left: [n_rows, d_out] float64, orthonormal rows within a block. right: [n_rows, d_in] likewise.
    sigma: [n_rows], singular values times the update's weight.
    ranks: rows of each block. norms: each update's own Frobenius norm. weights: what it has instead.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor
    ranks: list[int]
    norms: tuple[float, ...]
    weights: tuple[float, ...]

    def energy(self) -> float:
        """Sum of the squared norms of the weighted updates."""
        return float(self.sigma.square().sum())

    def inside(self, u: Tensor, v: Tensor) -> "SiteStack":
        """The same updates in the coordinates of rows u and v: k_out x k_in, blocks not orthonormal."""
        return SiteStack(self.left @ u.T, self.sigma, self.right @ v.T, self.ranks, self.norms, self.weights)

    def cores(self, u: Tensor, v: Tensor) -> Tensor:
        """[n_updates, k_out, k_in] u dW_t v^T of the weighted updates."""
        outs, ins = torch.split(self.left @ u.T, self.ranks), torch.split(self.right @ v.T, self.ranks)
        sigmas = torch.split(self.sigma, self.ranks)
        if not self.ranks:
            return torch.empty(0, len(u), len(v), dtype=torch.float64)
        return torch.stack([out.T @ (s.unsqueeze(1) * into) for out, s, into in zip(outs, sigmas, ins, strict=True)])


def stack_updates(updates: Iterable[tuple[LowRankUpdate, float]], *, d_out: int, d_in: int) -> SiteStack:
    """Stack (update, weight) pairs. With weight 1 an update counts as much as any other: its norm is divided out.

    An update that is zero takes no rows and has the norm 0. There may be nothing else.
    """
    lefts, rights = [torch.empty(0, d_out, dtype=torch.float64)], [torch.empty(0, d_in, dtype=torch.float64)]
    sigmas = [torch.empty(0, dtype=torch.float64)]
    ranks, norms, weights = [], [], []
    for update, weight in updates:
        left, sigma, right = compact_svd(update)
        norm = float(torch.linalg.vector_norm(sigma))
        keep = sigma > _NEGLIGIBLE * sigma[0]
        lefts.append(left.T[keep])
        rights.append(right[keep])
        sigmas.append(sigma[keep] * (weight / (norm or 1.0)))
        ranks.append(int(keep.sum()))
        norms.append(norm)
        weights.append(weight)
    left, lefts = torch.cat(lefts), []  # the pieces go before the other side is joined
    return SiteStack(left, torch.cat(sigmas), torch.cat(rights), ranks, tuple(norms), tuple(weights))
