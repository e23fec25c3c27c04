"""From an adapter to a coefficient file: what is stored is what is reported, and what is asked for is kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import LowFidelity, SetupError
from onebasis.fitting.peft.adapter import PeftAdapter
from onebasis.fitting.peft.import_job import ImportReport, ImportSettings, import_adapter
from onebasis.fitting.projection import project
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import TinyModel
from tests.fitting.peft.adapters import ALL_LINEAR, dense, opened, plain_adapter, rewrite
from tests.fitting.tiny import N_SITES, tiny_basis


@pytest.fixture
def adapter(llama: TinyModel, base: LoadedBase, tmp_path: Path) -> PeftAdapter:
    return opened(base, plain_adapter(llama.folder, tmp_path / "adapter"))


def imported(adapter: PeftAdapter, basis: Basis, **settings: object) -> tuple[BoundCoefficients, ImportReport]:
    chosen = ImportSettings(task="t", **settings)
    data, report = import_adapter(adapter, basis, project(adapter, basis, chosen.k), chosen)
    return bind(parse_coefficients(data), basis.spec), report


def stored_update(task: BoundCoefficients, basis: Basis, site: str) -> Tensor:
    """[d_out, d_in] dense, what a server would add to the weight."""
    flat, start = torch.from_numpy(task.flat_cores()), 0
    for spec in basis.spec.sites:
        core = flat[start : start + spec.k_out * spec.k_in].view(spec.k_out, spec.k_in)
        start += core.numel()
        if spec.name == site:
            found = basis.factors[site].u.T @ core @ basis.factors[site].v
    if site in task.residual:
        factors = task.residual[site]
        found = found + torch.from_numpy(factors.b.astype("f4")) @ torch.from_numpy(factors.a.astype("f4"))
    return found


def share_kept(task: BoundCoefficients, basis: Basis, adapter: PeftAdapter) -> float:
    lost = sum(float((dense(adapter, site) - stored_update(task, basis, site)).square().sum()) for site in adapter)
    return 1 - lost / sum(float(dense(adapter, site).square().sum()) for site in adapter)


@pytest.mark.parametrize(
    "settings", [{}, {"k": 3}, {"residual_rank": 1}, {"residual_rank": 3}, {"k": 2, "residual_rank": 2}]
)
def test_the_report_is_true_of_the_file(adapter: PeftAdapter, basis: Basis, settings: dict[str, int]):
    task, report = imported(adapter, basis, **settings)
    assert report.energy_kept_in_all == pytest.approx(share_kept(task, basis, adapter), abs=1e-5)
    assert (report.energy_kept_with_residual is not None) == ("residual_rank" in settings)
    assert task.file.k == settings.get("k")
    assert task.file.task == "t"
    assert report.core_bytes == task.file.values.nbytes
    assert report.residual_bytes == sum(factors.size_bytes for factors in task.residual.values())
    assert {factors.rank for factors in task.residual.values()} == (
        {settings["residual_rank"]} if task.residual else set()
    )


def test_more_residual_keeps_more_and_enough_keeps_all(adapter: PeftAdapter, basis: Basis):
    kept = [imported(adapter, basis, residual_rank=rank)[1].energy_kept_in_all for rank in (0, 1, 2, 4)]
    assert kept == sorted(kept)
    assert kept[2] - kept[0] > 0.3
    whole, report = imported(adapter, basis, residual_rank=9)  # rank 4 of the adapter and k=5 of the cores
    assert report.energy_kept_in_all == pytest.approx(1, abs=1e-5)
    for site in adapter:
        torch.testing.assert_close(stored_update(whole, basis, site), dense(adapter, site), rtol=1e-2, atol=5e-3)


def test_an_adapter_inside_the_basis_needs_no_residual(llama: TinyModel, base: LoadedBase, tmp_path: Path):
    """At full width of its smaller side the basis of k_proj's weight holds every update's rows."""
    basis = tiny_basis(base, tmp_path / "wide.basis.safetensors", k=32)
    inside = plain_adapter(llama.folder, tmp_path / "adapter", target_modules=["k_proj"])
    tensors = {}
    for layer in range(2):
        site = f"model.layers.{layer}.self_attn.k_proj"
        tensors[f"base_model.model.{site}.lora_A.weight"] = basis.factors[site].v[3:7].clone()
    task, report = imported(opened(base, rewrite(inside, tensors=tensors)), basis, residual_rank=2)
    assert report.energy_kept == pytest.approx(1, abs=1e-6)
    assert task.file.sites == ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.k_proj")


def test_sites_that_the_adapter_leaves_alone_are_not_in_the_file(
    llama: TinyModel, base: LoadedBase, basis: Basis, tmp_path: Path
):
    adapter = opened(base, plain_adapter(llama.folder, tmp_path / "adapter", target_modules=["v_proj", "q_proj"]))
    task, report = imported(adapter, basis)
    assert report.n_sites == 4
    assert task.file.sites == adapter.sites
    assert len(task.file.values) == 4 * 5 * 5
    assert not stored_update(task, basis, "model.layers.0.self_attn.o_proj").any()


def test_provenance_has_the_source_the_scales_and_what_was_lost(adapter: PeftAdapter, basis: Basis):
    task, report = imported(adapter, basis, residual_rank=2)
    provenance = task.file.provenance
    assert provenance["source"] == {
        "kind": "peft",
        "name": "adapter",
        "digest": adapter.digest,
        "base_model": str(adapter.base_model),
        "ranks": [4],
        "scales_folded_in": [2.0],
    }
    assert provenance["energy_kept"]["cores"] == pytest.approx(report.energy_kept, abs=1e-6)
    assert provenance["energy_kept"]["with_residual"] == pytest.approx(report.energy_kept_in_all, abs=1e-6)
    assert 0 < provenance["energy_kept"]["random_basis_of_this_size"] < 0.02
    worst = [kept for _, kept in provenance["energy_kept"]["worst_sites"]]
    assert worst == sorted(worst)
    assert len(worst) == 5
    assert provenance["residual"] == {"rank": 2, "size_bytes": report.residual_bytes}


def test_too_little_kept_is_a_refusal_that_says_what_to_do(adapter: PeftAdapter, basis: Basis):
    kept = imported(adapter, basis)[1].energy_kept
    assert kept < 0.1, "the adapter is random: the basis can't hold it"
    with pytest.raises(LowFidelity, match=rf"{kept:.3f} of its energy would be kept, --min-energy is 0.2; distill it"):
        imported(adapter, basis, min_energy=0.2)
    imported(adapter, basis, min_energy=kept - 1e-6)
    imported(adapter, basis, min_energy=0.9, residual_rank=4)


def test_numbers_that_float16_can_not_hold_are_stored_in_float32(
    llama: TinyModel, base: LoadedBase, basis: Basis, tmp_path: Path
):
    for alpha in (1e7, 1e-7):
        folder = plain_adapter(llama.folder, tmp_path / str(alpha), lora_alpha=alpha)
        adapter = opened(base, folder)
        task, report = imported(adapter, basis, residual_rank=9)
        assert task.file.values.dtype == "float32"
        assert report.energy_kept_in_all == pytest.approx(1, abs=1e-5)


def test_an_untrained_adapter_is_refused(llama: TinyModel, base: LoadedBase, basis: Basis, tmp_path: Path):
    folder = plain_adapter(llama.folder, tmp_path / "adapter", target_modules=["v_proj"])
    zeros = {f"base_model.model.model.layers.{n}.self_attn.v_proj.lora_B.weight": torch.zeros(32, 4) for n in range(2)}
    with pytest.raises(SetupError, match="zero everywhere: it was not trained"):
        imported(opened(base, rewrite(folder, tensors=zeros)), basis)


@pytest.mark.parametrize("settings", [{"residual_rank": -1}, {"min_energy": 1.1}, {"min_energy": float("nan")}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float]):
    with pytest.raises(SetupError, match="needs a"):
        ImportSettings(task="t", **settings)


def test_the_adapter_of_these_tests_has_every_site(adapter: PeftAdapter):
    assert len(adapter) == N_SITES == 2 * len(ALL_LINEAR)
