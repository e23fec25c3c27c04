"""Sites are put together by energy; what was in the basis's fleet is labelled."""

import json
from pathlib import Path

import pytest
import torch

from onebasis.core.errors import InvalidReport
from onebasis.core.ids import Digest
from onebasis.fitting.report.results import WeightReport
from onebasis.fitting.report.weights import measure_weights
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase
from tests.coefficients.builders import edited
from tests.fitting.report.fleet import MemoryAdapter, dense, orthonormal_rows, random_fleet, share_inside
from tests.fitting.tiny import CPU


class Copied(MemoryAdapter):
    """An adapter in another folder."""

    @property
    def digest(self) -> Digest:
        return MemoryAdapter("adapter-0", {}).digest


def report(adapters: list[MemoryAdapter], basis: Basis, **changes: object) -> WeightReport:
    settings = {"leave_one_out": True, "n_sweeps": 0, "seed": 0, "on_site": lambda: None} | changes
    return measure_weights(adapters, basis, **settings)


def test_an_adapters_share_is_of_its_energy_over_all_sites(basis: Basis) -> None:
    adapters = random_fleet(basis, 3)
    called: list[None] = []
    found = report(adapters, basis, on_site=lambda: called.append(None))
    assert len(called) == len(found.sites) == 14
    assert found.prefixes == (4, 5)
    for adapter, shown in zip(adapters, found.adapters, strict=True):
        kept = energy = 0.0
        for site, factors in basis.factors.items():
            update = dense(adapter.update(site))
            share = share_inside(update, orthonormal_rows(factors.u), orthonormal_rows(factors.v))
            kept += share * float(update.square().sum())
            energy += float(update.square().sum())
        assert shown.held[-1] == pytest.approx(kept / energy, rel=1e-6)
        assert (shown.name, shown.norm, shown.n_sites) == (adapter.name, pytest.approx(energy**0.5), 14)
        assert (shown.largest_rank, shown.in_sample) == (2, False)
    last = found.null[-1]
    assert (last.k, last.held_out, last.in_sample) == (
        5,
        pytest.approx(sum(s.held_out for s in found.sites) / 14),
        None,
    )
    assert last.left_out == pytest.approx(sum(s.left_out for s in found.sites) / 14)


def test_adapters_that_the_basis_was_made_from_are_in_sample(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    adapters = random_fleet(basis, 3)
    path = tmp_path / "made.basis.safetensors"
    made_from = json.dumps({"adapters": [{"name": "renamed since", "digest": adapters[1].digest}]})
    path.write_bytes(edited((tmp_path / "tiny.basis.safetensors").read_bytes(), metadata={"report": made_from}))
    found = report(adapters, load_basis(path, dtype=torch.float32, device=CPU))
    assert [adapter.in_sample for adapter in found.adapters] == [False, True, False]
    old, new = report(adapters[1:2], basis), report([adapters[0], adapters[2]], basis)
    for shown, known, unknown in zip(found.sites, old.sites, new.sites, strict=True):
        assert (shown.in_sample, shown.held_out) == pytest.approx((known.held_out, unknown.held_out))
    assert found.null[-1].in_sample == pytest.approx(old.null[-1].held_out)
    assert found.null[-1].held_out == pytest.approx(new.null[-1].held_out)
    points = {point.way: point for point in found.bytes_and_energy}
    of_old = {point.way: point for point in old.bytes_and_energy}
    assert points["import, in-sample, k=5"].kept == pytest.approx(of_old["import, held out, k=5"].kept)
    labels = {way: point.in_sample for way, point in points.items()}
    assert labels["import, in-sample, k=5"] is labels["import + residual, in-sample, r=1"] is True
    assert labels["import, held out, k=5"] is labels["import, basis made without it, k=5"] is False
    assert labels["own SVD, r=1"] is None


def test_leaving_out_can_be_left_out_and_needs_two(basis: Basis) -> None:
    for found in (report(random_fleet(basis, 2), basis, leave_one_out=False), report(random_fleet(basis, 1), basis)):
        assert {adapter.left_out for adapter in found.adapters} == {None}
        assert {row.left_out for row in found.null} == {site.left_out for site in found.sites} == {None}
        assert not any("made without" in point.way for point in found.bytes_and_energy)


def test_bytes_are_of_float16(basis: Basis) -> None:
    found = {point.way: point for point in report(random_fleet(basis, 2), basis).bytes_and_energy}
    factors = 2 * sum(site.d_in + site.d_out for site in basis.spec.sites)
    assert found["import, held out, k=5"].size_bytes == 2 * 25 * 14
    assert found["import, held out, k=4"].size_bytes == 2 * 16 * 14
    assert found["import + residual, held out, r=2"].size_bytes == 2 * 25 * 14 + 2 * factors
    assert found["own SVD, r=2"].size_bytes == 2 * factors
    assert found["own SVD, r=2"].kept == pytest.approx(1)
    assert found["import + residual, held out, r=2"].kept < 1


def test_sites_that_an_adapter_leaves_alone_do_not_count_for_it(basis: Basis) -> None:
    first, second = random_fleet(basis, 2)
    site = basis.spec.sites[0].name
    zero = dict(second.updates)
    zero[site] = type(zero[site])(b=torch.zeros_like(zero[site].b), a=zero[site].a)
    less = MemoryAdapter("less", {name: update for name, update in first.updates.items() if name != site})
    found = report([less, MemoryAdapter("zero", zero), second], basis)
    assert [adapter.n_sites for adapter in found.adapters] == [13, 13, 14]
    assert [shown.n_adapters for shown in found.sites] == [1, *[3] * 13]
    assert found.sites[0].left_out == 0.0, "there is nothing else to make a basis from"


def test_energy_at_sites_that_the_basis_has_not_is_told(basis: Basis) -> None:
    first, second = random_fleet(basis, 2)
    elsewhere = first.updates[basis.spec.sites[0].name]
    more = MemoryAdapter("more", {**first.updates, "lm_head": elsewhere})
    found, without = report([more, second], basis).adapters, report([first, second], basis).adapters
    assert found[0].outside == pytest.approx(elsewhere.energy() / (elsewhere.energy() + without[0].norm ** 2))
    assert found[1].outside == without[0].outside == 0.0
    assert found[0].held == without[0].held


def test_one_random_start_is_told(basis: Basis) -> None:
    first, second, third = random_fleet(basis, 3)
    same = {name: type(u)(b=u.b, a=first.updates[name].a) for name, u in second.updates.items()}
    found = report([first, MemoryAdapter("twin", same), third], basis)
    assert found.seed_groups == (("adapter-0", "twin"),)


def test_numbers_are_the_same_again_and_the_null_is_the_seeds(basis: Basis) -> None:
    adapters = random_fleet(basis, 2)
    first, again, other = report(adapters, basis), report(adapters, basis), report(adapters, basis, seed=1)
    assert first == again
    assert first.adapters == other.adapters
    assert first.null != other.null


def test_what_can_not_be_compared_is_refused(basis: Basis) -> None:
    adapter = random_fleet(basis, 1)[0]
    with pytest.raises(InvalidReport, match="two adapters are called 'adapter-0'"):
        report([adapter, adapter], basis)
    with pytest.raises(InvalidReport, match="'adapter-0' and 'copy' are the same adapter; give it once"):
        report([adapter, Copied("copy", adapter.updates)], basis)
    elsewhere = MemoryAdapter("elsewhere", {"lm_head": next(iter(adapter.updates.values()))})
    with pytest.raises(InvalidReport, match="'elsewhere' changes no site of the basis"):
        report([adapter, elsewhere], basis)
