"""Puts the server's parts together. The one place that knows which engine runs."""

import logging
import time
from dataclasses import dataclass
from functools import partial

import torch
from fastapi import FastAPI

from onebasis import __version__
from onebasis.api.app import create_app
from onebasis.api.deps import EdgeLimits, Identity, Services
from onebasis.api.drain import Drain
from onebasis.api.tool_formats import TOOL_FORMATS, ToolFormat, detect_tool_parser
from onebasis.coefficients.arena import Arena
from onebasis.coefficients.blend import Blends
from onebasis.coefficients.follower import Follower
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.residual_cache import ResidualCache
from onebasis.coefficients.store import TaskStore
from onebasis.core.config import MIB, ServeConfig
from onebasis.core.errors import SetupError
from onebasis.core.residual import ResidualLimits
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.constraint import GrammarCompiler
from onebasis.engine.decoders import StepSizes, build_decoder
from onebasis.engine.interface import EngineLimits
from onebasis.engine.ledger import QueueLimits
from onebasis.engine.loop import EngineLoop
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.runner import Runner
from onebasis.engine.scheduler import Scheduler
from onebasis.identity.audit import AuditLog
from onebasis.identity.authenticator import Authenticator
from onebasis.identity.key_file import KeyFile
from onebasis.identity.key_store import KeyStore
from onebasis.identity.quota import QUOTA_NAMES, Quota
from onebasis.identity.quota_store import QuotaStore
from onebasis.identity.rates import RateLimits
from onebasis.model.factors import Basis, checked_fingerprint, load_basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase, load_base
from onebasis.model.text import ModelText
from onebasis.storage.database import Database
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig
from onebasis.telemetry.traces import Traces, otlp_traces

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready to answer; `close` it when HTTP has ended."""

    app: FastAPI
    engine: EngineLoop
    follower: Follower
    database: Database
    drain: Drain
    traces: Traces | None

    def close(self) -> None:
        """Stop the threads, close the database, send the last spans."""
        self.engine.stop()
        self.follower.stop()
        self.database.close()
        if self.traces is not None:
            self.traces.close()


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
        default_timeout_s=config.default_timeout_s,
        max_timeout_s=config.max_timeout_s,
    )
    database = Database(config.store)
    residual_limits = ResidualLimits(config.max_residual_rank, config.residual_mib * MIB // dtype.itemsize)
    spec = None if basis is None else basis.spec
    registry = TaskRegistry(TaskStore(database), spec, base.name, residual_limits=residual_limits)
    begun_s = time.monotonic()
    registry.follow()
    _log.info("registry: %d tasks read in %.2f s", registry.snapshot().n_registered, time.monotonic() - begun_s)
    follower = Follower(registry)
    traces = _traces(config, base.name)
    metrics = Metrics(
        model_name=base.name,
        version=__version__,
        basis="" if basis is None else basis.spec.digest,
        base_fingerprint=fingerprint,
        cache=CacheConfig(config.block_size, n_blocks, config.dtype, config.prefix_cache),
        max_model_len=limits.max_model_len,
        engine=lambda: engine.snapshot(),
        registry=registry.snapshot,
    )
    engine = _build_engine(
        config, base, basis, fingerprint=fingerprint, n_blocks=n_blocks, limits=limits, metrics=metrics, traces=traces
    )
    services = Services(
        engine=engine,
        registry=registry,
        blends=Blends(registry, spec, residual_limits),
        basis=spec,
        basis_path=config.basis,
        text=ModelText(base.tokenizer, base.eos_token_ids, max_tokens=limits.max_model_len),
        metrics=metrics,
        base_name=base.name,
        started_at=int(time.time()),
        fingerprint=_system_fingerprint(fingerprint, basis),
        identity=_build_identity(config, database),
        edge=EdgeLimits(
            max_body_bytes=config.max_body_bytes,
            max_json_bytes=config.max_json_bytes,
            max_header_bytes=config.max_header_bytes,
            cors_origin=tuple(config.cors_origin),
            protect_metrics=config.protect_metrics,
        ),
        lora_root=config.lora_root,
        drain=Drain(metrics),
        traces=traces,
        grammars=_grammars(base, limits),
        tool_format=_tool_format(config, base),
    )
    engine.start()
    follower.start()
    n_tasks = registry.snapshot().n_registered
    _log.info("ready: %s in %s, %d tasks, %d KV blocks", base.name, config.dtype, n_tasks, n_blocks)
    return Server(create_app(services), engine, follower, database, services.drain, traces)


def _build_identity(config: ServeConfig, database: Database) -> Identity:
    """Keys and quotas over the database that also holds the tasks. Raises InvalidKeyFile."""
    key_file = None if config.api_keys_file is None else KeyFile(config.api_keys_file)
    keys = KeyStore(database)
    quotas = QuotaStore(database, Quota(**{name: getattr(config, f"tenant_{name}") for name in QUOTA_NAMES}))
    authenticator = Authenticator(keys, quotas, key_file=key_file, needs_key=config.require_auth)
    return Identity(authenticator, keys, quotas, AuditLog(database), RateLimits())


def _build_engine(
    config: ServeConfig,
    base: LoadedBase,
    basis: Basis | None,
    *,
    fingerprint: str,
    n_blocks: int,
    limits: EngineLimits,
    metrics: Metrics,
    traces: Traces | None,
) -> EngineLoop:
    """The native engine over `base`, whose layers it takes over."""
    device = base.model.device
    arena = None if basis is None else Arena(basis.spec, n_slots=_n_slots(config, basis), device=device)
    residuals = ResidualCache(limit_bytes=config.residual_mib * MIB, dtype=base.model.dtype, device=device)
    decoder = build_decoder(
        base,
        basis,
        arena,
        kernels=config.kernels,
        cuda_graphs=config.cuda_graphs,
        sizes=StepSizes(
            n_blocks=n_blocks,
            block_size=config.block_size,
            max_running=config.max_running,
            max_step_tokens=config.max_step_tokens,
            max_model_len=limits.max_model_len,
        ),
    )
    pool = BlockPool(n_blocks, config.block_size)
    basis_digest = None if basis is None else basis.spec.digest
    prefix_cache = PrefixCache(pool, base=fingerprint, basis=basis_digest) if config.prefix_cache else None
    scheduler = Scheduler(
        pool,
        max_running=config.max_running,
        max_step_tokens=config.max_step_tokens,
        max_prefill_tokens=config.max_prefill_tokens,
        prefix_cache=prefix_cache,
    )
    return EngineLoop(
        scheduler=scheduler,
        runner=Runner(
            decoder,
            arena,
            residuals,
            block_size=config.block_size,
            device=device,
            on_apply=partial(metrics.observe_reconstruct_apply, decoder.path),
        ),
        limits=limits,
        queue_limits=_queue_limits(config),
        max_resident_tasks=0 if arena is None else arena.n_slots,
        stall_s=config.stall_s,
        metrics=metrics,
        traces=traces,
    )


def _traces(config: ServeConfig, model_name: str) -> Traces | None:
    if config.otlp_endpoint is None:
        return None
    return otlp_traces(config.otlp_endpoint, model_name=model_name, version=__version__)


def _queue_limits(config: ServeConfig) -> QueueLimits:
    share = config.max_waiting // 2 if config.max_waiting_per_tenant is None else config.max_waiting_per_tenant
    return QueueLimits(config.max_running, config.max_waiting, max_waiting_per_tenant=share)


def _grammars(base: LoadedBase, limits: EngineLimits) -> GrammarCompiler | None:
    if not base.tokenizer.is_fast:
        return None
    return GrammarCompiler(base.tokenizer, n_vocab=limits.n_vocab, eos_token_ids=base.eos_token_ids)


def _tool_format(config: ServeConfig, base: LoadedBase) -> ToolFormat | None:
    parser = config.tool_parser or detect_tool_parser(str(base.tokenizer.chat_template))
    return None if parser is None else TOOL_FORMATS[parser]


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
