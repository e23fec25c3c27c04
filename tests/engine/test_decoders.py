"""Which decoder a server gets."""

import logging

import pytest

from onebasis.core.errors import SetupError
from onebasis.engine.decoders import StepSizes, build_decoder
from onebasis.model.decoder import Decoder
from onebasis.model.native_decoder import NativeDecoder
from tests.model.families import rounded_base, tiny_base
from tests.native import native_library

SIZES = StepSizes(n_blocks=8, block_size=16, max_running=2, max_step_tokens=16, max_model_len=64, n_threads=2)


def decoder_of(base, kernels, quantization=None):
    return build_decoder(base, None, None, kernels=kernels, quantization=quantization, cuda_graphs=True, sizes=SIZES)


@pytest.mark.parametrize("kernels", ["auto", "native"])
def test_a_model_that_fits_gets_the_compiled_step(kernels):
    native_library()
    assert isinstance(decoder_of(rounded_base("llama"), kernels), NativeDecoder)


def test_torch_can_be_demanded():
    assert isinstance(decoder_of(rounded_base("llama"), "torch"), Decoder)


def test_a_model_that_does_not_fit_falls_back_and_says_why(caplog):
    caplog.set_level(logging.INFO)
    assert isinstance(decoder_of(tiny_base("llama"), "auto"), Decoder)
    assert "the step runs in torch: dtype is torch.float32, not bfloat16" in caplog.text


def test_a_machine_without_a_compiler_falls_back_and_says_why(caplog, monkeypatch, tmp_path):
    native_library()
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(decoder_of(rounded_base("llama"), "auto"), Decoder)
    assert "the step runs in torch: no C++ compiler found" in caplog.text


def test_what_is_demanded_and_can_not_run_is_refused():
    with pytest.raises(
        SetupError, match=r"kernels=native can't run here: Gemma2ForCausalLM is not one of .*kernels=auto"
    ):
        decoder_of(rounded_base("gemma2"), "native")


@pytest.mark.parametrize(
    ("base", "kernels", "reason"),
    [
        (tiny_base("llama"), "auto", "dtype is torch.float32, not bfloat16"),
        (rounded_base("llama"), "torch", "kernels=torch"),
    ],
)
def test_a_quantization_that_can_not_be_honoured_is_refused(base, kernels, reason):
    with pytest.raises(SetupError, match=f"quantization=int8 needs the native kernels, .*{reason}; leave it out"):
        decoder_of(base, kernels, "int8")
