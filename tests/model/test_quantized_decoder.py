"""The compiled step on 8-bit weights, against transformers on the very weights that the codes and scales say."""

import copy

import pytest
import torch
from torch import nn

from onebasis.kernels.cpu.quantize import quantize_rows
from tests.model.families import NATIVE_FAMILIES, rounded_base
from tests.model.stepping import Stepper
from tests.model.tasks import merged_copy, random_task
from tests.model.test_families import bare_arrivals
from tests.model.test_native_decoder import (
    assert_as_exact_as_bfloat16,
    assert_each_follows_its_own,
    assert_the_same_bits_alone,
    mixed_arrivals,
    rounded_basis,
)
from tests.native import native_library


@pytest.fixture(scope="module")
def library():
    return native_library()


def dequantized(model):
    """A copy in float32 whose linear layers have the weights that their codes stand for; its embeddings stay."""
    exact = copy.deepcopy(model).float()
    for layer in exact.modules():
        if isinstance(layer, nn.Linear):
            codes, scales = quantize_rows(layer.weight)
            layer.weight = nn.Parameter(codes * scales.unsqueeze(1))  # not the embeddings any more
    return exact


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_bare_sequences_follow_the_quantized_weights(family, library):
    base = rounded_base(family)
    exact = dequantized(base.model)
    for trace in Stepper(base, library=library, quantization="int8").run(bare_arrivals()).values():
        assert_as_exact_as_bfloat16(trace, copy.deepcopy(exact).bfloat16(), exact)


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_tasks_are_added_to_the_quantized_weights(family, library, tmp_path):
    base = rounded_base(family)
    exact = dequantized(base.model)
    basis = rounded_basis(base, tmp_path, k=5)
    tasks = [random_task(basis.spec, seed) for seed in range(3)]
    models = [*(merged_copy(exact, basis, task) for task in tasks), exact]
    arrivals = mixed_arrivals([*(task.resolved for task in tasks), None])
    traces = Stepper(base, basis, library=library, quantization="int8").run(arrivals)
    assert_each_follows_its_own(traces, models)


def test_a_sequence_has_the_same_bits_alone_and_among_others(library, tmp_path):
    base = rounded_base("llama")
    basis = rounded_basis(base, tmp_path)
    arrivals = mixed_arrivals([random_task(basis.spec, 1).resolved, None])
    assert_the_same_bits_alone(base, basis, arrivals, library=library, quantization="int8")


def test_weights_that_8_bits_hold_exactly_give_the_bits_of_bfloat16(library, tmp_path):
    base = rounded_base("llama")
    for layer in base.model.modules():
        if isinstance(layer, nn.Linear):
            codes = torch.arange(layer.weight.numel()).view_as(layer.weight).mul(37) % 255 - 127  # every one of them
            codes[:, 0] = 127  # so that the scale is a power of two, by which a sum is multiplied exactly
            layer.weight = nn.Parameter((codes / 1024).bfloat16())
    basis = rounded_basis(base, tmp_path)
    arrivals = mixed_arrivals([random_task(basis.spec, 1).resolved, None])
    plain = Stepper(copy.deepcopy(base), basis, library=library).run(arrivals)
    quantized = Stepper(base, basis, library=library, quantization="int8").run(arrivals)
    for request_id, trace in plain.items():
        assert torch.equal(quantized[request_id].logits, trace.logits)
