"""Requests and sequences for tests of the engine. No torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebasis.core.ids import Digest, digest_of
from onebasis.core.request import EventSink, GenerateRequest, ResolvedTask, SamplingParams, TokenEvent
from onebasis.core.residual import Residuals
from onebasis.engine.sequence import EngineSequence

GREEDY = SamplingParams(temperature=0.0)
SCORED = SamplingParams(temperature=0.0, n_prompt_logprobs=0)  # needs the logits of its prompt


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
    **fields: Any,
) -> GenerateRequest:
    return GenerateRequest(request_id, prompt_ids, task, max_tokens, sampling, stop_token_ids, sink, **fields)


def make_sequence(request_id: str, prompt: int | tuple[int, ...], **fields: Any) -> EngineSequence:
    """A sequence of this prompt; a number n stands for the n tokens 100, 101, 102 and so on."""
    prompt_ids = tuple(range(100, 100 + prompt)) if isinstance(prompt, int) else prompt
    return EngineSequence(make_request(request_id, prompt_ids, **fields), arrived_s=0.0)


@dataclass(frozen=True)
class NamedCoefficients:
    """Coefficients without numbers: what the scheduler sees of them."""

    digest: Digest
    rank = 4

    @property
    def residual(self) -> Residuals:
        return {}

    def flat_cores(self) -> NDArray[np.float32]:
        raise NotImplementedError


def make_task(name: str, version: int = 1) -> ResolvedTask:
    """A task that only a scheduler can work with. Each version has its own digest."""
    return ResolvedTask(name, NamedCoefficients(digest_of(f"{name} {version}".encode())))
