"""How many rows each site gets: the same number everywhere, enough for a share of energy, or a budget of bytes."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from onebasis.core.errors import InvalidBasis

ROW_STEP: Final = 8
"""Sizes that are chosen here are multiples of this: 16 bytes of bfloat16, as a GPU wants them."""

_BYTES: Final = 2  # of a core's number, in float16
_ROUNDING: Final = 1e-9  # of a share: what all directions hold together is 1 but for this


@dataclass(frozen=True, slots=True)
class FixedSize:
    """The same rows at every site."""

    k_out: int
    k_in: int


@dataclass(frozen=True, slots=True)
class EnergyShare:
    """At each site the smallest core that holds this share of its energy, of at most `k_max` rows a side."""

    share: float
    k_max: int


@dataclass(frozen=True, slots=True)
class ByteBudget:
    """The cores of one task take at most this many bytes in float16, spent where they hold most energy."""

    n_bytes: int
    k_max: int


RowSize = tuple[int, int]
"""(k_out, k_in) of one site."""


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """held [k_out + 1, k_in + 1]: share of a site's energy inside of the first so many rows of either side."""

    held: Tensor

    @staticmethod
    def of_cores(cores: Tensor, total: float) -> "EnergyTable":
        """From [n_updates, k_out, k_in] cores of weighted updates, whose whole energy is `total`."""
        squares = cores.square().sum(0).cumsum(0).cumsum(1) / (total or 1.0)
        return EnergyTable(torch.nn.functional.pad(squares, (1, 0, 1, 0)))

    def choices(self) -> list[tuple[int, float, RowSize]]:
        """(count of numbers, share held, size) of every size to choose from; by count, then the best first."""
        rows, columns = (range(ROW_STEP, n, ROW_STEP) for n in self.held.shape)
        choices = [(i * j, float(self.held[i, j]), (i, j)) for i in rows for j in columns]
        return sorted(choices, key=lambda choice: (choice[0], -choice[1], choice[2]))


def by_energy(tables: Mapping[str, EnergyTable], share: float) -> dict[str, RowSize]:
    """The fewest numbers of each site that hold this share.

    Raises:
        InvalidBasis: a site can't hold it with the rows that its table has.
    """
    chosen: dict[str, RowSize] = {}
    for site, table in tables.items():
        choices = table.choices()
        size = next((size for _, held, size in choices if held >= share - _ROUNDING), None)
        if size is None:
            _, held, (k_out, k_in) = choices[-1]
            raise InvalidBasis(
                f"{site} holds {held:.3f} of its energy with k_out={k_out} and k_in={k_in}, the most to choose from, "
                f"{share:g} was asked for; raise --k-max, lower --energy, or give --k"
            )
        chosen[site] = size
    return chosen


def by_budget(tables: Mapping[str, EnergyTable], n_bytes: int) -> dict[str, RowSize]:
    """Sizes within the budget that hold the most energy, summed over sites, as far as their upper hulls know.

    Every site starts at its smallest size; the step with the most energy per byte comes next, as with a Lagrange
    multiplier that falls, until the next one does not fit any more; then those that still fit.

    Raises:
        InvalidBasis: not even the smallest sizes fit.
    """
    hulls = {site: _upper_hull(table.choices()) for site, table in tables.items()}
    spent = sum(hull[0][0] for hull in hulls.values()) * _BYTES
    if spent > n_bytes:
        raise InvalidBasis(f"the smallest cores take {spent} bytes a task, the budget is {n_bytes}; raise --budget")
    chosen = {site: hull[0][2] for site, hull in hulls.items()}
    steps = [_step(site, hull, 1) for site, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, site, at = heapq.heappop(steps)
        hull = hulls[site]
        cost = (hull[at][0] - hull[at - 1][0]) * _BYTES
        if spent + cost > n_bytes:
            continue  # this site is done: its later steps would cost more
        spent += cost
        chosen[site] = hull[at][2]
        if at + 1 < len(hull):
            heapq.heappush(steps, _step(site, hull, at + 1))
    return chosen


def _step(site: str, hull: list[tuple[int, float, RowSize]], at: int) -> tuple[float, str, int]:
    """Ordered by energy per number, most first; equal ones by site, so that the choice is always the same."""
    return -(hull[at][1] - hull[at - 1][1]) / (hull[at][0] - hull[at - 1][0]), site, at


def _upper_hull(choices: list[tuple[int, float, RowSize]]) -> list[tuple[int, float, RowSize]]:
    """Those choices between which energy per number only falls."""
    hull: list[tuple[int, float, RowSize]] = []
    for choice in choices:
        if hull and choice[1] <= hull[-1][1]:
            continue  # no more energy for no fewer numbers
        while len(hull) > 1 and _slope(hull[-2], choice) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(left: tuple[int, float, RowSize], right: tuple[int, float, RowSize]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
