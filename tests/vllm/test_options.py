"""`serve --engine vllm` refuses options that would have no effect, before anything is loaded."""

from pathlib import Path

import pytest

from onebasis.core.config import ServeConfig
from onebasis.core.errors import SetupError
from onebasis.wiring import build_server

NOWHERE = Path("/nowhere/model")


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("kernels", "torch", "vLLM has its own"),
        ("quantization", "int8", "quantized already"),
        ("threads", 2, "VLLM_CPU_OMP_THREADS_BIND"),
        ("max_prefill_tokens", 128, "max_step_tokens"),
        ("max_residual_rank", 4, "engine=native"),
        ("residual_mib", 1, "engine=native"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(option, value, instead):
    config = ServeConfig(engine="vllm", model=NOWHERE, **{option: value})
    with pytest.raises(SetupError, match=f"{option} {value}: engine=vllm can't honour it; .*{instead}"):
        build_server(config)


def test_the_device_is_that_of_the_installed_vllm(tiny):
    config = ServeConfig(engine="vllm", model=tiny.folder, device="cuda:0")
    with pytest.raises(SetupError, match="device 'cuda:0': the installed vLLM runs on 'cpu'"):
        build_server(config)


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("pipeline_parallel_size", 2, "fail at their first step on a CPU; use tensor_parallel_size"),
        ("distributed_executor_backend", "ray", "need GPUs"),
    ],
)
def test_what_vllm_has_for_gpus_alone_is_refused_on_a_cpu(option, value, instead, tiny):
    with pytest.raises(SetupError, match=f"{option}.*{instead}"):
        build_server(ServeConfig(engine="vllm", model=tiny.folder, **{option: value}))


def test_a_basis_among_the_weights_is_refused(tiny, tmp_path):
    config = ServeConfig(engine="vllm", model=tiny.folder, basis=tiny.folder / "b.basis.safetensors")
    with pytest.raises(SetupError, match="lies in the model's folder, where vLLM takes every safetensors file"):
        build_server(config)
