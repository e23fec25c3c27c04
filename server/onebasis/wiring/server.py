"""One server out of its parts."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import FastAPI

from onebasis import __version__
from onebasis.api.app import create_app
from onebasis.api.deps import EdgeLimits, Identity, Services
from onebasis.api.drain import Drain
from onebasis.api.tool_formats import TOOL_FORMATS, ToolFormat, detect_tool_parser
from onebasis.coefficients.blend import Blends
from onebasis.coefficients.follower import Follower
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.store import TaskStore
from onebasis.core.config import ServeConfig
from onebasis.engine.constraint import GrammarCompiler
from onebasis.identity.audit import AuditLog
from onebasis.identity.authenticator import Authenticator
from onebasis.identity.key_file import KeyFile
from onebasis.identity.key_store import KeyStore
from onebasis.identity.quota import QUOTA_NAMES, Quota
from onebasis.identity.quota_store import QuotaStore
from onebasis.identity.rates import RateLimits
from onebasis.model.text import ModelText
from onebasis.storage.database import Database
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.traces import Traces, otlp_traces
from onebasis.wiring.assembly import Assembly, OwnedEngine, ServedModel
from onebasis.wiring.native import load_native

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready to answer; `close` it when HTTP has ended."""

    app: FastAPI
    engine: OwnedEngine
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
    with ExitStack() as undo:
        assembly = _load(config)
        undo.callback(assembly.close)
        server = _assemble(config, assembly)
        undo.pop_all()
    server.engine.start()
    server.follower.start()
    return server


def _load(config: ServeConfig) -> Assembly:
    if config.engine == "native":
        return load_native(config)
    from onebasis.wiring.vllm import load_vllm  # imports vLLM, which is large and need not be installed

    return load_vllm(config)


def _assemble(config: ServeConfig, assembly: Assembly) -> Server:
    """The server, with its threads not started yet."""
    model = assembly.model
    database = Database(config.store)
    registry = TaskRegistry(TaskStore(database), model.basis, model.name, residual_limits=model.residuals)
    begun_s = time.monotonic()
    registry.follow()
    n_tasks = registry.snapshot().n_registered
    _log.info("registry: %d tasks read in %.2f s", n_tasks, time.monotonic() - begun_s)
    traces = _traces(config, model.name)
    metrics = Metrics(
        model_name=model.name,
        version=__version__,
        basis="" if model.basis is None else model.basis.digest,
        base_fingerprint=model.fingerprint,
        cache=model.cache,
        max_model_len=model.limits.max_model_len,
        engine=lambda: engine.snapshot(),
        registry=registry.snapshot,
    )
    engine = assembly.build(metrics, traces)
    services = Services(
        engine=engine,
        registry=registry,
        blends=Blends(registry, model.basis, model.residuals),
        basis=model.basis,
        basis_path=config.basis,
        text=ModelText(model.tokenizer, model.eos_token_ids, max_tokens=model.limits.max_model_len),
        metrics=metrics,
        base_name=model.name,
        started_at=int(time.time()),
        fingerprint=_system_fingerprint(model),
        identity=_build_identity(config, database),
        edge=_edge_limits(config),
        lora_root=config.lora_root,
        drain=Drain(metrics),
        traces=traces,
        grammars=_grammars(model),
        tool_format=_tool_format(config, model),
    )
    _log.info("ready: %s in %s, %d tasks, %d KV blocks", model.name, config.dtype, n_tasks, model.cache.n_blocks)
    return Server(create_app(services), engine, Follower(registry), database, services.drain, traces)


def _edge_limits(config: ServeConfig) -> EdgeLimits:
    return EdgeLimits(
        max_body_bytes=config.max_body_bytes,
        max_json_bytes=config.max_json_bytes,
        max_header_bytes=config.max_header_bytes,
        cors_origin=tuple(config.cors_origin),
        protect_metrics=config.protect_metrics,
    )


def _build_identity(config: ServeConfig, database: Database) -> Identity:
    """Keys and quotas over the database that also holds the tasks. Raises InvalidKeyFile."""
    key_file = None if config.api_keys_file is None else KeyFile(config.api_keys_file)
    keys = KeyStore(database)
    quotas = QuotaStore(database, Quota(**{name: getattr(config, f"tenant_{name}") for name in QUOTA_NAMES}))
    authenticator = Authenticator(keys, quotas, key_file=key_file, needs_key=config.require_auth)
    return Identity(authenticator, keys, quotas, AuditLog(database), RateLimits())


def _traces(config: ServeConfig, model_name: str) -> Traces | None:
    if config.otlp_endpoint is None:
        return None
    return otlp_traces(config.otlp_endpoint, model_name=model_name, version=__version__)


def _grammars(model: ServedModel) -> GrammarCompiler | None:
    if not model.tokenizer.is_fast:
        return None
    return GrammarCompiler(model.tokenizer, n_vocab=model.limits.n_vocab, eos_token_ids=model.eos_token_ids)


def _tool_format(config: ServeConfig, model: ServedModel) -> ToolFormat | None:
    parser = config.tool_parser or detect_tool_parser(str(model.tokenizer.chat_template))
    return None if parser is None else TOOL_FORMATS[parser]


def _system_fingerprint(model: ServedModel) -> str:
    digests = [model.fingerprint] if model.basis is None else [model.fingerprint, model.basis.digest]
    return "-".join(["onebasis", __version__, *(digest.removeprefix("sha256:")[:8] for digest in digests)])
