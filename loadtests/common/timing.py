"""Sides that are compared take turns, so that whatever else the machine does meets all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from time import perf_counter, sleep
from typing import Final

_SETTLE_S: Final = 0.03
"""OpenMP's threads of the side before spin for up to some ten milliseconds, on cores that the next one needs."""


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Spread of n measurements; half of them lie between q1 and q3."""

    n: int
    q1: float
    median: float
    q3: float


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile, p in 0..100, by linear interpolation between the two closest ranks.

    Of n sorted values it lies at rank (n - 1) * p / 100, counted from 0: numpy's default, "type 7". Below
    100 values p99 therefore lies between the two largest.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    low = floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Raises ValueError: no values."""
    return Quartiles(len(values), *(percentile(values, p) for p in (25, 50, 75)))


def interleave(
    sides: Mapping[str, Callable[[], object]], *, n_rounds: int, least_s: float = 0.0
) -> dict[str, list[float]]:
    """Seconds that one call of each side took, in every round.

    Each round calls all sides, beginning with the next one. Before the first, every side is called once to warm up.
    What the sides return is dropped.

    Args:
        least_s: a side that is faster is called several times in a row, at least this long; the mean of them counts.
    """
    n_calls = {name: _n_calls(call, least_s) for name, call in sides.items()}
    names = list(sides)
    times_s: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(n_rounds):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            sleep(_SETTLE_S)
            times_s[name].append(_mean_s(sides[name], n_calls[name]))
    return times_s


def _n_calls(call: Callable[[], object], least_s: float) -> int:
    call()
    return max(1, round(least_s / max(_mean_s(call, 1), 1e-9))) if least_s else 1


def _mean_s(call: Callable[[], object], n_calls: int) -> float:
    started_s = perf_counter()
    for _ in range(n_calls):
        call()
    return (perf_counter() - started_s) / n_calls
