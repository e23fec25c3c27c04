"""Rows go where they hold energy, within the bytes or for the share that was asked for."""

from itertools import product

import pytest
import torch

from onebasis.core.errors import InvalidBasis
from onebasis.fitting.basis.sizes import ROW_STEP, EnergyTable, by_budget, by_energy


def table(out_fall: float, in_fall: float, *, n_out: int = 32, n_in: int = 24):
    """A site of one update whose core falls geometrically along both sides."""
    core = torch.outer(out_fall ** torch.arange(n_out).double(), in_fall ** torch.arange(n_in).double())
    return EnergyTable.of_cores(core.unsqueeze(0), float(core.square().sum()))


TABLES = {
    "steep": table(0.7, 0.7),
    "flat": table(0.97, 0.95),
    "tall": table(0.99, 0.6),
    "small": table(0.9, 0.9, n_out=8),
}


def n_bytes(sizes: dict[str, tuple[int, int]]) -> int:
    return sum(2 * k_out * k_in for k_out, k_in in sizes.values())


def held(sizes: dict[str, tuple[int, int]], tables=TABLES) -> float:
    return sum(float(tables[site].held[size]) for site, size in sizes.items())


def test_table_holds_what_prefixes_of_the_cores_hold() -> None:
    cores = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = EnergyTable.of_cores(cores, 100.0).held
    assert found.shape == (5, 6)
    assert found[0].count_nonzero() == found[:, 0].count_nonzero() == 0
    assert float(found[2, 3]) == pytest.approx(float(cores[:, :2, :3].square().sum()) / 100)


@pytest.mark.parametrize("budget", [512, 700, 1500, 3000, 4096, 10_000])
def test_budget_is_kept_and_spent_as_well_as_any_choice(budget: int) -> None:
    sizes = by_budget(TABLES, budget)
    assert n_bytes(sizes) <= budget
    assert all(k % ROW_STEP == 0 and k > 0 for size in sizes.values() for k in size)
    grids = [
        [(i, j) for i in range(8, t.held.shape[0], 8) for j in range(8, t.held.shape[1], 8)] for t in TABLES.values()
    ]
    every = (dict(zip(TABLES, choice, strict=True)) for choice in product(*grids))
    best = max(held(sizes) for sizes in every if n_bytes(sizes) <= budget)
    one_step = 0.03  # a hull leaves at most its last step unspent
    assert best - one_step < held(sizes) <= best + 1e-12


def test_sites_and_sides_that_hold_more_get_more() -> None:
    sizes = by_budget(TABLES, 2200)
    assert sizes["steep"] < sizes["flat"]
    assert sizes["tall"][0] > sizes["tall"][1]


def test_a_budget_for_less_than_the_smallest_cores_is_refused() -> None:
    with pytest.raises(InvalidBasis, match="the smallest cores take 512 bytes a task, the budget is 511"):
        by_budget(TABLES, 511)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_the_smallest_cores_that_hold_the_share(share: float) -> None:
    sizes = by_energy(TABLES, share)
    for site, (k_out, k_in) in sizes.items():
        shares = TABLES[site].held
        assert shares[k_out, k_in] >= share
        rows, columns = (range(8, n, 8) for n in shares.shape)
        assert not any(i * j < k_out * k_in and shares[i, j] >= share for i in rows for j in columns)


def test_a_share_that_can_not_be_had_is_refused_by_site() -> None:
    tables = {"good": table(0.5, 0.5), "bad": EnergyTable(TABLES["flat"].held * 0.5)}
    with pytest.raises(
        InvalidBasis, match=r"bad holds 0\.500 of its energy with k_out=32 and k_in=24, the most .* 0\.6 was asked"
    ):
        by_energy(tables, 0.6)
    odd = {"odd": EnergyTable(torch.nn.functional.pad(torch.full((20, 20), 0.7), (1, 0, 1, 0)))}
    odd["odd"].held[20, 20] = 1.0
    with pytest.raises(InvalidBasis, match=r"odd holds 0\.700 of its energy with k_out=16 and k_in=16, the most"):
        by_energy(odd, 0.9)


def test_all_of_the_energy_can_be_asked_for() -> None:
    """What all directions hold is 1 but for the rounding of sums."""
    held = torch.nn.functional.pad(torch.full((16, 16), 0.5), (1, 0, 1, 0)).double()
    held[16, 16] = 1 - 1e-15
    assert by_energy({"site": EnergyTable(held)}, 1.0) == {"site": (16, 16)}
