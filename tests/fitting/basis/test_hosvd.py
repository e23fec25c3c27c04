"""The factors of one site are those of the dense dW, whatever the adapters' gauge, and refinement only gains."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from onebasis.fitting.basis import leading
from onebasis.fitting.basis.hosvd import SiteRows, captured, hosvd, nest, refine
from onebasis.fitting.low_rank import LowRankUpdate
from tests.fitting.basis.fleets import dense, nothing, projector, random_stack, random_update, stacked

D_OUT, D_IN = 30, 22


@pytest.fixture
def updates() -> list[LowRankUpdate]:
    generator = torch.Generator().manual_seed(3)
    return [random_update(generator, D_OUT, D_IN, rank) for rank in (3, 2, 4, 3, 1)]


def both_orthonormal(rows: SiteRows) -> bool:
    return all(torch.allclose(r @ r.T, torch.eye(len(r), dtype=r.dtype), atol=1e-10) for r in (rows.u, rows.v))


def test_hosvd_is_that_of_the_dense_updates(updates: list[LowRankUpdate]) -> None:
    stack = stacked(updates)
    rows, spectrum = hosvd(stack, 5, 4, nothing(stack))
    unit = [dense(update) / dense(update).norm() for update in updates]
    left, sigma_out, _ = torch.linalg.svd(torch.cat(unit, dim=1))
    _, sigma_in, right = torch.linalg.svd(torch.cat(unit, dim=0))
    torch.testing.assert_close(projector(rows.u), projector(left[:, :5].T), rtol=0, atol=1e-9)
    torch.testing.assert_close(projector(rows.v), projector(right[:4]), rtol=0, atol=1e-9)
    assert spectrum.out_rows == pytest.approx(sigma_out[:5].square().tolist())
    assert spectrum.in_rows == pytest.approx(sigma_in[:4].square().tolist())
    assert stack.energy() == pytest.approx(len(updates))
    assert captured(stack, rows) == pytest.approx(sum(float((rows.u @ w @ rows.v.T).square().sum()) for w in unit))


def test_how_an_adapter_splits_its_update_does_not_matter(updates: list[LowRankUpdate]) -> None:
    generator = torch.Generator().manual_seed(4)
    turned = []
    for update in updates:
        gauge = torch.randn(update.rank, update.rank, generator=generator) + 3 * torch.eye(update.rank)
        turned.append(LowRankUpdate(update.b @ gauge, torch.linalg.inv(gauge) @ update.a * 7))
    stacks = [stacked(updates), stacked(turned)]
    found = [refine(stack, hosvd(stack, 4, 4, nothing(stack))[0], nothing(stack), 3)[0] for stack in stacks]
    torch.testing.assert_close(found[0].u, found[1].u, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0].v, found[1].v, rtol=0, atol=1e-5)


def test_weights_replace_the_norms(updates: list[LowRankUpdate]) -> None:
    weights = [3.0, 1.0, 1.0, 1.0, 1.0]
    stack = stacked([LowRankUpdate(u.b * 100, u.a) for u in updates], weights)
    assert stack.energy() == pytest.approx(9 + 4)
    assert stack.norms[1] == pytest.approx(100 * float(dense(updates[1]).norm()), rel=1e-5)
    heavy, _ = hosvd(stack, 3, 3, nothing(stack))
    even, _ = hosvd(stacked(updates), 3, 3, nothing(stack))
    own = dense(updates[0])
    assert (heavy.u @ own @ heavy.v.T).norm() > 1.05 * (even.u @ own @ even.v.T).norm()


@pytest.mark.parametrize("direct", [1024, 1])
def test_refinement_never_loses_and_here_gains(direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "_DIRECT", direct)
    stack = random_stack(25, 90, 80, rank=4)
    start, _ = hosvd(stack, 8, 8, nothing(stack))
    rows, held = refine(stack, start, nothing(stack), 6)
    assert held[0] == pytest.approx(captured(stack, start))
    assert all(after >= before * (1 - 1e-12) for before, after in pairwise(held))
    assert held[-1] > 1.02 * held[0]
    assert held[-1] == pytest.approx(captured(stack, rows))
    assert both_orthonormal(rows)


def test_the_iterations_for_large_sites_find_what_the_gram_matrix_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = random_stack(40, 150, 130, rank=4)
    exact, spectrum = hosvd(stack, 8, 8, nothing(stack))
    monkeypatch.setattr(leading, "_DIRECT", 1)
    found, _ = hosvd(stack, 8, 8, nothing(stack))
    best = sum(spectrum.out_rows)
    assert float(((stack.left @ found.u.T) * stack.sigma.unsqueeze(1)).square().sum()) > (1 - 1e-4) * best
    assert captured(stack, found) > 0.999 * captured(stack, exact)


@pytest.mark.parametrize("direct", [1024, 1])
def test_a_planted_subspace_is_found_exactly(direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "_DIRECT", direct)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(d, k, generator=generator)).Q.T for d, k in ((90, 6), (80, 4)))
    mixes = [torch.randn(6, 4, generator=generator) for _ in range(25)]
    stack = stacked([LowRankUpdate(u.T @ mix, v) for mix in mixes])
    rows, held = refine(stack, hosvd(stack, 6, 4, nothing(stack))[0], nothing(stack), 3)
    torch.testing.assert_close(projector(rows.u).float(), projector(u), rtol=0, atol=1e-6)
    torch.testing.assert_close(projector(rows.v).float(), projector(v), rtol=0, atol=1e-6)
    assert held[-1] == pytest.approx(stack.energy())


def test_rows_beyond_the_rank_are_orthonormal_and_hold_nothing(updates: list[LowRankUpdate]) -> None:
    stack = stacked([updates[1]] * 3)  # rank 2, in 6 directions
    fixed = hosvd(stack, 1, 2, nothing(stack))[0]
    rows, spectrum = hosvd(stack, 4, 4, fixed)
    assert both_orthonormal(fixed.then(rows))
    assert spectrum.out_rows[1:] == pytest.approx([0, 0, 0], abs=1e-9)
    assert captured(stack, fixed.then(rows)) == pytest.approx(3)


def test_new_rows_stand_beside_fixed_ones_and_prefer_what_these_lack() -> None:
    stack = random_stack(12, D_OUT, D_IN)
    fixed = refine(stack, hosvd(stack, 4, 6, nothing(stack))[0], nothing(stack), 4)[0]
    start, _ = hosvd(stack, 4, 2, fixed)
    rows, held = refine(stack, start, fixed, 5)
    whole = fixed.then(rows)
    assert (len(whole.u), len(whole.v)) == (8, 8)
    assert both_orthonormal(whole)
    assert held[-1] > held[0] >= captured(stack, fixed)
    free = refine(stack, hosvd(stack, 8, 8, nothing(stack))[0], nothing(stack), 5)[1][-1]
    assert 0.9 * free < held[-1] <= free * (1 + 1e-6)


@pytest.mark.parametrize("with_fixed", [False, True])
def test_prefixes_of_nested_rows_are_about_as_good_as_bases_of_their_size(with_fixed: bool) -> None:
    stack = random_stack(40, 70, 60, rank=4)
    fixed = hosvd(stack, 3, 3, nothing(stack))[0] if with_fixed else nothing(stack)
    rows, held = refine(stack, hosvd(stack, 24, 24, fixed)[0], fixed, 6)
    nested = nest(stack, rows, fixed, 6)
    assert both_orthonormal(fixed.then(nested))
    assert captured(stack, fixed.then(nested)) == pytest.approx(held[-1])
    for k in (8, 16):
        prefix = captured(stack, fixed.then(nested.prefix(k, k)))
        plain = captured(stack, fixed.then(rows.prefix(k, k)))
        fitted = refine(stack, hosvd(stack, k, k, fixed)[0], fixed, 6)[1][-1]
        assert plain < prefix
        assert prefix > 0.9 * fitted


def test_nesting_different_sides(updates: list[LowRankUpdate]) -> None:
    stack = stacked(updates)
    rows, _ = hosvd(stack, 9, 6, nothing(stack))
    nested = nest(stack, rows, nothing(stack), 3)
    assert both_orthonormal(nested)
    assert captured(stack, nested) == pytest.approx(captured(stack, rows))
    torch.testing.assert_close(projector(nested.u), projector(rows.u), rtol=0, atol=1e-9)
    torch.testing.assert_close(projector(nested.v), projector(rows.v), rtol=0, atol=1e-9)


def test_an_update_of_nothing_counts_for_nothing(updates: list[LowRankUpdate]) -> None:
    zero = replace(updates[0], b=torch.zeros_like(updates[0].b))
    with_zero, without = stacked([zero, *updates[1:]]), stacked(updates[1:])
    assert with_zero.norms[0] == 0
    assert with_zero.energy() == pytest.approx(without.energy())
    rows, _ = hosvd(with_zero, 4, 4, nothing(without))
    assert with_zero.cores(rows.u, rows.v)[0].count_nonzero() == 0
    torch.testing.assert_close(rows.u, hosvd(without, 4, 4, nothing(without))[0].u)
