import copy

import pytest
import torch
from torch import nn

from onebasis.core.errors import InvalidBasis, InvalidModel
from onebasis.model.sites import base_fingerprint, linear_sites, site_layer
from tests.model.families import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sites_are_the_seven_linear_layers_of_each_decoder_layer(family):
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = list(linear_sites(tiny_model(family)))
    assert len(names) == 3 * len(parts)
    assert {name.rsplit(".", 1)[1] for name in names} == set(parts)
    assert not any("lm_head" in name for name in names)


def test_a_model_without_linear_decoder_layers_is_refused():
    with pytest.raises(InvalidModel, match="no linear layer"):
        linear_sites(nn.Sequential(nn.Linear(3, 4)))


@pytest.mark.parametrize("name", ["model.layers.0.mlp", "model.layers.9.mlp.up_proj", "nowhere"])
def test_a_site_that_is_no_linear_layer_of_the_model_is_refused(name):
    with pytest.raises(InvalidBasis, match=name):
        site_layer(tiny_model("llama"), name)


def test_the_fingerprint_is_the_same_in_every_width():
    half = tiny_model("llama").to(torch.bfloat16)
    single = copy.deepcopy(half).to(torch.float32)
    names = linear_sites(half)
    assert base_fingerprint(half, names) == base_fingerprint(single, names)
    assert base_fingerprint(half, reversed(names)) == base_fingerprint(half, names), "whatever the order of the names"


def test_the_fingerprint_changes_with_a_single_weight_of_any_site():
    model = tiny_model("llama")
    names = linear_sites(model)
    seen = {base_fingerprint(model, names)}
    for name in names:
        changed = copy.deepcopy(model)
        changed.get_submodule(name).weight.data[-1, -1] += 0.5
        seen.add(base_fingerprint(changed, names))
    assert len(seen) == 1 + len(names)


def test_the_fingerprint_is_of_the_named_sites_only():
    model = tiny_model("llama")
    names = list(linear_sites(model))
    before = base_fingerprint(model, names[:3])
    model.get_submodule(names[5]).weight.data += 1.0
    assert base_fingerprint(model, names[:3]) == before
    assert base_fingerprint(model, names[:2]) != before


def test_swapped_weights_of_the_same_shape_have_another_fingerprint():
    model = tiny_model("llama")
    names = linear_sites(model)
    before = base_fingerprint(model, names)
    mlp = model.get_submodule("model.layers.0.mlp")
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    assert base_fingerprint(model, names) != before


def test_names_and_shapes_are_part_of_the_fingerprint():
    weight = torch.arange(12.0)

    def fingerprint(name, *shape):
        layer = nn.Linear(shape[1], shape[0], bias=False)
        layer.weight.data = weight.view(shape)
        return base_fingerprint(nn.ModuleDict({name: layer}), [name])

    assert len({fingerprint("up", 3, 4), fingerprint("up", 4, 3), fingerprint("down", 3, 4)}) == 3
