"""What the API needs of an engine. A second engine (vLLM) implements the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onebasis.core.errors import InvalidParameter, ServeError
from onebasis.core.request import GenerateRequest
from onebasis.telemetry.reports import EngineSnapshot


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request has to fit.

    max_model_len: tokens of prompt and output together. max_sequences: that one submit may hold;
        max_tenant_sequences: of a tenant.
    default_timeout_s, max_timeout_s: time of a request that names none, and the most it may name; None for no limit.
    """

    max_model_len: int
    n_vocab: int
    max_sequences: int
    max_tenant_sequences: int
    default_timeout_s: float | None = None
    max_timeout_s: float | None = None

    def max_sequences_of(self, tenant: str | None) -> int:
        """That one submit of this tenant may hold; more would not be accepted by an idle engine either."""
        return self.max_sequences if tenant is None else self.max_tenant_sequences

    def timeout_s(self, asked_s: float | None) -> float | None:
        """How long a request may take; None for as long as it wants. Raises InvalidParameter over max_timeout_s."""
        if asked_s is None:
            return self.max_timeout_s if self.default_timeout_s is None else self.default_timeout_s
        if self.max_timeout_s is not None and asked_s > self.max_timeout_s:
            raise InvalidParameter("timeout", f"is {asked_s:g} s, this server allows {self.max_timeout_s:g} s")
        return asked_s


class Engine(Protocol):
    """Takes requests from any thread; answers each through the sink that it brings, with exactly one ending."""

    @property
    def limits(self) -> EngineLimits: ...

    @property
    def is_alive(self) -> bool:
        """False once the engine can answer no more; every request has had its ending then."""
        ...

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        """Accept all of them or none.

        Raises:
            QueueFull, TenantQueueFull: too many are in flight.
            ServeError: what the engine ended with, as EngineStopped.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request within one step, with FinishReason.ABORT. Unknown ids are ignored: it may just have ended."""
        ...

    def end_all(self, error: ServeError) -> None:
        """Accept no more, and end everything in flight with this error, now: no step is waited for."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """The engine's state now, cheap enough to ask many times a second."""
        ...
