"""A server computes the model that it was given, or does not start."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DogeConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    StableLmConfig,
)

from onebasis.core.errors import InvalidModel
from onebasis.engine.decoders import StepSizes, build_decoder
from onebasis.engine.self_check import SelfCheck
from onebasis.model.decoder import Decoder
from onebasis.model.loader import LoadedBase
from tests.model.families import COMMON, FAMILIES, NATIVE_FAMILIES, rounded_base, tiny_base
from tests.native import native_library

SIZES = COMMON | {"hidden_size": 64, "intermediate_size": 96}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
RIGHT = {
    "granite": lambda: GraniteConfig(**SIZES),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "mixtral": lambda: MixtralConfig(**SIZES, **EXPERTS),
}
WRONG = {
    "its convolutions keep a state": (
        lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
        "computes other logits than transformers",
    ),
    "its layers attend twice": (lambda: DiffLlamaConfig(**SIZES), "computes other logits than transformers"),
    "it has sinks": (lambda: GptOssConfig(**SIZES, **EXPERTS, head_dim=16), "asks for s_aux"),
    "it makes its own mask": (lambda: DogeConfig(**SIZES), "asks for attention_mask"),
    "it keeps the step from its attention": (lambda: StableLmConfig(**SIZES), "can't run it .*paged_step"),
}


def base_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.requires_grad_(requires_grad=False)
    return LoadedBase(model.eval().to(dtype), None, "tiny")


def build(base, *, kernels="torch", quantization=None, **sizes):
    presets = {"n_blocks": 8, "block_size": 16, "max_running": 2, "max_step_tokens": 16, "max_model_len": 64}
    return build_decoder(
        base,
        None,
        None,
        kernels=kernels,
        quantization=quantization,
        cuda_graphs=False,
        sizes=StepSizes(**(presets | sizes), n_threads=2),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", RIGHT)
def test_a_family_that_attends_as_others_do_is_served(family, dtype):
    assert isinstance(build(base_of(RIGHT[family](), dtype)), Decoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tested_families_pass(family):
    build(tiny_base(family))
    build(rounded_base(family))


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_the_tested_families_pass_natively(family, quantization):
    native_library()
    build(rounded_base(family), kernels="native", quantization=quantization)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reason", WRONG)
def test_a_family_that_would_be_computed_wrongly_is_refused(reason, dtype):
    config, message = WRONG[reason]
    with pytest.raises(InvalidModel, match=f"{message}.* engine=vllm"):
        build(base_of(config(), dtype))


def test_a_model_that_transformers_can_not_run_is_refused():
    base = tiny_base("llama")
    del base.model.model.layers[1].mlp.up_proj
    with pytest.raises(InvalidModel, match=r"LlamaForCausalLM: transformers can't run it \(.*up_proj"):
        build(base)


def test_a_model_of_numbers_that_are_none_is_refused():
    base = tiny_base("llama")
    base.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(InvalidModel, match="off by nan"):
        build(base)


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_blocks": 1},
        {"n_blocks": 2},
        {"n_blocks": 3},
        {"max_step_tokens": 1},
        {"max_step_tokens": 2},
        {"max_step_tokens": 3},
        {"max_step_tokens": 512},
        {"max_model_len": 2},
        {"max_model_len": 3},
        {"n_blocks": 1, "max_step_tokens": 1, "max_model_len": 2},
    ],
    ids=str,
)
def test_the_check_fits_every_size_of_server(sizes, kernels):
    if kernels == "native":
        native_library()
    build(rounded_base("llama"), kernels=kernels, **sizes)


@pytest.mark.parametrize("sizes", [{"n_blocks": 1, "block_size": 1}, {"block_size": 5}, {"block_size": 256}], ids=str)
def test_the_check_fits_every_size_of_block(sizes):
    build(tiny_base("llama"), **sizes)


def nothing(_batch):
    return False


class Noted:
    """Hands steps to a decoder, and spoils the logits of some."""

    path = "torch"

    def __init__(self, decoder, *, spoils, spoil):
        self.batches = []
        self._decoder = decoder
        self._spoils = spoils
        self._spoil = spoil

    def forward(self, batch):
        self.batches.append(batch)
        logits = self._decoder.forward(batch)
        return self._spoil(logits) if self._spoils(batch) else logits


def flipped(logits):
    return logits.flip(-1)


def no_numbers(logits):
    return logits * float("nan")


def checked(*, spoils=nothing, spoil=flipped, max_step_tokens=64):
    base = tiny_base("llama")
    check = SelfCheck(base, n_blocks=8, block_size=4, max_step_tokens=max_step_tokens, max_model_len=256)
    decoder = Noted(
        build(copy.deepcopy(base), block_size=4, max_step_tokens=max_step_tokens), spoils=spoils, spoil=spoil
    )
    check.run(decoder)
    return decoder.batches


@pytest.mark.parametrize("max_step_tokens", [8, 64])
def test_steps_are_of_every_kind(max_step_tokens):
    batches = checked(max_step_tokens=max_step_tokens)
    n_decodes = [0 if batch.decodes is None else batch.decodes.n_seqs for batch in batches]
    n_chunks = [len(batch.chunks) for batch in batches]
    kinds = list(zip(n_decodes, n_chunks, strict=True))
    assert kinds[0] == (0, 2), "two prompts together"
    assert (1, 1) in kinds, "one goes on in a chunk beside a single token of the other"
    assert kinds[-1] == (2, 0), "decodes alone"
    assert max(batch.token_ids.shape[0] for batch in batches) <= max_step_tokens
    assert any(chunk.kv_length > chunk.end - chunk.start for batch in batches for chunk in batch.chunks)
    blocks = {row // 4 for batch in batches for row in batch.kv_rows.tolist()}
    assert blocks == set(range(8)), "both fill their share of the cache"


@pytest.mark.parametrize(
    "spoils",
    [
        lambda batch: batch.decodes is None,
        lambda batch: not batch.chunks,
        lambda batch: batch.decodes is not None and batch.chunks,
    ],
    ids=["chunks alone", "decodes alone", "mixed"],
)
@pytest.mark.parametrize("spoil", [flipped, no_numbers])
def test_steps_that_are_wrong_are_noticed(spoils, spoil):
    with pytest.raises(InvalidModel, match="computes other logits"):
        checked(spoils=spoils, spoil=spoil)


def test_a_long_rope_is_no_obstacle():
    """Its angles are decided before (model/rope.py)."""
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 1e4}
    factors = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    build(base_of(LlamaConfig(**SIZES | {"rope_parameters": rope | factors})))
