"""Puts the server's parts together. The one place that knows which engine runs."""

import logging
import time
from dataclasses import dataclass

import torch
from fastapi import FastAPI

from onebasis import __version__
from onebasis.api.app import create_app
from onebasis.api.deps import Services
from onebasis.coefficients.arena import Arena
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.store import TaskStore
from onebasis.core.config import MIB, ServeConfig
from onebasis.core.errors import SetupError
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.interface import EngineLimits
from onebasis.engine.loop import EngineLoop
from onebasis.engine.runner import Runner, StepDecoder
from onebasis.engine.scheduler import Scheduler
from onebasis.kernels.cpu.build import CannotBuild, build_library
from onebasis.kernels.cpu.library import Library
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.decode_graphs import CudaGraphs, DecodeGraphs
from onebasis.model.decoder import Decoder
from onebasis.model.factors import Basis, checked_fingerprint, load_basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase, load_base
from onebasis.model.native_decoder import NativeDecoder, TaskTable, why_not
from onebasis.model.text import ModelText
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready to answer; `close` it when HTTP has ended."""

    app: FastAPI
    engine: EngineLoop
    store: TaskStore

    def close(self) -> None:
        """Stop the engine, close the registry's database."""
        self.engine.stop()
        self.store.close()


def build_server(config: ServeConfig) -> Server:
    """Load everything, start the engine.

    Raises:
        SetupError: model, basis, store or a size does not fit; the message says what to change.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype: torch.dtype = getattr(torch, config.dtype)
    device = _device(config)
    base = load_base(config.model, dtype=dtype, device=device, name=config.served_model_name)
    basis = None if config.basis is None else load_basis(config.basis, dtype=dtype, device=device)
    fingerprint = checked_fingerprint(base.model, basis)
    n_blocks = _n_blocks(config, base, dtype)
    limits = EngineLimits(
        max_model_len=_max_model_len(config, base, n_blocks),
        n_vocab=int(base.text_config.vocab_size),
        max_sequences=config.max_running + config.max_waiting,
    )
    store = TaskStore(config.store)
    registry = TaskRegistry(store, None if basis is None else basis.spec, base.name)
    registry.load()
    metrics = Metrics(
        model_name=base.name,
        version=__version__,
        basis="" if basis is None else basis.spec.digest,
        base_fingerprint=fingerprint,
        cache=CacheConfig(config.block_size, n_blocks, config.dtype),
        max_model_len=limits.max_model_len,
        engine=lambda: engine.snapshot(),
        registry=registry.snapshot,
    )
    engine = _build_engine(config, base, basis, n_blocks=n_blocks, limits=limits, metrics=metrics)
    services = Services(
        engine=engine,
        registry=registry,
        basis=None if basis is None else basis.spec,
        text=ModelText(base.tokenizer, base.eos_token_ids, max_tokens=limits.max_model_len),
        metrics=metrics,
        base_name=base.name,
        started_at=int(time.time()),
        fingerprint=_system_fingerprint(fingerprint, basis),
        max_body_bytes=config.max_body_bytes,
    )
    engine.start()
    n_tasks = registry.snapshot().n_registered
    _log.info("ready: %s in %s, %d tasks, %d KV blocks", base.name, config.dtype, n_tasks, n_blocks)
    return Server(create_app(services), engine, store)


def _build_engine(
    config: ServeConfig,
    base: LoadedBase,
    basis: Basis | None,
    *,
    n_blocks: int,
    limits: EngineLimits,
    metrics: Metrics,
) -> EngineLoop:
    """The native engine over `base`, whose layers it takes over."""
    device = base.model.device
    arena = None if basis is None else Arena(basis.spec, n_slots=_n_slots(config, basis), device=device)
    decoder = _native_decoder(config, base, basis, arena, n_blocks, limits) or _torch_decoder(
        config, base, basis, arena, n_blocks, limits
    )
    pool = BlockPool(n_blocks, config.block_size)
    return EngineLoop(
        scheduler=Scheduler(pool, max_running=config.max_running, max_step_tokens=config.max_step_tokens),
        runner=Runner(decoder, arena, block_size=config.block_size, device=device),
        limits=limits,
        max_in_flight=config.max_running + config.max_waiting,
        max_resident_tasks=0 if arena is None else arena.n_slots,
        metrics=metrics,
    )


def _native_decoder(
    config: ServeConfig, base: LoadedBase, basis: Basis | None, arena: Arena | None, n_blocks: int, limits: EngineLimits
) -> NativeDecoder | None:
    """The compiled decoder; None where it can't run and was not demanded."""
    if config.kernels == "torch":
        return None
    try:
        reason = why_not(base, config.block_size)
        library = Library(build_library()) if reason is None else None
    except (CannotBuild, OSError, RuntimeError) as error:
        reason, library = str(error), None
    if library is None:
        if config.kernels == "native":
            raise SetupError(f"kernels=native can't run here: {reason}; use kernels=auto to fall back to torch")
        _log.info("the step runs in torch: %s", reason)
        return None
    tasks = None if arena is None else TaskTable(arena.table, arena.site_offsets)
    return NativeDecoder(
        base,
        basis,
        tasks,
        library,
        n_blocks=n_blocks,
        max_step_tokens=config.max_step_tokens,
        max_model_len=limits.max_model_len,
    )


def _torch_decoder(
    config: ServeConfig, base: LoadedBase, basis: Basis | None, arena: Arena | None, n_blocks: int, limits: EngineLimits
) -> StepDecoder:
    """The decoder that any model and device can have; on a GPU with its decode steps recorded."""
    dtype, device = base.model.dtype, base.model.device
    step = StepTasks(0 if arena is None else arena.base_row)
    adapt_model(base.model, basis, {} if arena is None else arena.site_cores, step)
    cache = KVCache(base.text_config, n_blocks=n_blocks, block_size=config.block_size, dtype=dtype, device=device)
    decoder = Decoder(base, cache, step)
    if not (config.cuda_graphs and decoder.can_be_recorded):
        return decoder
    sizes = {"max_seqs": config.max_running, "max_model_len": limits.max_model_len}
    try:
        return DecodeGraphs(decoder, **sizes, with_tasks=basis is not None, record=CudaGraphs())
    except RuntimeError as error:
        _log.warning("decode steps run without CUDA graphs: %s", error)
        return decoder


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


def _n_slots(config: ServeConfig, basis: Basis) -> int:
    """Rows of the arena: what the budget holds, and one for every sequence that can run in any case."""
    row_bytes = basis.spec.n_core_numbers * torch.float32.itemsize
    return max(config.max_running, config.arena_mib * MIB // row_bytes)


def _n_blocks(config: ServeConfig, base: LoadedBase, dtype: torch.dtype) -> int:
    block_bytes = KVCache.block_bytes(base.text_config, block_size=config.block_size, dtype=dtype)
    n_blocks = config.kv_cache_mib * MIB // block_bytes
    if n_blocks < 1:
        raise SetupError(f"kv_cache_mib {config.kv_cache_mib} holds no block of {block_bytes} bytes; raise it")
    return n_blocks


def _max_model_len(config: ServeConfig, base: LoadedBase, n_blocks: int) -> int:
    """The longest sequence: never longer than the model or the cache allow."""
    trained = int(base.text_config.max_position_embeddings)
    held = n_blocks * config.block_size
    if config.max_model_len is None:
        return min(trained, held)
    if config.max_model_len > min(trained, held):
        raise SetupError(
            f"max_model_len {config.max_model_len}: the model allows {trained}, the KV cache holds {held}; "
            f"lower it or raise kv_cache_mib"
        )
    return config.max_model_len


def _system_fingerprint(base: str, basis: Basis | None) -> str:
    parts = [__version__, base.removeprefix("sha256:")[:8]]
    if basis is not None:
        parts.append(basis.spec.digest.removeprefix("sha256:")[:8])
    return "onebasis-" + "-".join(parts)
