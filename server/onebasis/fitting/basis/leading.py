"""The leading right singular vectors of a tall or wide matrix, the same every time.

Up to 1024 on its smaller side: the Gram matrix of that side in float64, and LAPACK's eigh. Squaring loses directions
below 1e-8 of the largest singular value, 1e-16 of its energy; a basis is rounded to bfloat16 afterwards, at 4e-3.
Beyond that a full decomposition would cost more than all the rest, for a few dozen vectors of thousands: block
Krylov iterations with Rayleigh-Ritz, restarted until a round gains less than 1e-4 of the energy held. Their products
with the matrix are in float32, as the adapters are; what keeps the rows orthonormal and orders them is in float64.
"""

from typing import Final

import torch
from torch import Tensor

_DIRECT: Final = 1024
_OVERSAMPLING: Final = 8
_DEPTH: Final = 2  # products with the Gram matrix in a round
_MAX_ROUNDS: Final = 20
_GAIN: Final = 1e-4  # of the energy held: a round that gains less is the last


def leading_rows(x: Tensor, k: int, fixed: Tensor, start: Tensor | None = None) -> Tensor:
    """The k orthonormal rows [k, d] beside the fixed ones that hold most of the energy of x [m, d], best first.

    Args:
        fixed: [n, d] orthonormal rows that there are already; n may be 0.
        start: [any, d] rows to improve; what comes out holds no less than they do. One round where it needs rounds.

    Each row's largest number is positive, so that signs do not depend on the library. Beyond the rank of x, rows are
    orthonormal to all others and hold nothing.
    """
    rest = deflate(x, fixed)
    is_small = min(x.shape) <= max(_DIRECT, 4 * (k + _OVERSAMPLING))
    rows = _by_gram(rest, k) if is_small else _by_rounds(rest, k, start)
    return fix_signs(orthonormal(torch.cat([fixed, rows]))[len(fixed) :])


def fix_signs(rows: Tensor) -> Tensor:
    """Make each row's largest entry positive, so that a singular vector's sign does not depend on the library."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0)


def orthonormal(rows: Tensor) -> Tensor:
    """Rows [k, d] of the same span, orthonormal; each is a row of the given ones less those before it."""
    q: Tensor = torch.linalg.qr(rows.T).Q
    return q.T


def deflate(x: Tensor, rows: Tensor) -> Tensor:
    """x [m, d] without its part in the span of orthonormal `rows` [k, d], of which there may be none."""
    return x - (x @ rows.T) @ rows if len(rows) else x


def _by_gram(x: Tensor, k: int) -> Tensor:
    is_tall = x.shape[0] >= x.shape[1]
    _, vectors = torch.linalg.eigh(x.T @ x if is_tall else x @ x.T)
    best: Tensor = vectors[:, -k:].flip(1).T
    return best if is_tall else orthonormal(best @ x)


def _by_rounds(x: Tensor, k: int, start: Tensor | None) -> Tensor:
    narrow = x.float()
    width = k + _OVERSAMPLING
    noise = torch.randn(width, x.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    rows = orthonormal(noise if start is None else torch.cat([start, noise[: width - len(start)]]))
    seen = narrow @ rows.T.float()
    held = 0.0
    for _ in range(_MAX_ROUNDS if start is None else 1):
        space, images = rows, [seen]
        for _ in range(_DEPTH):
            fresh = (images[-1].T @ narrow).double()
            space = orthonormal(torch.cat([space, fresh]))
            images.append(narrow @ space[-width:].T.float())
        space[:width] = rows  # QR may have turned their signs
        image = torch.cat(images, dim=1)
        values, vectors = torch.linalg.eigh(image.T.double() @ image.double())
        best = vectors[:, -width:].flip(1)
        rows, seen = best.T @ space, image @ best.float()
        before, held = held, float(values[-k:].sum())
        if held - before < _GAIN * held:
            break
    return rows[:k]
