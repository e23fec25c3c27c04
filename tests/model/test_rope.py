"""A long text must not change the angles of the others in its step."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, PhimoeConfig

from onebasis.core.errors import InvalidModel
from onebasis.model.loader import LoadedBase
from onebasis.model.native_decoder import why_not
from onebasis.model.rope import settle_longrope
from tests.engine.builders import make_request
from tests.model.families import COMMON, logits_by_transformers, prompt
from tests.model.stepping import Stepper
from tests.model.test_families import TOLERANCE
from tests.native import native_library

TRAINED = 24  # original_max_position_embeddings; one text of the arrivals stays below it, one is longer
SIZES = COMMON | {"hidden_size": 64, "intermediate_size": 96}
FAMILIES = {"phi3": Phi3Config, "llama": LlamaConfig}


def longrope(family, **parameters):
    n_angles = 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1.0 + 0.1 * i for i in range(n_angles)],
        "long_factor": [2.0 + 0.9 * i for i in range(n_angles)],
    }
    torch.manual_seed(3)
    trained = {"original_max_position_embeddings": TRAINED} if family == "phi3" else {}
    config = FAMILIES.get(family, PhimoeConfig)(**SIZES, **trained, rope_parameters=rope | parameters)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.requires_grad_(requires_grad=False)
    return LoadedBase(model.eval(), None, "tiny")


def with_long_factors(model):
    """A copy that has the long factors for texts of any length but the shortest, chosen by transformers itself."""
    model = copy.deepcopy(model)
    config = model.model.rotary_emb.config
    config.rope_parameters["original_max_position_embeddings"] = 2
    config.original_max_position_embeddings = 2  # Phi-3 looks here
    return model


def arrivals():
    """A short text, and a long one that comes into its steps."""
    return [
        (0, make_request("short", prompt(6, seed=1), max_tokens=16)),
        (1, make_request("long", prompt(40, seed=2), max_tokens=4)),
    ]


@pytest.mark.parametrize("max_model_len", [TRAINED + 1, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_has_the_long_factors_where_one_may_be_long(family, max_model_len):
    base = longrope(family)
    wanted = with_long_factors(base.model)
    own = copy.deepcopy(base.model)
    settle_longrope(base.model, max_model_len=max_model_len)
    traces = Stepper(base).run(arrivals())
    for trace in traces.values():
        torch.testing.assert_close(trace.logits, logits_by_transformers(wanted, trace.token_ids), **TOLERANCE)
    long, short = traces["long"], traces["short"]
    torch.testing.assert_close(long.logits, logits_by_transformers(own, long.token_ids), **TOLERANCE)
    by_length = logits_by_transformers(own, short.token_ids)
    assert (short.logits - by_length).abs().max() > 0.1, "the factors must matter"


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_stay_short_are_computed_as_transformers_does(family):
    base = longrope(family)
    wanted = copy.deepcopy(base.model)
    settle_longrope(base.model, max_model_len=TRAINED)
    request = make_request("r", prompt(9, seed=1), max_tokens=15)
    trace = Stepper(base).run([(0, request)])["r"]
    assert len(trace.token_ids) == TRAINED - 1
    torch.testing.assert_close(trace.logits, logits_by_transformers(wanted, trace.token_ids), **TOLERANCE)


@pytest.mark.parametrize("max_model_len", [TRAINED, 256])
def test_the_compiled_step_has_the_same_angles(max_model_len):
    library = native_library()
    base = longrope("llama", attention_factor=1.3)
    base = LoadedBase(base.model.bfloat16(), None, "tiny")
    assert "rotary embedding is longrope" in (why_not(base, 16) or "")
    settle_longrope(base.model, max_model_len=max_model_len)
    assert why_not(base, 16) is None
    exact = copy.deepcopy(base.model).float()
    requests = arrivals() if max_model_len == 256 else [(0, make_request("short", prompt(6, seed=1), max_tokens=16))]
    for trace in Stepper(base, library=library).run(requests).values():
        wanted = logits_by_transformers(exact, trace.token_ids)
        assert (trace.logits - wanted).norm() / wanted.norm() < 0.03


def test_scaling_by_the_length_of_a_text_is_refused():
    base = longrope("phimoe", short_mscale=1.1, long_mscale=1.3)
    settle_longrope(base.model, max_model_len=TRAINED)
    base = longrope("phimoe", short_mscale=1.1, long_mscale=1.3)
    with pytest.raises(InvalidModel, match=f"past {TRAINED} tokens.*set max_model_len to {TRAINED} at most"):
        settle_longrope(base.model, max_model_len=TRAINED + 1)


def test_other_angles_are_left_alone():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    before = model.model.rotary_emb.inv_freq.clone()
    settle_longrope(model, max_model_len=9)
    assert model.model.rotary_emb.rope_type == "default"
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_families_whose_layers_differ_in_their_angles_are_settled_layer_by_layer():
    sliding = {"rope_type": "default", "rope_theta": 100.0}
    full = longrope("llama").text_config.rope_parameters
    config = Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": sliding, "full_attention": full},
    )
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    left_alone = rotary.sliding_attention_inv_freq.clone()
    settle_longrope(rotary, max_model_len=TRAINED + 1)
    rotary(torch.empty(0), torch.arange(2).unsqueeze(0), layer_type="full_attention")
    theta = torch.arange(0, 16, 2).float() / 16
    torch.testing.assert_close(rotary.full_attention_inv_freq, 1 / (torch.tensor(full["long_factor"]) * 100.0**theta))
    assert torch.equal(rotary.sliding_attention_inv_freq, left_alone)
