"""Projection against dense least squares, and the energies against dense norms."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebasis.fitting.basis.base_only import BasisKind
from onebasis.fitting.low_rank import LowRankUpdate, best_of_rank
from onebasis.fitting.projection import project, remainder
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase
from tests.fitting.tiny import tiny_basis

SITE = "model.layers.0.self_attn.k_proj"  # 32 x 64
K = 5


def update(seed: int, d_out: int = 32, d_in: int = 64, rank: int = 3) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator))


def dense(low_rank: LowRankUpdate) -> Tensor:
    return low_rank.b.double() @ low_rank.a.double()


def with_factors(basis: Basis, factors: SiteFactors) -> Basis:
    return replace(basis, factors=dict(basis.factors) | {SITE: factors})


def inside(factors: SiteFactors, core: Tensor) -> LowRankUpdate:
    return LowRankUpdate(factors.u.T @ core, factors.v)


@pytest.fixture
def skewed(basis: Basis) -> Basis:
    """Factors that are far from orthonormal."""
    generator = torch.Generator().manual_seed(9)
    v = torch.randn(K, 64, generator=generator) * torch.tensor([3.0, 1, 1, 0.2, 1])[:, None]
    return with_factors(basis, SiteFactors(v=v, u=torch.randn(4, 32, generator=generator)))


@pytest.mark.parametrize("k", [None, 2, 4])
def test_the_core_is_the_one_of_dense_least_squares(skewed: Basis, k: int | None):
    factors = SiteFactors(v=skewed.factors[SITE].v[:k].double(), u=skewed.factors[SITE].u[:k].double())
    best = torch.linalg.pinv(factors.u.T) @ dense(update(1)) @ torch.linalg.pinv(factors.v)
    projection = project({SITE: update(1)}, skewed, k)
    torch.testing.assert_close(projection.cores[SITE], best.float())
    left_out = dense(update(1)) - factors.u.T @ best @ factors.v
    kept = 1 - float(left_out.square().sum() / dense(update(1)).square().sum())
    assert projection.energy_kept[SITE] == pytest.approx(kept, rel=1e-5)
    assert projection.energy_kept_total == pytest.approx(kept, rel=1e-5)


def test_an_update_inside_the_basis_is_kept_whole(skewed: Basis):
    core = torch.randn(4, K, generator=torch.Generator().manual_seed(3))
    projection = project({SITE: inside(skewed.factors[SITE], core)}, skewed)
    torch.testing.assert_close(projection.cores[SITE], core, rtol=1e-4, atol=1e-5)
    assert projection.energy_kept_total == pytest.approx(1, abs=1e-9)
    assert projection.energy_kept_total <= 1


def test_a_stored_basis_is_not_quite_orthonormal_and_that_is_allowed_for(base: LoadedBase, basis: Basis):
    """A factor rounded to bfloat16: V V^T is off by 1e-3, which a plain U dW V^T would carry into the core."""
    factors = basis.factors[SITE]
    gram = factors.v @ factors.v.T
    assert 1e-5 < float((gram - torch.eye(K)).abs().max()) < 1e-2
    core = torch.randn(K, K, generator=torch.Generator().manual_seed(3))
    found = project({SITE: inside(factors, core)}, basis).cores[SITE]
    torch.testing.assert_close(found, core, rtol=1e-5, atol=1e-6)


def test_energy_counts_what_the_basis_has_no_site_for(basis: Basis):
    elsewhere = update(2)
    projection = project({SITE: inside(basis.factors[SITE], torch.eye(K)), "lm_head": elsewhere}, basis)
    assert projection.energy_kept["lm_head"] == 0
    assert set(projection.cores) == {SITE}
    expected = projection.energy[SITE] / (projection.energy[SITE] + elsewhere.energy())
    assert projection.energy_kept_total == pytest.approx(expected)


def test_a_random_basis_keeps_k_over_d_squared(base: LoadedBase, tmp_path: Path):
    """The number that is printed as the baseline is the one that random bases have on average."""
    kept = []
    for seed in range(30):
        random = tiny_basis(base, tmp_path / "r.basis.safetensors", kind=BasisKind.RANDOM, k=8, seed=seed)
        projection = project({SITE: update(1)}, random)
        assert projection.energy_kept_by_random == pytest.approx((8 / 32) * (8 / 64))
        kept.append(projection.energy_kept_total)
    assert sum(kept) / len(kept) == pytest.approx((8 / 32) * (8 / 64), rel=0.25)


def test_an_update_of_nothing_is_kept_whole(basis: Basis):
    nothing = LowRankUpdate(torch.zeros(32, 2), torch.ones(2, 64))
    projection = project({SITE: nothing}, basis)
    assert projection.energy_kept_total == 1
    assert projection.energy_kept_by_random == 1
    assert not projection.cores[SITE].any()


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_the_remainder_of_a_rank_is_the_best_there_is(skewed: Basis, rank: int):
    core = project({SITE: update(1)}, skewed).cores[SITE]
    left_out = remainder(update(1), core, skewed.factors[SITE])
    whole = dense(update(1)) - (skewed.factors[SITE].u.T @ core @ skewed.factors[SITE].v).double()
    torch.testing.assert_close(dense(left_out), whole, rtol=1e-5, atol=1e-5)
    best = best_of_rank(left_out, rank)
    assert best.rank == rank
    u, s, vt = torch.linalg.svd(whole)
    torch.testing.assert_close(dense(best), u[:, :rank] * s[:rank] @ vt[:rank], rtol=1e-4, atol=1e-4)
    assert float(best.b.norm()) == pytest.approx(float(best.a.norm()), rel=1e-4), "evenly shared"
