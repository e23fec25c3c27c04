"""An update that is applied beside a layer is the one of the merged weight, and goes away without a trace."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config

from onebasis.coefficients.format import write_coefficients
from onebasis.core.errors import InvalidBasis, SetupError
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, file_cores
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.adapted import merged_weight
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites
from tests.api.tiny_model import TinyModel
from tests.fitting.tiny import random_updates, save_family, tiny_base

PROMPT = torch.tensor([[7, 30, 8, 50, 9]])


@torch.no_grad()
def logits(base: LoadedBase) -> Tensor:
    return base.model(input_ids=PROMPT).logits[0]


def test_the_model_computes_what_its_merged_weights_would(llama: TinyModel, base: LoadedBase) -> None:
    updates = random_updates(base)
    merged = tiny_base(llama.folder)
    for name, layer in linear_sites(merged.model).items():
        layer.weight.data += updates[name].b @ updates[name].a
    with applied_updates(base, updates):
        torch.testing.assert_close(logits(base), logits(merged), rtol=1e-4, atol=1e-4)
        assert (logits(base) - logits(tiny_base(llama.folder))).abs().max() > 0.1


def test_the_layers_biases_stay(llama: TinyModel, tmp_path) -> None:
    base = tiny_base(save_family(llama, tmp_path / "qwen2", Qwen2Config))
    zeros = {name: LowRankUpdate(b=0 * update.b, a=update.a) for name, update in random_updates(base).items()}
    bare = logits(base)
    with applied_updates(base, zeros):
        assert torch.equal(logits(base), bare)


def test_sites_without_an_update_are_left_alone(base: LoadedBase) -> None:
    layers = linear_sites(base.model)
    name = "model.layers.1.mlp.down_proj"
    with applied_updates(base, {name: random_updates(base)[name]}):
        changed = [site for site, layer in layers.items() if base.model.get_submodule(site) is not layer]
        assert changed == [name]


def test_the_dtype_is_the_models(llama: TinyModel) -> None:
    base = tiny_base(llama.folder, torch.bfloat16)
    with applied_updates(base, random_updates(base)):
        assert logits(base).dtype == torch.bfloat16


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_when_the_block_ends(fails: bool, base: LoadedBase) -> None:
    layers, bare = linear_sites(base.model), logits(base)
    try:
        with applied_updates(base, random_updates(base)):
            if fails:
                raise RuntimeError("the disk is full")
    except RuntimeError:
        assert fails
    assert all(base.model.get_submodule(name) is layer for name, layer in layers.items())
    assert torch.equal(logits(base), bare)


def test_updates_that_do_not_fit_leave_the_model_unchanged(base: LoadedBase) -> None:
    updates = random_updates(base)
    bare = logits(base)
    last = list(updates)[-1]
    turned = LowRankUpdate(b=updates[last].a.T, a=updates[last].b.T)
    with pytest.raises(SetupError, match=rf"update of {last}: b and a are \(\(96, 2\), \(2, 64\)\)"):
        applied_updates(base, updates | {last: turned}).__enter__()
    with pytest.raises(InvalidBasis, match=r"model\.layers\.7"):
        applied_updates(base, updates | {"model.layers.7.mlp.up_proj": turned}).__enter__()
    assert torch.equal(logits(base), bare)


def test_cores_as_updates_are_what_they_merge_to(base: LoadedBase, basis: Basis) -> None:
    torch.manual_seed(0)
    name, other = list(basis.factors)[:2]
    core = torch.randn(5, 5)
    updates = core_updates(basis, {name: core})
    assert list(updates) == [name] and other not in updates
    weight = linear_sites(base.model)[name].weight
    merged = weight + updates[name].b @ updates[name].a
    torch.testing.assert_close(merged, merged_weight(weight, basis.factors[name], core))


@pytest.mark.parametrize("form", ["core", "diag"])
def test_a_files_cores_are_found_by_site(form: str, basis: Basis) -> None:
    sites = basis.spec.sites
    count = 25 if form == "core" else 5
    values = np.arange(len(sites) * count, dtype=np.float32)
    spec = basis.spec
    data = write_coefficients(values, form=form, basis=spec.digest, base_fingerprint=spec.base_fingerprint)
    cores = file_cores(data, basis)
    assert list(cores) == [site.name for site in sites]
    for place, site in enumerate(sites):
        numbers = torch.arange(place * count, (place + 1) * count, dtype=torch.float32)
        assert torch.equal(cores[site.name], numbers.view(5, 5) if form == "core" else numbers.diag())
