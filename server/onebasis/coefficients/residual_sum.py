"""Weighted sums of residuals, exact: w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2], so that ranks add up. No torch."""

from collections.abc import Sequence

import numpy as np

from onebasis.coefficients.numbers import widen
from onebasis.core.errors import InvalidParameter
from onebasis.core.request import TaskCoefficients
from onebasis.core.residual import Residual, ResidualLimits, Residuals, count_numbers

_REMEDY = "name fewer tasks with residuals"


def sum_residuals(
    summands: Sequence[tuple[TaskCoefficients, float]], limits: ResidualLimits | None
) -> dict[str, Residual]:
    """The sum's residual by site, in float32; empty if no summand has one.

    Args:
        summands: coefficients and their weights.
        limits: what the sum may have; None for anything.

    Raises:
        InvalidParameter: for `blend`; the sum is over the limits, or too large for float32.
    """
    total = {}
    for site in sorted({site for coefficients, _ in summands for site in coefficients.residual}):
        parts = [(coefficients.residual[site], w) for coefficients, w in summands if site in coefficients.residual]
        total[site] = _concatenated(parts)
        rank = total[site].rank
        if limits is not None and rank > limits.rank:
            raise InvalidParameter(
                "blend",
                f"the ranks of the tasks' residuals add up to {rank} at {site}, this server allows {limits.rank}; "
                f"{_REMEDY}, or raise --max-residual-rank",
            )
        if not np.isfinite(total[site].b).all():
            raise InvalidParameter("blend", "the weighted sum is too large for float32; lower the weights")
    _check_size(total, limits)
    return total


def _concatenated(parts: Sequence[tuple[Residual, float]]) -> Residual:
    with np.errstate(over="ignore"):
        scaled = [(weight * widen(residual.b).astype(np.float64)).astype(np.float32) for residual, weight in parts]
    return Residual(np.concatenate([widen(residual.a) for residual, _ in parts]), np.concatenate(scaled, axis=1))


def _check_size(total: Residuals, limits: ResidualLimits | None) -> None:
    n_numbers = count_numbers(total)
    if limits is not None and n_numbers > limits.n_numbers:
        raise InvalidParameter(
            "blend",
            f"the tasks' residuals have {n_numbers} numbers together, this server allows {limits.n_numbers}; "
            f"{_REMEDY}, or raise --residual-mib",
        )
