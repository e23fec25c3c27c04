"""Adapters that began from one random A: they agree in V for that reason alone, which looks like shared structure."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from onebasis.fitting.low_rank import LowRankUpdate

SAME_SEED: Final = 0.5
"""Cosine of two A above which they are taken to have begun as one; independent ones are within 0.05 of 0."""


class Adapter(Protocol):
    """What is read of each adapter."""

    @property
    def name(self) -> str: ...
    @property
    def sites(self) -> Sequence[str]: ...
    def update(self, site: str) -> LowRankUpdate: ...


Member = TypeVar("Member", bound=Adapter)


def seed_groups(adapters: Sequence[Adapter]) -> list[list[str]]:
    """Names of adapters that share their random start, two or more a group, found at one site that most of them have.

    A is compared number by number as the files have it: training moves A little from where it began.
    """
    counts: dict[str, int] = {}
    for adapter in adapters:
        for site in adapter.sites:
            counts[site] = counts.get(site, 0) + 1
    if not counts:
        return []
    site = max(counts, key=lambda name: counts[name])
    by_shape: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for adapter in adapters:
        if site in adapter.sites:
            a = adapter.update(site).a
            by_shape.setdefault(tuple(a.shape), {})[adapter.name] = a.flatten()
    return [group for same_shape in by_shape.values() for group in _groups(same_shape)]


def one_of_each(adapters: Sequence[Member], groups: Sequence[Sequence[str]]) -> list[Member]:
    """The adapters without all but the first of each group."""
    left_out = {name for group in groups for name in group[1:]}
    return [adapter for adapter in adapters if adapter.name not in left_out]


def _groups(flat: Mapping[str, Tensor]) -> list[list[str]]:
    """Connected components of "cosine above SAME_SEED"."""
    names = list(flat)
    rows = torch.nn.functional.normalize(torch.stack(list(flat.values())), dim=1)
    near = rows @ rows.T > SAME_SEED
    groups: list[list[str]] = []
    left = set(range(len(names)))
    while left:
        group, frontier = set(), {min(left)}
        while frontier:
            group |= frontier
            frontier = set(near[sorted(frontier)].any(0).nonzero().flatten().tolist()) - group
        left -= group
        if len(group) > 1:
            groups.append([names[i] for i in sorted(group)])
    return groups
