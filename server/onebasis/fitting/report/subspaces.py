"""Angles between an adapter's directions and a basis's rows, against those of random directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Final

import torch
from torch import Tensor

from onebasis.fitting.report.results import Angles

_N_DRAWS: Final = 100
_NEARER: Final = 0.05


@dataclass(frozen=True, slots=True)
class SiteAngle:
    """The smallest principal angle at one site; the null's median, and what 5 % of the null are under. In degrees."""

    angle: float
    null_median: float
    null_bound: float


def site_angle(directions: Tensor, rows: Tensor) -> SiteAngle:
    """Between the spans of orthonormal `directions` [r, d] and orthonormal `rows` [k, d], float64."""
    angle = _smallest_angle(directions @ rows.T)
    drawn = _null_angles(directions.shape[0], rows.shape[0], rows.shape[1])
    return SiteAngle(angle, median(drawn), drawn[round(_NEARER * (len(drawn) + 1)) - 1])


def summary(angles: Sequence[SiteAngle]) -> Angles:
    """Over one adapter's sites, at least one."""
    return Angles(
        median=median(found.angle for found in angles),
        null_median=median(found.null_median for found in angles),
        share_beyond_null=sum(found.angle < found.null_bound for found in angles) / len(angles),
    )


def _smallest_angle(cosines: Tensor) -> float:
    """In degrees, from the inner products of two orthonormal sets."""
    largest = float(torch.linalg.matrix_norm(cosines, ord=2))
    return float(torch.rad2deg(torch.acos(torch.tensor(min(1.0, largest), dtype=torch.float64))))


@lru_cache(maxsize=256)
def _null_angles(n_directions: int, n_rows: int, dimension: int) -> tuple[float, ...]:
    """Ascending; which k rows they are measured against does not matter for random directions, so the first ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(_N_DRAWS):
        random = torch.randn(dimension, n_directions, generator=generator, dtype=torch.float64)
        drawn.append(_smallest_angle(torch.linalg.qr(random).Q[:n_rows]))
    return tuple(sorted(drawn))
