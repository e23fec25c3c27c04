"""The native engine: model, kernels, KV cache and scheduler in this process."""

from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from onebasis.coefficients.arena import Arena
from onebasis.coefficients.residual_cache import ResidualCache
from onebasis.core.config import MIB, ServeConfig
from onebasis.core.errors import SetupError
from onebasis.core.residual import ResidualLimits
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.decoders import StepSizes, build_decoder
from onebasis.engine.loop import EngineLoop
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.runner import Runner
from onebasis.engine.scheduler import Scheduler
from onebasis.model.factors import Basis, checked_fingerprint, load_basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase, check_layer_types, load_base
from onebasis.model.rope import settle_longrope
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig
from onebasis.telemetry.traces import Traces
from onebasis.wiring.assembly import ServedModel, StepBudget, engine_limits, n_task_rows, queue_limits, step_budget

_SPREADING: Final = ("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend")
_BLOCK_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class NativeAssembly:
    """Implements `Assembly`."""

    config: ServeConfig
    base: LoadedBase
    basis: Basis | None
    model: ServedModel

    def build(self, metrics: Metrics, traces: Traces | None) -> EngineLoop:
        """The native engine over the base, whose layers it takes over."""
        config, base, basis, cache = self.config, self.base, self.basis, self.model.cache
        device = base.model.device
        arena = None if basis is None else Arena(basis.spec, n_slots=n_task_rows(config, basis.spec), device=device)
        residuals = ResidualCache(limit_bytes=config.residual_mib * MIB, dtype=base.model.dtype, device=device)
        decoder = build_decoder(
            base,
            basis,
            arena,
            kernels=config.kernels,
            quantization=config.quantization,
            cuda_graphs=config.cuda_graphs,
            sizes=StepSizes(
                n_blocks=cache.n_blocks,
                block_size=cache.block_size,
                max_running=config.max_running,
                max_step_tokens=max(step_budget(config, path).n_tokens for path in ("native", "torch")),
                max_model_len=self.model.limits.max_model_len,
                n_threads=torch.get_num_threads(),
            ),
        )
        if decoder.path == "native":
            torch.set_num_threads(1)  # what is left to torch is small, and its threads would wait for work on our cores
        return EngineLoop(
            scheduler=self._scheduler(step_budget(config, decoder.path)),
            runner=Runner(
                decoder,
                arena,
                residuals,
                block_size=cache.block_size,
                device=device,
                on_apply=partial(metrics.observe_reconstruct_apply, decoder.path),
            ),
            limits=self.model.limits,
            queue_limits=queue_limits(config),
            max_resident_tasks=0 if arena is None else arena.n_slots,
            stall_s=config.stall_s,
            metrics=metrics,
            traces=traces,
        )

    def close(self) -> None:
        """Nothing but memory is held."""

    def _scheduler(self, budget: StepBudget) -> Scheduler:
        config, model = self.config, self.model
        pool = BlockPool(model.cache.n_blocks, model.cache.block_size)
        basis_digest = None if model.basis is None else model.basis.digest
        prefix_cache = PrefixCache(pool, base=model.fingerprint, basis=basis_digest) if config.prefix_cache else None
        return Scheduler(
            pool,
            max_running=config.max_running,
            max_step_tokens=budget.n_tokens,
            max_prefill_tokens=budget.n_prefill,
            prefix_cache=prefix_cache,
        )


def load_native(config: ServeConfig) -> NativeAssembly:
    """Load base and basis onto the device.

    Raises:
        SetupError: model, basis or a size does not fit; the message says what to change.
    """
    _check_one_process(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype: torch.dtype = getattr(torch, config.dtype)
    device = _device(config)
    base = load_base(config.model, dtype=dtype, device=device, name=config.served_model_name)
    check_layer_types(base)
    basis = None if config.basis is None else load_basis(config.basis, dtype=dtype, device=device)
    fingerprint = checked_fingerprint(base.model, basis)
    block_size = config.block_size or _BLOCK_SIZE
    n_blocks = _n_blocks(config, base, block_size)
    max_model_len = _max_model_len(config, base, n_blocks * block_size)
    settle_longrope(base.model, max_model_len=max_model_len)
    model = ServedModel(
        name=base.name,
        tokenizer=base.tokenizer,
        eos_token_ids=base.eos_token_ids,
        basis=None if basis is None else basis.spec,
        fingerprint=fingerprint,
        limits=engine_limits(config, max_model_len=max_model_len, n_vocab=int(base.text_config.vocab_size)),
        cache=CacheConfig(block_size, n_blocks, config.dtype, config.prefix_cache),
        residuals=ResidualLimits(config.max_residual_rank, config.residual_mib * MIB // dtype.itemsize),
    )
    return NativeAssembly(config, base, basis, model)


def _check_one_process(config: ServeConfig) -> None:
    """Raises SetupError for options that spread the model over several processes."""
    for name in _SPREADING:
        if getattr(config, name) != ServeConfig.model_fields[name].default:
            raise SetupError(f"{name} is for engine=vllm; the native engine computes in one process")


def _device(config: ServeConfig) -> torch.device:
    """The device, checked by putting a number on it."""
    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(
            f"device {config.device!r} can't be used ({reason}); use cpu, or cuda where there is one"
        ) from error
    return device


def _n_blocks(config: ServeConfig, base: LoadedBase, block_size: int) -> int:
    block_bytes = KVCache.block_bytes(base.text_config, block_size=block_size, dtype=base.model.dtype)
    n_blocks = config.kv_cache_mib * MIB // block_bytes
    if n_blocks < 1:
        raise SetupError(f"kv_cache_mib {config.kv_cache_mib} holds no block of {block_bytes} bytes; raise it")
    return n_blocks


def _max_model_len(config: ServeConfig, base: LoadedBase, held: int) -> int:
    """The longest sequence: never longer than the model or the cache, which holds `held` tokens, allow."""
    trained = int(base.text_config.max_position_embeddings)
    if config.max_model_len is None:
        return min(trained, held)
    if config.max_model_len > min(trained, held):
        raise SetupError(
            f"max_model_len {config.max_model_len}: the model allows {trained}, the KV cache holds {held}; "
            f"lower it or raise kv_cache_mib"
        )
    return config.max_model_len
