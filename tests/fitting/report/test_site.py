"""Every share of one site equals the same taken from dense matrices."""

import math

import pytest
import torch

from onebasis.fitting.basis.stack import stack_updates
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.report.refit import random_like
from onebasis.fitting.report.site import OWN_RANKS, RESIDUAL_RANKS, SiteMeasure, WeightPlan, measure_site
from onebasis.fitting.report.subspaces import site_angle, summary
from onebasis.model.factors import SiteFactors
from tests.fitting.report.fleet import dense, orthonormal_rows, random_update, share_inside

D_OUT, D_IN, K = 30, 24, 6
PLAN = WeightPlan(prefixes=(2, K), spectrum_rows=(1, 3, 12), leave_one_out=True, n_sweeps=0)


def fleet(n: int = 4, rank: int = 3) -> dict[str, LowRankUpdate]:
    generator = torch.Generator().manual_seed(0)
    return {f"t{i}": random_update(D_OUT, D_IN, rank, generator, scale=i + 1) for i in range(n)}


def random_factors(seed: int = 5) -> SiteFactors:
    """Orthonormal up to bfloat16, as in a file."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (orthonormal_rows(torch.randn(K, d, generator=generator)) for d in (D_OUT, D_IN))
    return SiteFactors(v=v.bfloat16().float(), u=u.bfloat16().float())


def measured(updates: dict[str, LowRankUpdate], factors: SiteFactors | None = None) -> SiteMeasure:
    return measure_site(updates, factors or random_factors(), PLAN, torch.Generator().manual_seed(1))


def dense_hosvd(updates: list[LowRankUpdate], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading singular vectors of all unit-norm updates side by side, and one below the other."""
    units = [dense(update) / dense(update).norm() for update in updates]
    u = torch.linalg.svd(torch.cat(units, dim=1)).U[:, :k].T
    v = torch.linalg.svd(torch.cat(units, dim=0)).Vh[:k]
    return u, v


def test_what_the_basis_holds_is_the_dense_projection_prefix_by_prefix() -> None:
    updates, factors = fleet(), random_factors()
    found = measured(updates, factors)
    for j, k in enumerate(PLAN.prefixes):
        u, v = orthonormal_rows(factors.u[:k]), orthonormal_rows(factors.v[:k])
        wanted = [share_inside(dense(update), u, v) for update in updates.values()]
        assert found.held[:, j].tolist() == pytest.approx(wanted, abs=1e-9)
    assert found.norms == pytest.approx([float(dense(update).norm()) for update in updates.values()])


def test_bases_made_anew_are_dense_hosvds_of_all_and_of_all_but_one() -> None:
    updates = fleet()
    found = measured(updates)
    u, v = dense_hosvd(list(updates.values()), K)
    for i, (name, update) in enumerate(updates.items()):
        others = dense_hosvd([other for key, other in updates.items() if key != name], K)
        for j, k in enumerate(PLAN.prefixes):
            assert float(found.refitted[i, j]) == pytest.approx(share_inside(dense(update), u[:k], v[:k]), abs=1e-9)
            wanted = share_inside(dense(update), others[0][:k], others[1][:k])
            assert float(found.left_out[i, j]) == pytest.approx(wanted, abs=1e-9)


def test_leaving_one_out_tells_what_is_shared_from_what_is_not() -> None:
    """Two copies hold each other; an update that is orthogonal to all others is not held at all."""
    u, v = torch.eye(D_OUT), torch.eye(D_IN)
    shared = LowRankUpdate(b=u[:, :2].clone(), a=v[:2].clone())
    alone = LowRankUpdate(b=u[:, 10:12].clone(), a=v[10:12].clone())
    found = measured({"a": shared, "copy": shared, "alone": alone})
    assert found.left_out[:, -1].tolist() == pytest.approx([1, 1, 0], abs=1e-9)
    assert found.refitted[:, -1].tolist() == pytest.approx([1, 1, 1], abs=1e-9)


def test_rows_that_the_others_do_not_need_are_not_given_to_the_one_left_out() -> None:
    """Two updates of one span of rank 3 make three rows a side, although a basis has room for six."""
    one, alone = list(fleet(2).values())
    generator = torch.Generator().manual_seed(2)
    turned = LowRankUpdate(b=one.b @ torch.randn(3, 3, generator=generator), a=one.a)
    wanted = share_inside(dense(alone), orthonormal_rows(one.b.T), orthonormal_rows(one.a))
    found = measured({"one": one, "turned": turned, "alone": alone})
    assert float(found.left_out[2, -1]) == pytest.approx(wanted, abs=1e-6)


def test_a_residual_keeps_the_best_of_the_dense_remainder() -> None:
    updates, factors = fleet(), random_factors()
    found = measured(updates, factors)
    u, v = orthonormal_rows(factors.u), orthonormal_rows(factors.v)
    for i, update in enumerate(updates.values()):
        whole = dense(update)
        rest = torch.linalg.svdvals(whole - u.T @ (u @ whole @ v.T) @ v).square()
        for j, rank in enumerate(RESIDUAL_RANKS):
            wanted = 1 - float(rest[rank:].sum() / whole.square().sum())
            assert float(found.with_residual[i, j]) == pytest.approx(wanted, abs=1e-6)
        squares = torch.linalg.svdvals(whole).square()
        for j, rank in enumerate(OWN_RANKS):
            assert float(found.own[i, j]) == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=1e-6)


def test_the_spectrum_is_that_of_the_dense_updates_side_by_side() -> None:
    updates = fleet()
    found = measured(updates)
    units = [dense(update) / dense(update).norm() for update in updates.values()]
    for shares, stacked in ((found.spectrum_out, torch.cat(units, 1)), (found.spectrum_in, torch.cat(units, 0))):
        squares = torch.linalg.svdvals(stacked).square()
        wanted = [float(squares[:n].sum() / squares.sum()) for n in PLAN.spectrum_rows]
        assert shares == pytest.approx(wanted, abs=1e-9)


def test_the_null_has_the_strengths_and_nothing_else() -> None:
    stack = stack_updates(((update, 1.0) for update in fleet().values()), d_out=D_OUT, d_in=D_IN)
    null = random_like(stack, torch.Generator().manual_seed(0))
    assert torch.equal(null.sigma, stack.sigma)
    for block in (*torch.split(null.left, null.ranks), *torch.split(null.right, null.ranks)):
        torch.testing.assert_close(block @ block.T, torch.eye(3, dtype=torch.float64))
    assert float((null.left @ stack.left.T).abs().max()) < 0.9


def test_a_fleet_that_shares_nothing_looks_like_the_null_and_one_that_does_not() -> None:
    """In-sample shares alone can't tell: the random fleet's are far above 0 too."""
    generator = torch.Generator().manual_seed(3)
    factors = SiteFactors(v=torch.eye(K, 200), u=torch.eye(K, 200))
    alone = {f"t{i}": random_update(200, 200, 3, generator) for i in range(6)}
    base = random_update(200, 200, 3, generator)
    alike = {f"t{i}": LowRankUpdate(base.b + 0.02 * torch.randn(200, 3, generator=generator), base.a) for i in range(6)}
    of_alone, of_alike = measured(alone, factors), measured(alike, factors)

    def mean(shares: torch.Tensor) -> float:
        return float(shares[:, -1].mean())

    assert mean(of_alone.refitted) == pytest.approx(mean(of_alone.null_in_sample), abs=0.05)
    assert mean(of_alone.refitted) > 0.2
    assert mean(of_alone.left_out) == pytest.approx(mean(of_alone.null_new), abs=0.02)
    assert mean(of_alike.left_out) > 0.8 > 0.1 > mean(of_alike.null_new)


def test_angles() -> None:
    rows = torch.eye(K, 40, dtype=torch.float64)
    half = math.sqrt(0.5)
    tilted = torch.zeros(1, 40, dtype=torch.float64)
    tilted[0, 0], tilted[0, 39] = half, half
    inside, outside = torch.eye(2, 40, dtype=torch.float64), torch.eye(40, dtype=torch.float64)[-2:]
    assert site_angle(inside, rows).angle == pytest.approx(0, abs=1e-4)
    assert site_angle(outside, rows).angle == pytest.approx(90, abs=1e-4)
    assert site_angle(tilted, rows).angle == pytest.approx(45, abs=1e-4)


def test_random_directions_are_beyond_the_null_one_time_in_twenty() -> None:
    generator = torch.Generator().manual_seed(7)
    rows = torch.eye(K, 60, dtype=torch.float64)
    drawn = [torch.linalg.qr(torch.randn(60, 3, generator=generator, dtype=torch.float64)).Q.T for _ in range(400)]
    found = summary([site_angle(directions, rows) for directions in drawn])
    assert found.share_beyond_null == pytest.approx(0.05, abs=0.03)
    assert found.median == pytest.approx(found.null_median, abs=2)
    near = summary([site_angle(torch.eye(2, 60, dtype=torch.float64), rows)])
    assert (near.share_beyond_null, near.median) == (1.0, pytest.approx(0, abs=1e-4))
