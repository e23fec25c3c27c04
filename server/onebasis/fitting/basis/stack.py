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
    left, right = _Rows(d_out), _Rows(d_in)
    sigmas = [torch.empty(0, dtype=torch.float64)]
    ranks, norms, weights = [], [], []
    for update, weight in updates:
        us, sigma, vs = compact_svd(update)
        norm = float(torch.linalg.vector_norm(sigma))
        keep = sigma > _NEGLIGIBLE * sigma[0]
        left.append(us.T[keep])
        right.append(vs[keep])
        sigmas.append(sigma[keep] * (weight / (norm or 1.0)))
        ranks.append(int(keep.sum()))
        norms.append(norm)
        weights.append(weight)
    return SiteStack(left.all, torch.cat(sigmas), right.all, ranks, tuple(norms), tuple(weights))


class _Rows:
    """Rows [n, d] float64 that come in blocks, in one piece of memory that is doubled when it is full.

    Of thousands of small pieces, joined at the end, the process would keep the memory although they are freed.
    """

    def __init__(self, d: int) -> None:
        self._space = torch.empty(64, d, dtype=torch.float64)
        self._n = 0

    @property
    def all(self) -> Tensor:
        return self._space[: self._n]

    def append(self, rows: Tensor) -> None:
        end = self._n + len(rows)
        if end > len(self._space):
            wider = self._space.new_empty(max(2 * len(self._space), end), rows.shape[1])
            wider[: self._n] = self.all
            self._space = wider
        self._space[self._n : end] = rows
        self._n = end
