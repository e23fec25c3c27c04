"""Grams are those of the inputs that the layers really see under the task."""

from pathlib import Path

import numpy as np
import torch

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, site_cores
from onebasis.fitting.merging.grams import gather_grams
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites
from tests.fitting.tiny import token_example

EXAMPLES = [token_example([7, 8, 9], [20, 1]), token_example([30, 31, 32, 33, 34], [21, 22, 1])]


def test_grams_are_the_mean_outer_products_of_the_inputs_through_the_basis(base: LoadedBase, basis: Basis) -> None:
    """The inputs taken from dense weights W + U^T S V, one example at a time."""
    cores = np.random.default_rng(0).standard_normal(basis.spec.n_core_numbers).astype(np.float32)
    calls: list[None] = []
    grams = gather_grams(base, basis, cores, EXAMPLES, lambda: calls.append(None))
    assert len(calls) == len(EXAMPLES)
    layers = linear_sites(base.model)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    with torch.no_grad():
        for name, update in core_updates(basis, site_cores(cores, basis.spec)).items():
            layers[name].weight += update.b @ update.a
        for name, layer in layers.items():
            layer.register_forward_pre_hook(lambda _m, args, name=name: inputs[name].append(args[0][0]))
        for example in EXAMPLES:
            base.model(input_ids=torch.tensor([[*example.prompt_ids, *example.answer_ids]]), use_cache=False)
    for name, site in basis.factors.items():
        z = torch.cat(inputs[name]) @ site.v.T
        assert len(z) == 13
        torch.testing.assert_close(torch.from_numpy(grams[name]).float(), z.T @ z / 13, rtol=1e-3, atol=1e-3)


def test_the_model_is_as_before(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    before = list(base.model.modules())
    gather_grams(base, basis, np.ones(basis.spec.n_core_numbers, dtype=np.float32), EXAMPLES, lambda: None)
    assert list(base.model.modules()) == before
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_cores_are_updates_of_the_layers_exactly(base: LoadedBase, basis: Basis) -> None:
    cores = np.random.default_rng(0).standard_normal(basis.spec.n_core_numbers).astype(np.float32)
    updates = core_updates(basis, site_cores(cores, basis.spec))
    start = 0
    for site in basis.spec.sites:
        end = start + site.k_out * site.k_in
        core = torch.from_numpy(cores[start:end]).view(site.k_out, site.k_in)
        factors = basis.factors[site.name]
        wanted = factors.u.T @ core @ factors.v
        torch.testing.assert_close(updates[site.name].b @ updates[site.name].a, wanted, rtol=1e-5, atol=1e-5)
        start = end
    assert start == len(cores)
    with applied_updates(base, updates):
        pass  # every update has its layer's size
