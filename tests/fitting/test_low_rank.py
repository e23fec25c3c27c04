"""Low-rank algebra against dense matrices."""

import pytest
import torch

from onebasis.fitting.low_rank import LowRankUpdate, compact_svd, inner_product


def update(seed: int, d_out: int = 7, d_in: int = 11, rank: int = 3) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator))


def dense(low_rank: LowRankUpdate) -> torch.Tensor:
    return low_rank.b.double() @ low_rank.a.double()


def test_energy_and_inner_product_are_those_of_the_dense_matrices():
    left, right = update(1), update(2, rank=5)
    assert inner_product(left, right) == pytest.approx(float((dense(left) * dense(right)).sum()))
    assert left.energy() == pytest.approx(float(dense(left).square().sum()))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_compact_svd_is_the_dense_one(rank: int):
    low_rank = update(3, rank=rank)
    left, sigma, right = compact_svd(low_rank)
    torch.testing.assert_close(left @ torch.diag(sigma) @ right, dense(low_rank))
    torch.testing.assert_close(sigma, torch.linalg.svdvals(dense(low_rank))[:rank])
    torch.testing.assert_close(left.T @ left, torch.eye(rank, dtype=torch.float64))


def test_factors_in_another_gauge_are_the_same_update():
    low_rank = update(4)
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    other = LowRankUpdate(low_rank.b @ mix, torch.linalg.solve(mix, low_rank.a))
    assert inner_product(low_rank, other) == pytest.approx(low_rank.energy(), rel=1e-4)
    torch.testing.assert_close(compact_svd(other)[1], compact_svd(low_rank)[1], rtol=1e-4, atol=1e-5)
