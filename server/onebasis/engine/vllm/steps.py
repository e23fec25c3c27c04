"""What there is to hear of a vLLM that runs."""

from dataclasses import dataclass
from typing import Any, Protocol

from vllm.v1.metrics.loggers import StatLoggerBase


@dataclass(frozen=True, slots=True)
class LlmStep:
    """One step of vLLM's engine core.

    kv_usage: share of the KV cache's blocks in use after it, 0 to 1.
    n_prefix_queries, n_prefix_hits: prompt tokens looked up in the prefix cache, and found.
    """

    n_tokens: int
    duration_s: float
    n_preempted: int
    n_prefix_queries: int
    n_prefix_hits: int
    kv_usage: float


class LlmListener(Protocol):
    """Wants to hear what a vLLM does; on the thread of its event loop."""

    def on_step(self, step: LlmStep) -> None:
        """A step has ended."""
        ...

    def on_copy(self, seconds: float) -> None:
        """A task was copied into the workers."""
        ...


class LlmListeners:
    """Those who listen to one vLLM. Its event loop only, but for adding and removing."""

    def __init__(self) -> None:
        self._listeners: tuple[LlmListener, ...] = ()

    def add(self, listener: LlmListener) -> None:
        self._listeners = (*self._listeners, listener)

    def discard(self, listener: LlmListener) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)

    def tell_step(self, step: LlmStep) -> None:
        for listener in self._listeners:
            listener.on_step(step)

    def tell_copy(self, seconds: float) -> None:
        for listener in self._listeners:
            listener.on_copy(seconds)

    def logger(self, _config: object, _engine_index: int) -> StatLoggerBase:
        """vLLM's factory of a logger of statistics; ours passes them on."""
        return _Logger(self)


class _Logger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, listeners: LlmListeners) -> None:
        self._listeners = listeners

    def record(
        self,
        scheduler_stats: object | None,
        iteration_stats: object | None,
        mm_cache_stats: object | None = None,  # noqa: ARG002
        engine_idx: int = 0,  # noqa: ARG002
    ) -> None:
        step = _read(scheduler_stats, iteration_stats)
        if step is not None:
            self._listeners.tell_step(step)

    def log_engine_initialized(self) -> None:
        """Nobody asks."""


def _read(scheduler: Any, iteration: Any) -> LlmStep | None:
    """None for news that are not of a step."""
    if scheduler is None or scheduler.iteration_details is None:
        return None
    details, prefix = scheduler.iteration_details, scheduler.prefix_cache_stats
    return LlmStep(
        n_tokens=details.num_ctx_tokens + details.num_generation_tokens,
        duration_s=details.elapsed_ms / 1000,
        n_preempted=0 if iteration is None else iteration.num_preempted_reqs,
        n_prefix_queries=prefix.queries,
        n_prefix_hits=prefix.hits,
        kv_usage=scheduler.kv_cache_usage,
    )
