"""A task exported and loaded back by PEFT answers as the task does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import SetupError
from onebasis.core.residual import Residual
from onebasis.fitting.peft.export import export_peft
from onebasis.kernels.reference import apply_cores_ref
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer
from tests.api.tiny_model import TinyModel
from tests.coefficients.builders import n_coefficients
from tests.fitting.peft.adapters import opened
from tests.fitting.tiny import tiny_base

TOKENS = torch.arange(2, 42)[None]
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def task(basis: Basis, *, form: str = "core", k: int | None = None, **fields: Any) -> BoundCoefficients:
    sites = fields.get("sites")
    chosen = [site for site in basis.spec.sites if sites is None or site.name in sites]
    n = sum(n_coefficients(form, site, k) for site in chosen)
    numbers = fields.pop("numbers", np.random.default_rng(0).standard_normal(n).astype(np.float16))
    made_for = {"basis": basis.spec.digest, "base_fingerprint": basis.spec.base_fingerprint}
    return bind(parse_coefficients(write_coefficients(numbers, form=form, k=k, **made_for, **fields)), basis.spec)


def residuals(base: LoadedBase, ranks: Mapping[str, int]) -> dict[str, Residual]:
    rng = np.random.default_rng(1)
    found = {}
    for site, rank in ranks.items():
        d_out, d_in = site_layer(base.model, site).weight.shape
        factors = [rng.standard_normal(shape).astype(np.float16) for shape in ((rank, d_in), (d_out, rank))]
        found[site] = Residual(a=factors[0], b=0.3 * factors[1])
    return found


@contextmanager
def reference(base: LoadedBase, basis: Basis, bound: BoundCoefficients) -> Iterator[None]:
    """The model under a task by the definition of the apply step, in float32."""
    flat, start, hooks = torch.from_numpy(bound.flat_cores()), 0, []
    for site in basis.spec.sites:
        core = flat[start : start + site.k_out * site.k_in].view(1, site.k_out, site.k_in)
        start += core.numel()
        hook = _adder(core, basis, site.name, bound.residual.get(site.name))
        hooks.append(site_layer(base.model, site.name).register_forward_hook(hook))
    yield
    for hook in hooks:
        hook.remove()


def _adder(core: Tensor, basis: Basis, site: str, residual: Residual | None):
    factors = basis.factors[site]

    def add(_layer: object, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = inputs[0][0]
        delta = apply_cores_ref(x, factors.v, factors.u, core, torch.zeros(len(x), dtype=torch.int32))
        if residual is not None:
            a, b = (torch.from_numpy(factor.astype(np.float32)) for factor in (residual.a, residual.b))
            delta = delta + x @ a.T @ b.T
        return y + delta

    return add


@pytest.mark.parametrize(
    ("fields", "ranks"),
    [
        pytest.param({}, {5}, id="core"),
        pytest.param({"form": "diag"}, {5}, id="diag"),
        pytest.param({"k": 3}, {3}, id="prefix"),
        pytest.param({"sites": (Q, UP)}, {5}, id="some-sites"),
        pytest.param({"residual": {Q: 2, UP: 3}}, {5, 7, 8}, id="residual"),
        pytest.param({"residual": {UP: 4}, "sites": (Q,)}, {4, 5}, id="residual-beside-the-cores"),
    ],
)
def test_peft_loads_it_back_with_equal_logits(
    llama: TinyModel, base: LoadedBase, basis: Basis, tmp_path: Path, fields: dict[str, Any], ranks: set[int]
):
    if "residual" in fields:
        fields = fields | {"residual": residuals(base, fields["residual"])}
    bound = task(basis, **fields)
    report = export_peft(bound, basis, base.model, tmp_path / "out", base_model="tiny")
    assert set(report.ranks) == ranks
    bare = base.model(TOKENS).logits
    with reference(base, basis, bound):
        expected = base.model(TOKENS).logits
    loaded = peft.PeftModel.from_pretrained(tiny_base(llama.folder).model, str(tmp_path / "out"))
    torch.testing.assert_close(loaded(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert float((expected - bare).abs().max()) > 0.5, "the task must matter"
    assert report.n_sites == sum("lora_A" in name for name, _ in loaded.named_parameters()), (
        "PEFT adapts no other layer"
    )


@pytest.mark.parametrize(("k_in", "k_out"), [(2, 5), (5, 3)])
def test_the_adapter_is_as_thin_as_the_smaller_side_of_its_cores(
    base: LoadedBase, basis: Basis, tmp_path: Path, k_in: int, k_out: int
):
    sites = tuple(replace(site, k_in=k_in, k_out=k_out) for site in basis.spec.sites)
    factors = {site: SiteFactors(v=both.v[:k_in], u=both.u[:k_out]) for site, both in basis.factors.items()}
    narrow = Basis(replace(basis.spec, sites=sites), factors)
    bound = task(narrow)
    report = export_peft(bound, narrow, base.model, tmp_path / "out", base_model="tiny")
    assert report.ranks == (min(k_in, k_out),)
    update = opened(base, tmp_path / "out")[Q]
    core = torch.from_numpy(bound.flat_cores()[: k_in * k_out]).view(k_out, k_in)
    torch.testing.assert_close(update.b @ update.a, factors[Q].u.T @ core @ factors[Q].v)


def test_what_is_exported_is_read_back_as_the_same_update(base: LoadedBase, basis: Basis, tmp_path: Path):
    bound = task(basis, residual=residuals(base, {Q: 2}))
    export_peft(bound, basis, base.model, tmp_path / "out", base_model="tiny")
    adapter = opened(base, tmp_path / "out")
    assert adapter.scales == (1.0,)
    assert adapter.base_model == "tiny"
    core = torch.from_numpy(bound.flat_cores()[:25]).view(5, 5)
    expected = basis.factors[Q].u.T @ core @ basis.factors[Q].v
    expected += torch.from_numpy(bound.residual[Q].b.astype("f4")) @ torch.from_numpy(bound.residual[Q].a.astype("f4"))
    torch.testing.assert_close(adapter[Q].b @ adapter[Q].a, expected)


def test_a_task_of_zeros_can_not_be_exported(base: LoadedBase, basis: Basis, tmp_path: Path):
    zeros = task(basis, numbers=np.zeros(basis.spec.n_core_numbers, np.float16))
    with pytest.raises(SetupError, match="no adapter that changes nothing"):
        export_peft(zeros, basis, base.model, tmp_path / "out", base_model="tiny")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_as_it_is(base: LoadedBase, basis: Basis, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("mine")
    with pytest.raises(SetupError, match="is not empty; name a new folder"):
        export_peft(task(basis), basis, base.model, tmp_path, base_model="tiny")
    assert [path.name for path in tmp_path.iterdir() if path.name != "tiny.basis.safetensors"] == [
        "adapter_config.json"
    ]
