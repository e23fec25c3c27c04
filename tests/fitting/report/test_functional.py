"""Every way to answer does what it is called, and is scored as what it is."""

import pytest
import torch

from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind
from onebasis.fitting.low_rank import LowRankUpdate, best_of_rank
from onebasis.fitting.report.functional import Subject, n_ways, score_subject
from onebasis.fitting.report.results import TaskScores, WayScore
from onebasis.fitting.report.ways import (
    added,
    factor_bytes,
    joined,
    largest_triplets,
    mean_update,
    null_of,
    projected,
    random_rows,
    remainders,
    rows_of,
    scaled,
)
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from tests.fitting.report.fleet import MemoryAdapter, dense, orthonormal_rows, random_fleet
from tests.fitting.tiny import token_example

ITEMS = [token_example([7 + i, 8, 30 + i], [20, 21 + i, 1]) for i in range(5)]


def close(found: LowRankUpdate, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(dense(found), wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what is beside the layers


def test_projection_and_remainder_are_the_dense_ones(basis: Basis) -> None:
    updates = random_fleet(basis, 1, rank=3)[0].updates
    inside = projected(updates, rows_of(basis))
    rest = remainders(updates, inside, 2)
    for site, factors in basis.factors.items():
        u, v, whole = orthonormal_rows(factors.u), orthonormal_rows(factors.v), dense(updates[site])
        wanted = u.T @ (u @ whole @ v.T) @ v
        close(inside[site], wanted)
        left, sigma, right = torch.linalg.svd(whole - wanted)
        close(rest[site], left[:, :2] * sigma[:2] @ right[:2])


def test_sites_outside_of_the_basis_are_left_to_the_residual(basis: Basis) -> None:
    updates = dict(random_fleet(basis, 1)[0].updates)
    rows = {site: found for site, found in rows_of(basis).items() if site != basis.spec.sites[0].name}
    inside = projected(updates, rows)
    assert len(inside) == 13
    both = joined(inside, remainders(updates, inside, 9))
    for site, update in updates.items():
        close(both[site], dense(update))


def test_sums_and_means(basis: Basis) -> None:
    first, second, third = random_fleet(basis, 3)
    site, other = basis.spec.sites[0].name, basis.spec.sites[1].name
    close(
        added([first.updates[site], scaled(second.updates[site], -2)]),
        dense(first.update(site)) - 2 * dense(second.update(site)),
    )
    less = MemoryAdapter("less", {other: third.updates[other]})
    means = mean_update([first, second, less], [site, other])
    close(means[site], (dense(first.update(site)) + dense(second.update(site))) / 3)
    close(means[other], sum(dense(adapter.update(other)) for adapter in (first, second, third)) / 3)


def test_the_null_has_the_strengths_of_the_adapter_and_the_seeds_directions(basis: Basis) -> None:
    updates = random_fleet(basis, 1)[0].updates
    null, again, other = null_of(updates, 0), null_of(updates, 0), null_of(updates, 1)
    for site, update in updates.items():
        strengths = torch.linalg.svdvals(dense(update))
        torch.testing.assert_close(torch.linalg.svdvals(dense(null[site])), strengths, rtol=1e-4, atol=1e-4)
        assert torch.equal(null[site].b, again[site].b)
        assert abs(float((dense(null[site]) * dense(update)).sum())) < 0.6 * float(strengths.square().sum())
        assert not torch.equal(null[site].b, other[site].b)


def test_random_rows_are_orthonormal_and_of_the_basiss_sizes(basis: Basis) -> None:
    rows = random_rows(basis, 0)
    for site in basis.spec.sites:
        u, v = rows[site.name].u, rows[site.name].v
        assert (u.shape, v.shape) == ((site.k_out, site.d_out), (site.k_in, site.d_in))
        torch.testing.assert_close(u @ u.T, torch.eye(site.k_out, dtype=torch.float64))
        torch.testing.assert_close(v @ v.T, torch.eye(site.k_in, dtype=torch.float64))


def test_own_triplets_are_the_best_that_fit_into_the_bytes(basis: Basis) -> None:
    updates = random_fleet(basis, 1, rank=3)[0].updates
    whole = factor_bytes(updates)
    assert factor_bytes(largest_triplets(updates, whole)) == whole
    half = largest_triplets(updates, whole // 2)
    assert whole // 2 - 2 * (96 + 64) <= factor_bytes(half) <= whole // 2
    kept = [float(torch.linalg.svdvals(dense(half[s]))[0]) if s in half else 0.0 for s in updates]
    assert max(kept) == pytest.approx(max(float(torch.linalg.svdvals(dense(u))[0]) for u in updates.values()))
    for site, update in half.items():
        close(best_of_rank(updates[site], update.rank), dense(update))


# ---------------------------------------------------------------- scores


def scores(
    base: LoadedBase, basis: Basis, fleet: list[MemoryAdapter], subject: Subject, *, loo: bool = True
) -> TaskScores:
    called: list[None] = []
    found = score_subject(
        base, basis, fleet, subject, leave_one_out=loo, n_sweeps=0, seed=0, on_way=lambda: called.append(None)
    )
    assert len(called) == len(found.ways) == n_ways(subject, fleet, leave_one_out=loo)
    return found


def by_name(found: TaskScores) -> dict[str, WayScore]:
    return {way.way: way for way in found.ways}


def test_every_way_of_an_adapter_that_the_basis_holds_whole(base: LoadedBase, basis: Basis) -> None:
    """The import of such an adapter is the adapter, also beside a mean that is held; null and random basis are not."""
    rows = rows_of(basis)
    fleet = [MemoryAdapter(one.name, projected(one.updates, rows)) for one in random_fleet(basis, 3, scale=0.2)]
    found = by_name(scores(base, basis, fleet, Subject("adapter-0", ITEMS, fleet[0], {})))
    original = found["original adapter"]
    assert (original.kl, original.agreement) == (pytest.approx(0, abs=1e-6), 1.0)
    for same in ("import", "import + residual r=2", "import + residual r=4", "mean + import of the difference"):
        assert found[same].kl == pytest.approx(0, abs=1e-5), same
        assert found[same].in_sample is False
    for unlike in (
        "bare model",
        "null of the same strengths",
        "import, random basis of the same size",
        "mean of the other adapters",
        "own SVD at the bytes of import",
        "import, basis made without it",
    ):
        assert found[unlike].kl > 0.05, unlike
    assert found["import"].size_bytes == found["import, basis made without it"].size_bytes / 16 * 25
    assert found["import"].size_bytes >= found["own SVD at the bytes of import"].size_bytes > 0
    assert found["bare model"].size_bytes is found["mean of the other adapters"].size_bytes is None
    assert len(found) == 11


def test_coefficient_files_are_scored_as_they_are(base: LoadedBase, basis: Basis) -> None:
    adapter = random_fleet(basis, 1, scale=0.2)[0]
    rows = basis.factors
    inside = projected(adapter.updates, rows_of(basis))
    cores = [
        torch.linalg.lstsq(rows[site].u.double().T, dense(inside[site])).solution
        @ torch.linalg.pinv(rows[site].v.double())
        for site in rows
    ]
    values = torch.cat([core.flatten() for core in cores]).float().numpy()
    data = write_coefficients(
        values, form="core", basis=basis.spec.digest, base_fingerprint=basis.spec.base_fingerprint, task="t"
    )
    bound = bind(parse_coefficients(data), basis.spec)
    found = by_name(scores(base, basis, [adapter], Subject("t", ITEMS, adapter, {"mine": bound})))
    mine = found["coefficients mine"]
    assert mine.size_bytes == values.nbytes
    assert mine.kl == pytest.approx(found["import"].kl, rel=1e-3)
    assert mine.loss == pytest.approx(found["import"].loss, rel=1e-3)
    assert "mean of the other adapters" not in found, "there are no others"
    alone = by_name(scores(base, basis, [], Subject("t", ITEMS, None, {"mine": bound})))
    assert list(alone) == ["bare model", "coefficients mine"]
    assert alone["coefficients mine"].kl is alone["coefficients mine"].agreement is None
    assert alone["coefficients mine"].loss == pytest.approx(mine.loss)
    assert alone["bare model"].loss != pytest.approx(mine.loss)


def test_leaving_out_is_optional(base: LoadedBase, basis: Basis) -> None:
    fleet = random_fleet(basis, 2)
    found = scores(base, basis, fleet, Subject("adapter-0", ITEMS, fleet[0], {}), loo=False)
    assert "import, basis made without it" not in by_name(found)
