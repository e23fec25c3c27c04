"""A task's private low-rank update beside the shared basis: numbers only, as its file holds them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """dW = B A at one site: y += B (A x).

    a: [r, d_in], b: [d_out, r]; float16, float32, or uint16 holding bfloat16.
    """

    a: NDArray[np.generic]
    b: NDArray[np.generic]

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def n_numbers(self) -> int:
        return self.a.size + self.b.size

    @property
    def size_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True)
class ResidualLimits:
    """What a server allows one task. rank: at each site, 0 for no residual at all. n_numbers: at all sites together."""

    rank: int
    n_numbers: int


Residuals = Mapping[str, Residual]
"""By site name; empty for a task that the basis holds whole."""


def count_numbers(residuals: Residuals) -> int:
    """Numbers of all factors at all sites."""
    return sum(residual.n_numbers for residual in residuals.values())


def size_bytes(residuals: Residuals) -> int:
    """Of all factors at all sites, in the width of their file."""
    return sum(residual.size_bytes for residual in residuals.values())
