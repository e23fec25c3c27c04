"""Cores of form `vector` in plain torch, on any device: core = G_0 + sum_j c_j G_j, all sites of one size at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VectorPart:
    """Sites of one size.

    mixing: [n, R + 1, k_out * k_in] their mixing cores. numbers: [n, R] int64, which of a task's numbers each takes.
    places: [n, k_out * k_in] int64, where its core goes in a row of the arena.
    """

    mixing: Tensor
    numbers: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True)
class VectorExpansion:
    """Where a task's numbers go; made by `plan_vector_expansion`."""

    n_numbers: int
    n_core_numbers: int
    parts: tuple[VectorPart, ...]


def plan_vector_expansion(mixing: Sequence[Tensor], is_used: Sequence[bool]) -> VectorExpansion:
    """Lay out all sites of a basis. Tasks of one choice of sites share the result.

    Args:
        mixing: [R + 1, k_out, k_in] of every site, in the basis's order, on one device.
        is_used: whether the task has numbers for that site; the cores of the others are zero.
    """
    by_shape: dict[torch.Size, list[tuple[Tensor, int, int]]] = {}
    n_numbers = start = 0
    for cores, used in zip(mixing, is_used, strict=True):
        if used:
            by_shape.setdefault(cores.shape, []).append((cores, n_numbers, start))
            n_numbers += cores.shape[0] - 1
        start += cores[0].numel()
    return VectorExpansion(n_numbers, start, tuple(map(_part, by_shape.values())))


def expand_vector(numbers: Tensor, expansion: VectorExpansion) -> Tensor:
    """[n_core_numbers] float32, the full cores of a task, summed in the order of the mixing cores as on the host.

    Args:
        numbers: [n_numbers] of any float dtype, on the device of the mixing cores.
    """
    if numbers.shape != (expansion.n_numbers,):
        raise ValueError(f"numbers: needed {[expansion.n_numbers]}, found {list(numbers.shape)}")
    cores = torch.zeros(expansion.n_core_numbers, dtype=torch.float32, device=numbers.device)
    for part in expansion.parts:
        own = numbers[part.numbers].float()
        mixed = part.mixing[:, 0].float()
        for j in range(own.shape[1]):
            mixed = mixed + own[:, j, None] * part.mixing[:, j + 1].float()
        cores[part.places] = mixed
    return cores


def _part(sites: Sequence[tuple[Tensor, int, int]]) -> VectorPart:
    """From (mixing cores, first number, first place in a row) of each site."""
    mixing = torch.stack([cores.flatten(1) for cores, _, _ in sites])
    _, n_rows, size = mixing.shape
    first_numbers = torch.tensor([[first] for _, first, _ in sites], device=mixing.device)
    first_places = torch.tensor([[first] for _, _, first in sites], device=mixing.device)
    return VectorPart(
        mixing,
        first_numbers + torch.arange(n_rows - 1, device=mixing.device),
        first_places + torch.arange(size, device=mixing.device),
    )
