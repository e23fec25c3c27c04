"""The engine over vLLM: its processes hold model, basis and KV cache."""

import gc
from dataclasses import dataclass
from typing import Any, Final

import torch

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.config import MIB, ServeConfig
from onebasis.core.errors import SetupError
from onebasis.core.residual import ResidualLimits
from onebasis.engine.vllm.engine import VllmEngine
from onebasis.engine.vllm.llm import Llm, device_type
from onebasis.model.factors import checked_fingerprint, load_basis
from onebasis.model.loader import LoadedBase, load_base
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig
from onebasis.telemetry.traces import Traces
from onebasis.vllm_plugin.control import engine_arguments
from onebasis.wiring.assembly import ServedModel, engine_limits, n_task_rows, queue_limits, step_budget

MAX_LOGPROBS: Final = 20

_INSTEAD: Final = {
    "kernels": "vLLM has its own; leave it out",
    "quantization": "vLLM takes checkpoints that are quantized already; leave it out",
    "threads": "set VLLM_CPU_OMP_THREADS_BIND in the environment, which vLLM's workers read",
    "max_prefill_tokens": "vLLM plans its steps itself; max_step_tokens bounds them",
    "max_residual_rank": "tasks with residuals need engine=native; leave it out, or set it to 0",
    "residual_mib": "tasks with residuals need engine=native; leave it out",
}
"""Options that vLLM can't honour, and what to do."""


@dataclass(frozen=True, slots=True)
class VllmAssembly:
    """Implements `Assembly`."""

    config: ServeConfig
    llm: Llm
    n_rows: int
    model: ServedModel

    def build(self, metrics: Metrics, traces: Traces | None) -> VllmEngine:
        """The engine over the vLLM that runs."""
        return VllmEngine(
            self.llm,
            limits=self.model.limits,
            queue_limits=queue_limits(self.config),
            max_resident_tasks=self.n_rows,
            stall_s=self.config.stall_s,
            metrics=metrics,
            traces=traces,
        )

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.close()


def load_vllm(config: ServeConfig) -> VllmAssembly:
    """Check base and basis against each other, then have vLLM load them.

    Raises:
        SetupError: an option, the model, the basis or vLLM itself does not fit; the message says what to change.
    """
    _check_options(config)
    base, basis, fingerprint = _checked_base(config)
    n_rows = 0 if basis is None else n_task_rows(config, basis)
    llm = Llm(_arguments(config, n_rows), n_rows=n_rows)
    model = ServedModel(
        name=base.name,
        tokenizer=base.tokenizer,
        eos_token_ids=base.eos_token_ids,
        basis=basis,
        fingerprint=fingerprint,
        limits=engine_limits(config, max_model_len=llm.max_model_len, n_vocab=int(base.text_config.vocab_size)),
        cache=CacheConfig(llm.block_size, llm.n_blocks, config.dtype, config.prefix_cache),
        residuals=ResidualLimits(0, 0),
    )
    return VllmAssembly(config, llm, n_rows, model)


def _check_options(config: ServeConfig) -> None:
    """Raises SetupError for options that would have no effect."""
    presets = {name: field.default for name, field in ServeConfig.model_fields.items()}
    allowed = {name: (presets[name],) for name in _INSTEAD} | {"max_residual_rank": (presets["max_residual_rank"], 0)}
    for name, instead in _INSTEAD.items():
        value = getattr(config, name)
        if value not in allowed[name]:
            raise SetupError(f"{name} {value}: engine=vllm can't honour it; {instead}")
    if config.basis is not None and config.basis.resolve().parent == config.model.resolve():
        raise SetupError(
            f"basis {config.basis} lies in the model's folder, where vLLM takes every safetensors file for weights; "
            f"move it elsewhere"
        )


def _checked_base(config: ServeConfig) -> tuple[LoadedBase, BasisSpec | None, str]:
    """Tokenizer, configuration and fingerprint of the base. The weights are read for the fingerprint and let go:
    vLLM's workers have their own.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    device = torch.device("cpu")
    base = load_base(config.model, dtype=dtype, device=device, name=config.served_model_name)
    basis = None if config.basis is None else load_basis(config.basis, dtype=dtype, device=device)
    fingerprint = checked_fingerprint(base.model, basis)
    base.model.to("meta")
    gc.collect()
    return base, None if basis is None else basis.spec, fingerprint


def _arguments(config: ServeConfig, n_rows: int) -> dict[str, Any]:
    """Of vLLM's AsyncEngineArgs."""
    arguments = engine_arguments(config.basis, n_rows)  # first: it checks that vLLM is there
    _check_device(config)
    return arguments | {
        "model": str(config.model),
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "distributed_executor_backend": config.distributed_executor_backend,
        "max_model_len": -1 if config.max_model_len is None else config.max_model_len,  # -1: what the cache holds
        "kv_cache_memory_bytes": config.kv_cache_mib * MIB,
        "block_size": config.block_size,
        "enable_prefix_caching": config.prefix_cache,
        "max_num_seqs": config.max_running,
        "max_num_batched_tokens": step_budget(config, "vllm").n_tokens,
        "compilation_config": {} if config.cuda_graphs else {"cudagraph_mode": "NONE"},
        "structured_outputs_config": {"backend": "guidance"},
        "max_logprobs": MAX_LOGPROBS,
        "generation_config": "vllm",  # what a request does not say is decided here, not in the model's folder
        "enable_logging_iteration_details": True,  # what the metrics tell of a step
        "disable_log_stats": True,  # vLLM's own; ours has a logger of its own
    }


def _check_device(config: ServeConfig) -> None:
    """Raises SetupError when the installed vLLM runs elsewhere, or can't do there what was asked for."""
    if config.device != device_type():
        raise SetupError(
            f"device {config.device!r}: the installed vLLM runs on {device_type()!r}; pass that, or another vLLM"
        )
    if config.device == "cpu" and config.pipeline_parallel_size > 1:
        raise SetupError(
            "pipeline_parallel_size: vLLM's stages fail at their first step on a CPU; use tensor_parallel_size"
        )
    if config.device == "cpu" and config.distributed_executor_backend == "ray":
        raise SetupError("distributed_executor_backend ray: vLLM's workers on Ray need GPUs; leave it out")
