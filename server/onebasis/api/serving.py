"""What the two generation routes share: preparing a request, answering it whole or as a stream."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from onebasis.api.deps import Services
from onebasis.api.errors import CLIENT_CLOSED_REQUEST, envelope
from onebasis.api.generation import ChoiceDelta, Generation, Plan
from onebasis.api.schemas import GenerationBody, StreamOptions
from onebasis.core.request import ResolvedTask
from onebasis.telemetry.request_context import note

_log = logging.getLogger(__name__)


class AnswerFormat(Protocol):
    """How one route spells answers. It sees every delta in order."""

    def chunk_choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        """The choice of a streamed chunk."""
        ...

    def add(self, delta: ChoiceDelta) -> None:
        """Collect for a whole answer."""
        ...

    def choices(self) -> list[dict[str, Any]]:
        """The choices of a whole answer."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """The fields around the choices, the same in every chunk."""

    plan: Plan
    model: str
    services: Services

    def with_choices(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """One response object or chunk."""
        return {
            "id": self.plan.id,
            "object": kind,
            "created": self.plan.created,
            "model": self.model,
            "system_fingerprint": self.services.fingerprint,
            "choices": choices,
            "onebasis": _attribution(self.plan.task, self.services),
        }

    def usage(self, generation: Generation) -> dict[str, Any]:
        """Token counts of the whole request, so far."""
        return {
            "prompt_tokens": self.plan.n_prompt_tokens,
            "completion_tokens": generation.n_completion_tokens,
            "total_tokens": self.plan.n_prompt_tokens + generation.n_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": generation.n_cached_tokens},
        }


def _attribution(task: ResolvedTask | None, services: Services) -> dict[str, Any]:
    """Which bytes answered: the task's, or a blend's and those of its parts."""
    digest = None if task is None else task.coefficients.digest
    if task is None or not task.parts:
        return {"task": None if task is None else task.name, "digest": digest, "basis": services.basis_digest}
    parts = [{"task": part.task, "digest": part.digest, "weight": part.weight} for part in task.parts]
    return {"task": None, "digest": digest, "basis": services.basis_digest, "blend": parts}


class GenerationStream(StreamingResponse):
    """A stream of server-sent events that frees its generation however it ends, even if it never begins."""

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with closing(self._generation):
            await super().__call__(scope, receive, send)


async def answer(
    request: Request,
    services: Services,
    body: GenerationBody,
    plan: Plan,
    *,
    kinds: tuple[str, str],
    answer_format: AnswerFormat,
    opening: Callable[[int], dict[str, Any]] | None = None,
) -> Response:
    """Run a plan and answer it.

    Args:
        kinds: the `object` of a whole answer and of a chunk.
        opening: the choice of a chunk that comes before a choice's first token, if the format has one.
    """
    frame = Frame(plan, body.model, services)
    note(generation=plan.id)
    if plan.task is not None:
        note(task=plan.task.name, digest=plan.task.coefficients.digest)
    note(tenant=plan.caller.tenant)
    charge = partial(services.identity.rates.charge_tokens, plan.caller.tenant)
    generation = Generation(plan, services.engine, services.text, charge).start()
    _log.info("generate", extra={"n_prompt_tokens": plan.n_prompt_tokens, "user": body.user})
    if body.stream:
        options = body.stream_options or StreamOptions()
        events = _events(frame, generation, kinds[1], answer_format, opening, options)
        return GenerationStream(generation, events)
    with closing(generation):
        return await _unless_disconnected(request, _whole(frame, generation, kinds[0], answer_format))


async def _whole(frame: Frame, generation: Generation, kind: str, answer_format: AnswerFormat) -> Response:
    async for delta in generation.deltas():
        answer_format.add(delta)
    content = frame.with_choices(kind, answer_format.choices())
    return JSONResponse(content | {"usage": frame.usage(generation)})


async def _events(
    frame: Frame,
    generation: Generation,
    kind: str,
    answer_format: AnswerFormat,
    opening: Callable[[int], dict[str, Any]] | None,
    options: StreamOptions,
) -> AsyncIterator[str]:
    opened: set[int] = set()

    def chunk(choice: dict[str, Any]) -> str:
        usage = frame.usage(generation) if options.continuous_usage_stats else None
        return _event(frame.with_choices(kind, [choice]) | ({"usage": usage} if options.include_usage else {}))

    try:
        async for delta in generation.deltas():
            if opening is not None and delta.index not in opened:
                opened.add(delta.index)
                yield chunk(opening(delta.index))
            yield chunk(answer_format.chunk_choice(delta))
        if options.include_usage:
            yield _event(frame.with_choices(kind, []) | {"usage": frame.usage(generation)})
    except Exception as error:  # the status has been sent: the error is an event of the stream
        _log.warning("a stream ended with an error", exc_info=error)
        yield _event(envelope(error))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'), ensure_ascii=False)}\n\n"


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, which is cancelled when the client goes away first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
