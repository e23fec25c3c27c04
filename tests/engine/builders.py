"""Requests and sequences for tests of the engine. No torch."""

from onebasis.core.request import EventSink, GenerateRequest, ResolvedTask, SamplingParams, TokenEvent
from onebasis.engine.sequence import EngineSequence

GREEDY = SamplingParams(temperature=0.0)


def drop(event: TokenEvent) -> None:
    """A sink for tests that drive the engine's parts themselves."""


def make_request(
    request_id: str,
    prompt_ids: tuple[int, ...],
    *,
    max_tokens: int = 8,
    task: ResolvedTask | None = None,
    sampling: SamplingParams = GREEDY,
    stop_token_ids: frozenset[int] = frozenset(),
    sink: EventSink = drop,
    tenant: str | None = None,
    deadline_s: float | None = None,
) -> GenerateRequest:
    return GenerateRequest(
        request_id,
        prompt_ids,
        task,
        max_tokens,
        sampling,
        stop_token_ids,
        sink,
        tenant=tenant,
        deadline_s=deadline_s,
    )


def make_sequence(request_id: str, n_prompt: int, *, max_tokens: int = 8) -> EngineSequence:
    """A sequence whose prompt is 100, 101, 102 and so on."""
    return EngineSequence(
        make_request(request_id, tuple(range(100, 100 + n_prompt)), max_tokens=max_tokens), arrived_s=0.0
    )
