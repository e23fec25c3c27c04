"""What the API needs of an engine. A second engine (vLLM) implements the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onebasis.core.request import GenerateRequest
from onebasis.telemetry.reports import EngineSnapshot


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request has to fit.

    max_model_len: tokens of prompt and output together. max_sequences: that one submit may hold.
    """

    max_model_len: int
    n_vocab: int
    max_sequences: int


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
            QueueFull: too many are in flight.
            EngineStopped: the engine is not running.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request within one step, with FinishReason.ABORT. Unknown ids are ignored: it may just have ended."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """The engine's state now, cheap enough to ask many times a second."""
        ...
