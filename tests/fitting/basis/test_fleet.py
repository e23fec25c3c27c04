"""A basis from a fleet: what is in the file, that it is always the same file, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.container import Container, RawTensor, read_container, write_container
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.basis.extend import check_rows, open_old_basis
from onebasis.fitting.basis.fleet import FleetRecipe, build_fleet_basis
from onebasis.fitting.basis.sizes import ByteBudget, EnergyShare, FixedSize
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import base_fingerprint, linear_sites
from tests.api.tiny_model import TinyModel
from tests.fitting.basis.fleets import MemoryAdapter, random_fleet
from tests.fitting.tiny import CPU, N_SITES, tiny_base

K = FleetRecipe(FixedSize(6, 6))
Q0 = "model.layers.0.self_attn.q_proj"

Build = Callable[..., BasisSpec]


@pytest.fixture(scope="module")
def base(llama: TinyModel) -> LoadedBase:
    return tiny_base(llama.folder)


@pytest.fixture(scope="module")
def fleet(base: LoadedBase) -> list[MemoryAdapter]:
    return random_fleet(base, 6)


@pytest.fixture
def build(base: LoadedBase, fleet: list[MemoryAdapter], tmp_path: Path) -> Build:
    def run(recipe: FleetRecipe = K, adapters=None, *, name: str = "b", old: Path | None = None) -> BasisSpec:
        opened = None if old is None else open_old_basis(old, base)
        adapters = fleet if adapters is None else adapters
        return build_fleet_basis(base, adapters, recipe, path=tmp_path / name, old=opened, progress=lambda *_: None)

    return run


def factors(path: Path):
    return load_basis(path, dtype=torch.float32, device=CPU).factors


def _store_as_float16(path: Path) -> None:
    """The same basis with factors of another width."""
    found = read_container(path.read_bytes())
    numbers = {
        name: torch.frombuffer(bytearray(t.data), dtype=torch.bfloat16).half() for name, t in found.tensors.items()
    }
    narrow = {name: RawTensor("F16", t.shape, numbers[name].numpy().tobytes()) for name, t in found.tensors.items()}
    path.write_bytes(write_container(Container(found.metadata, narrow)))


def share_held(update: LowRankUpdate, u: torch.Tensor, v: torch.Tensor) -> float:
    """By the definition of captured energy: uncentred, squared Frobenius, scale included."""
    return float((u.double() @ update.b.double() @ update.a.double() @ v.double().T).square().sum()) / update.energy()


def test_report_says_what_the_rows_hold(build: Build, fleet, tmp_path: Path) -> None:
    spec = build()
    report, rows = spec.report, factors(tmp_path / "b")
    assert (spec.kind, len(spec.sites), {(s.k_in, s.k_out) for s in spec.sites}) == ("fleet", N_SITES, {(6, 6)})
    shares = {s: [share_held(a.updates[s], f.u, f.v) for a in fleet] for s, f in rows.items()}
    for site, found in report["sites"].items():
        assert found["energy_held_in_sample"] == pytest.approx(sum(shares[site]) / 6, abs=3e-3)  # rows are rounded
        assert found["directions"] == 18
        assert found["spectrum_out"] == sorted(found["spectrum_out"], reverse=True)
        assert found["won_by_alternation"] > 0
    for adapter in report["adapters"]:
        own = next(a for a in fleet if a.name == adapter["name"])
        energies = {site: own.updates[site].energy() for site in rows}
        held = sum(shares[site][fleet.index(own)] * energies[site] for site in rows)
        assert adapter["energy_held_in_sample"] == pytest.approx(held / sum(energies.values()), abs=3e-3)
        assert (adapter["digest"], adapter["weight"]) == (own.digest, 1.0)
    assert report["k_rule_of_thumb"] == {"half_the_adapters_plus_7": 10, "exact": 18}
    assert report["core_numbers"] == N_SITES * 36
    assert 0 < report["orthonormality_deviation_after_rounding"] < 2**-7
    assert report["tool"].startswith("onebasis ")
    assert (report["seed_groups"], report["extends"]) == ([], [])


@pytest.mark.parametrize("size", [FixedSize(6, 6), EnergyShare(0.5, 16), ByteBudget(4096, 16)])
def test_the_same_bytes_every_time_and_in_any_order(size, build: Build, fleet, tmp_path: Path) -> None:
    recipe = FleetRecipe(size)
    build(recipe, name="first")
    torch.manual_seed(1)
    build(recipe, fleet[::-1], name="again")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


def test_every_site_is_visited_once_and_twice_where_sizes_are_chosen(base, fleet, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for size, n_visits in ((FixedSize(2, 2), 1), (ByteBudget(10_000, 16), 2)):
        seen.clear()
        recipe = FleetRecipe(size, n_sweeps=0)
        build_fleet_basis(base, fleet, recipe, path=tmp_path / "b", old=None, progress=lambda *n: seen.append(n))
        assert seen == [(i, n_visits * N_SITES) for i in range(1, n_visits * N_SITES + 1)]


def test_k_in_and_k_out_may_differ(build: Build, tmp_path: Path) -> None:
    spec = build(FleetRecipe(FixedSize(k_out=3, k_in=7)))
    assert {(s.k_out, s.k_in) for s in spec.sites} == {(3, 7)}
    assert factors(tmp_path / "b")[Q0].v.shape == (7, 64)


def test_a_budget_holds_and_sizes_differ_by_site(build: Build) -> None:
    spec = build(FleetRecipe(ByteBudget(5000, 16)))
    assert 4000 < 2 * spec.n_core_numbers <= 5000
    assert len({(s.k_out, s.k_in) for s in spec.sites}) > 1


def test_energy_is_reached_at_every_site(build: Build) -> None:
    report = build(FleetRecipe(EnergyShare(0.55, 16))).report
    assert all(0.55 <= site["energy_held_in_sample"] <= 1 for site in report["sites"].values())


def test_a_heavier_adapter_is_held_better(build: Build, fleet) -> None:
    even = {a["name"]: a["energy_held_in_sample"] for a in build().report["adapters"]}
    name = fleet[2].name
    heavy = build(FleetRecipe(FixedSize(6, 6), weights={name: 4.0})).report["adapters"]
    found = {a["name"]: a for a in heavy}
    assert found[name]["weight"] == 4.0
    assert found[name]["energy_held_in_sample"] > even[name] + 0.1


def test_means_are_part_of_what_is_held(build: Build, base, fleet) -> None:
    """Nothing is centred: an update that all adapters share is the first thing that the rows hold."""
    common = random_fleet(base, 1, rank=2, seed=9)[0]
    shifted = [
        MemoryAdapter(
            a.name,
            {
                site: LowRankUpdate(
                    torch.cat([5 * common.updates[site].b, u.b], 1), torch.cat([common.updates[site].a, u.a])
                )
                for site, u in a.updates.items()
            },
        )
        for a in fleet
    ]
    report = build(FleetRecipe(FixedSize(2, 2)), shifted).report
    assert report["energy_held_in_sample"] > 0.8


def test_sites_are_those_of_the_fleet(build: Build, base, fleet) -> None:
    some = [name for name in linear_sites(base.model) if name.endswith(("q_proj", "v_proj"))]
    only = [MemoryAdapter(a.name, {site: a.updates[site] for site in some}) for a in fleet]
    del only[0].updates[some[0]]  # an adapter without one of them
    spec = build(adapters=only)
    assert [site.name for site in spec.sites] == some
    assert spec.base_fingerprint == base_fingerprint(base.model, some)
    assert spec.report["sites"][some[0]]["directions"] == 15


# ---------------------------------------------------------------- mixed


def test_mixed_is_the_fleet_and_then_the_base_weight(build: Build, base, tmp_path: Path) -> None:
    fleet_spec = build(FleetRecipe(FixedSize(6, 5)), name="fleet")
    spec = build(FleetRecipe(FixedSize(10, 9), n_base_rows=4), name="mixed")
    assert (fleet_spec.kind, spec.kind) == ("fleet", "mixed")
    pure, mixed = factors(tmp_path / "fleet"), factors(tmp_path / "mixed")
    for name, layer in linear_sites(base.model).items():
        assert torch.equal(mixed[name].u[:6], pure[name].u)
        for rows in (mixed[name].u, mixed[name].v):
            assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < 2**-7
        u, v = mixed[name].u[6:], mixed[name].v[5:]
        best = torch.linalg.svdvals(layer.weight)[:4].square().sum()
        assert (u @ layer.weight @ v.T).square().sum() > 0.5 * best


# ---------------------------------------------------------------- extension


def test_an_extension_keeps_every_bit_and_adds_rows_for_the_new_fleet(build: Build, base, tmp_path: Path) -> None:
    old = build(name="old")
    newer = random_fleet(base, 4, seed=7)
    spec = build(FleetRecipe(FixedSize(8, 12)), newer, old=tmp_path / "old", name="new")
    before, after = factors(tmp_path / "old"), factors(tmp_path / "new")
    for name, rows in after.items():
        assert (rows.u.shape[0], rows.v.shape[0]) == (8, 12)
        assert torch.equal(rows.u[:6], before[name].u)
        assert torch.equal(rows.v[:6], before[name].v)
        for side in (rows.u, rows.v):
            assert (side @ side.T - torch.eye(len(side))).abs().max() < 2**-7
        held = [share_held(a.updates[name], rows.u, rows.v) for a in newer]
        held_before = [share_held(a.updates[name], before[name].u, before[name].v) for a in newer]
        assert sum(held) > sum(held_before) + 0.5
    (noted,) = spec.report["extends"]
    assert noted["basis"] == old.digest
    assert noted["sizes"][Q0] == [6, 6]


def test_an_extension_of_an_extension_knows_both(build: Build, base, tmp_path: Path) -> None:
    first = build(FleetRecipe(FixedSize(3, 3)), name="1")
    second = build(FleetRecipe(FixedSize(5, 5)), random_fleet(base, 3, seed=1), old=tmp_path / "1", name="2")
    third = build(FleetRecipe(FixedSize(9, 7)), random_fleet(base, 3, seed=2), old=tmp_path / "2", name="3")
    assert [noted["basis"] for noted in third.report["extends"]] == [second.digest, first.digest]


def test_extension_keeps_the_width_of_the_old_rows(build: Build, base, tmp_path: Path) -> None:
    build(name="old")
    _store_as_float16(tmp_path / "old")
    build(FleetRecipe(FixedSize(7, 7)), random_fleet(base, 3, seed=1), old=tmp_path / "old", name="new")
    with safe_open(tmp_path / "old", "pt") as old, safe_open(tmp_path / "new", "pt") as new:
        for name in old.keys():  # noqa: SIM118
            assert new.get_tensor(name).dtype == torch.float16
            assert torch.equal(new.get_tensor(name)[:6], old.get_tensor(name))


def test_an_extension_may_have_sites_that_only_one_of_the_two_has(build: Build, base, fleet, tmp_path: Path) -> None:
    q, v = (
        name
        for name in linear_sites(base.model)
        if name.startswith("model.layers.0") and name[-6:] in ("q_proj", "v_proj")
    )
    build(adapters=[MemoryAdapter(a.name, {q: a.updates[q]}) for a in fleet], name="old")
    only_v = [MemoryAdapter(a.name, {v: a.updates[v]}) for a in fleet]
    spec = build(FleetRecipe(FixedSize(9, 8)), only_v, old=tmp_path / "old")
    assert {site.name: (site.k_out, site.k_in) for site in spec.sites} == {q: (9, 8), v: (9, 8)}
    noted = spec.report["sites"]
    assert (noted[q]["base_rows"], noted[v]["base_rows"]) == ([3, 2], [0, 0])
    rows = factors(tmp_path / "b")[q].u
    assert (rows @ rows.T - torch.eye(9)).abs().max() < 2**-7


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (FleetRecipe(FixedSize(19, 6)), "k_out asks for 19 rows .*allowed are 1 to 18 .*have 18 directions"),
        (FleetRecipe(FixedSize(6, 0)), "k_in asks for 0 rows"),
        (FleetRecipe(FixedSize(6, 6), n_base_rows=6), "k_out asks for 0 rows"),
        (FleetRecipe(EnergyShare(0.999, 16)), "of its energy with k_out=16 and k_in=16, .* 0.999 was asked for"),
        (FleetRecipe(ByteBudget(100, 16)), "the smallest cores take 1792 bytes a task, the budget is 100"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(recipe: FleetRecipe, complaint: str, build: Build, tmp_path: Path) -> None:
    with pytest.raises(InvalidBasis, match=complaint):
        build(recipe)
    assert not (tmp_path / "b").exists()


def test_a_fleet_that_is_none_is_refused(build: Build, fleet) -> None:
    with pytest.raises(InvalidBasis, match="no adapter"):
        build(adapters=[])
    with pytest.raises(InvalidBasis, match="are the same file"):
        build(adapters=[*fleet, fleet[0]])


def test_an_extension_that_takes_rows_away_is_refused(build: Build, tmp_path: Path) -> None:
    build(name="old")
    with pytest.raises(InvalidBasis, match="k_out asks for -1 rows from the fleet beside 6 that stay"):
        build(FleetRecipe(FixedSize(5, 6)), old=tmp_path / "old")
    with pytest.raises(InvalidBasis, match="an extension has one size at all sites"):
        build(FleetRecipe(ByteBudget(10_000, 16)), old=tmp_path / "old")


def test_only_a_basis_of_this_base_is_extended(build: Build, base, tmp_path: Path) -> None:
    build(name="old")
    weight = linear_sites(base.model)[Q0].weight
    with torch.no_grad():
        weight[0, 0] += 1
        with pytest.raises(InvalidBasis, match="the basis is for base weights"):
            build(FleetRecipe(FixedSize(8, 8)), old=tmp_path / "old")
        weight[0, 0] -= 1


def test_rows_that_were_tampered_with_are_noticed(build: Build, base, tmp_path: Path) -> None:
    build(name="old")
    spec = build(FleetRecipe(FixedSize(8, 8)), random_fleet(base, 3, seed=1), old=tmp_path / "old", name="new")
    assert len(check_rows(tmp_path / "new", spec)) == 1
    found = read_container((tmp_path / "new").read_bytes())
    v = found.tensors[f"{Q0}.V"]
    turned = RawTensor(v.dtype, v.shape, bytes([v.data[0] ^ 1]) + v.data[1:])
    (tmp_path / "new").write_bytes(write_container(Container(found.metadata, {**found.tensors, f"{Q0}.V": turned})))
    with pytest.raises(InvalidBasis, match="its first rows are not those of sha256"):
        check_rows(tmp_path / "new", read_basis_spec(tmp_path / "new"))
