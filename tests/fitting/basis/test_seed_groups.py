"""Adapters of one random start are found, others are not taken for such."""

import torch

from onebasis.fitting.basis.seed_groups import one_of_each, seed_groups
from onebasis.fitting.low_rank import LowRankUpdate
from tests.fitting.basis.fleets import MemoryAdapter

D_OUT, D_IN, RANK = 12, 50, 4


def trained(name: str, start: int, *, moved: float = 0.4, rank: int = RANK, sites=("x", "y")) -> MemoryAdapter:
    """An adapter that training has moved from the A of this seed by so much of its length."""
    first = torch.Generator().manual_seed(start)
    own = torch.Generator().manual_seed(sum(name.encode()))
    a = {
        site: torch.randn(rank, D_IN, generator=first) + moved * torch.randn(rank, D_IN, generator=own)
        for site in sites
    }
    return MemoryAdapter(name, {s: LowRankUpdate(torch.randn(D_OUT, rank, generator=own), a[s] * 3) for s in sites})


def test_groups_are_found_however_far_training_went() -> None:
    fleet = [trained("a1", 1), trained("b1", 2), trained("a2", 1), trained("c", 3), trained("b2", 2), trained("a3", 1)]
    groups = seed_groups(fleet)
    assert groups == [["a1", "a2", "a3"], ["b1", "b2"]]
    assert [adapter.name for adapter in one_of_each(fleet, groups)] == ["a1", "b1", "c"]


def test_own_starts_are_no_group() -> None:
    assert seed_groups([trained(f"t{i}", i) for i in range(20)]) == []
    assert seed_groups([]) == []


def test_other_ranks_and_sites_are_compared_where_they_can_be() -> None:
    wide = [trained("w1", 1, rank=6), trained("w2", 1, rank=6)]
    apart = MemoryAdapter("z", {"z": trained("z", 1).updates["x"]})
    assert seed_groups([trained("n1", 1), *wide, apart]) == [["w1", "w2"]]
