"""A basis is made of the directions it says, is the same every time, and is read back as it was written."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import base_fingerprint, linear_sites
from tests.api.tiny_model import TinyModel
from tests.fitting.tiny import CPU, N_SITES, SMALLEST_SIDE, save_family, tiny_base, tiny_basis

BF16_STEP = 2.0**-8  # relative


def projector(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows


def deviation(basis: Basis) -> float:
    factors = [factor.float() for site in basis.factors.values() for factor in (site.u, site.v)]
    return max(float((rows @ rows.T - torch.eye(len(rows))).abs().max()) for rows in factors)


def test_base_svd_rows_are_the_leading_singular_vectors(base: LoadedBase, basis: Basis) -> None:
    for name, layer in linear_sites(base.model).items():
        left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
        found = basis.factors[name]
        # a projector does not depend on signs
        torch.testing.assert_close(projector(found.u), projector(left[:, :5].T), rtol=0, atol=4 * BF16_STEP)
        torch.testing.assert_close(projector(found.v), projector(right[:5]), rtol=0, atol=4 * BF16_STEP)
        middle = found.u @ layer.weight @ found.v.T
        torch.testing.assert_close(middle.diagonal().abs(), values[:5], rtol=0.02, atol=0)  # by energy, best first
        assert (middle - middle.diag().diag()).abs().max() < 0.02 * values[0], "row i of U is not the partner of V's"


def test_base_svd_signs_do_not_depend_on_the_library(basis: Basis) -> None:
    for site in basis.factors.values():
        for factor in (site.u, site.v):
            assert (factor.amax(dim=1) >= -factor.amin(dim=1)).all()


@pytest.mark.parametrize("kind", BasisKind)
def test_rows_are_orthonormal_up_to_the_rounding_that_the_report_admits(
    kind: BasisKind, base: LoadedBase, tmp_path: Path
) -> None:
    basis = tiny_basis(base, tmp_path / "basis", kind=kind)
    reported = basis.spec.report["orthonormality_deviation_after_rounding"]
    assert reported == pytest.approx(deviation(basis), abs=1e-5)
    assert 0 < reported < 2 * BF16_STEP


def test_report(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    report = basis.spec.report
    assert (report["kind"], report["k"], report["seed"]) == ("base-svd", 5, None)
    assert report["tool"].startswith("onebasis ")
    energy = report["base_weight_energy_by_site"]
    assert list(energy) == sorted(basis.factors)
    for name, layer in linear_sites(base.model).items():
        squares = torch.linalg.svdvals(layer.weight).square()
        assert energy[name] == pytest.approx(float(squares[:5].sum() / squares.sum()), abs=2e-4)
    report = tiny_basis(base, tmp_path / "random", kind=BasisKind.RANDOM, seed=3).spec.report
    assert (report["kind"], report["seed"], report["base_weight_energy_by_site"]) == ("random", 3, {})


def test_random_rows_come_from_the_seed(base: LoadedBase, tmp_path: Path) -> None:
    first, again, other = (
        tiny_basis(base, tmp_path / str(i), kind=BasisKind.RANDOM, seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    assert first.spec.digest == again.spec.digest != other.spec.digest
    for name, site in first.factors.items():
        assert not torch.equal(site.u, other.factors[name].u)
    v_of_equal_shape = [site.v for site in first.factors.values() if site.v.shape[1] == 64]
    assert not any(torch.equal(a, b) for a, b in pairwise(v_of_equal_shape)), "sites share their directions"


def test_the_same_base_gives_the_same_bytes_in_any_state_of_torch(base: LoadedBase, tmp_path: Path) -> None:
    for i in range(2):
        torch.manual_seed(i)
        tiny_basis(base, tmp_path / str(i))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.mark.parametrize("k", [-1, 0, SMALLEST_SIDE + 1])
def test_k_that_does_not_fit_is_refused(k: int, base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(InvalidBasis, match=f"k={k}: this model allows 1 to {SMALLEST_SIDE}"):
        tiny_basis(base, tmp_path / "basis", k=k)
    assert not (tmp_path / "basis").exists()


@pytest.mark.parametrize("kind", BasisKind)
def test_the_largest_k_fits(kind: BasisKind, base: LoadedBase, tmp_path: Path) -> None:
    basis = tiny_basis(base, tmp_path / "basis", kind=kind, k=SMALLEST_SIDE)
    assert deviation(basis) < 2 * BF16_STEP


def test_header_says_what_the_model_is(base: LoadedBase, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "tiny.basis.safetensors"
    done: list[str] = []
    spec = build_basis(base, kind=BasisKind.BASE_SVD, k=3, seed=0, path=path, progress=done.append)
    layers = linear_sites(base.model)
    assert spec == read_basis_spec(path)
    assert (spec.kind, spec.base_model, spec.size_bytes) == ("base-svd", base.name, path.stat().st_size)
    assert spec.base_fingerprint == base_fingerprint(base.model, layers)
    assert done == [site.name for site in spec.sites] == list(layers)
    assert len(done) == N_SITES
    for site, layer in zip(spec.sites, layers.values(), strict=True):
        assert (site.d_in, site.d_out, site.k_in, site.k_out) == (layer.in_features, layer.out_features, 3, 3)


def test_load_basis_gives_factors_in_the_wanted_dtype_and_order(basis: Basis, tmp_path: Path) -> None:
    stored = load_basis(tmp_path / "tiny.basis.safetensors", dtype=torch.bfloat16, device=CPU)
    assert [site.name for site in basis.spec.sites] == list(basis.factors)
    for site in basis.spec.sites:
        found = basis.factors[site.name]
        assert found.v.shape == (site.k_in, site.d_in)
        assert found.u.shape == (site.k_out, site.d_out)
        assert found.v.dtype == torch.float32
        assert torch.equal(found.v, stored.factors[site.name].v.float()), "stored as bfloat16, widened exactly"


def test_model_with_biases(llama: TinyModel, tmp_path: Path) -> None:
    base = tiny_base(save_family(llama, tmp_path / "model", Qwen2Config))
    assert base.model.model.layers[0].self_attn.q_proj.bias is not None
    basis = tiny_basis(base, tmp_path / "basis")
    assert len(basis.spec.sites) == N_SITES
    before = basis.spec.base_fingerprint
    with torch.no_grad():
        base.model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    assert base_fingerprint(base.model, basis.factors) != before
