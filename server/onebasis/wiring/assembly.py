"""What each engine's assembly hands over: a model that is loaded, and the engine to build over it."""

from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.config import MIB, ServeConfig
from onebasis.core.residual import ResidualLimits
from onebasis.engine.interface import Engine, EngineLimits
from onebasis.engine.ledger import QueueLimits
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig
from onebasis.telemetry.traces import Traces


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the rest of the server has to know of the model that the engine runs.

    fingerprint: of the base weights. residuals: what a task may have beside the basis.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    basis: BasisSpec | None
    fingerprint: str
    limits: EngineLimits
    cache: CacheConfig
    residuals: ResidualLimits


@dataclass(frozen=True, slots=True)
class StepBudget:
    """Tokens of a step: n_tokens in all, n_prefill of prompts where it also decodes."""

    n_tokens: int
    n_prefill: int


class OwnedEngine(Engine, Protocol):
    """An engine that whoever built it starts and stops."""

    def start(self) -> None:
        """Begin to work. Call once."""
        ...

    def stop(self) -> None:
        """End it. Requests still in flight end with EngineStopped."""
        ...


class Assembly(Protocol):
    """A model that is loaded. Exactly one of `build` and `close` is called, once."""

    @property
    def model(self) -> ServedModel: ...

    def build(self, metrics: Metrics, traces: Traces | None) -> OwnedEngine:
        """The engine, not started yet; it takes over what was loaded."""
        ...

    def close(self) -> None:
        """Let go of what was loaded."""
        ...


def engine_limits(config: ServeConfig, *, max_model_len: int, n_vocab: int) -> EngineLimits:
    queue = queue_limits(config)
    return EngineLimits(
        max_model_len=max_model_len,
        n_vocab=n_vocab,
        max_sequences=queue.max_in_flight,
        max_tenant_sequences=queue.max_in_flight_per_tenant,
        default_timeout_s=config.default_timeout_s,
        max_timeout_s=config.max_timeout_s,
    )


def queue_limits(config: ServeConfig) -> QueueLimits:
    share = config.max_waiting // 2 if config.max_waiting_per_tenant is None else config.max_waiting_per_tenant
    return QueueLimits(config.max_running, config.max_waiting, max_waiting_per_tenant=share)


def step_budget(config: ServeConfig, path: str) -> StepBudget:
    """As configured; what is left open, as it was measured to be best for a decoder's path.

    A token of a prompt costs the compiled step about as much beside 63 others as beside 511. So its steps are short:
    prompts then get their first tokens one after the other, not all of them at the end (server/docs/scheduling.md).
    """
    is_short = path == "native"
    n_prefill = config.max_prefill_tokens or (64 if is_short else 256)
    preset = config.max_running + n_prefill if is_short else max(512, config.max_running)
    return StepBudget(config.max_step_tokens or preset, n_prefill)


def n_task_rows(config: ServeConfig, basis: BasisSpec) -> int:
    """Rows of the table of resident tasks: what the budget holds, and one for every sequence that can run in any
    case.
    """
    row_bytes = basis.n_core_numbers * 4  # of float32
    return max(config.max_running, config.arena_mib * MIB // row_bytes)
