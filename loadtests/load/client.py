"""Sends one completion request and times its answer. Everything that costs time is done before or after."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import MappingProxyType

import httpx

from loadtests.load.sse import StreamFault, TokenStream


@dataclass(frozen=True, slots=True)
class Request:
    """A request ready to send, and the usage its answer must report."""

    model: str
    body: bytes
    n_prompt_tokens: int
    n_output_tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are of perf_counter. Only an answer without error enters the latencies."""

    due_s: float  # scheduled arrival in an open loop, otherwise the time of sending
    sent_s: float
    end_s: float
    token_times_s: tuple[float, ...]
    n_output_tokens: int
    error: str | None


def make_request(
    model: str,
    prompt: list[int],
    n_output_tokens: int,
    *,
    extra: Mapping[str, object] = MappingProxyType({}),
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Request:
    """A streaming greedy request for exactly n_output_tokens; `extra` fields go into its body."""
    fields = {
        "model": model,
        "prompt": prompt,
        "max_tokens": n_output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }
    return Request(model, json.dumps(fields).encode(), len(prompt), n_output_tokens, headers)


def open_client(url: str) -> httpx.AsyncClient:
    """A client without a limit on connections that ignores proxies of the environment.

    Idle connections are dropped before a server would (uvicorn: 5 s), so that no request meets a closing one.
    """
    return httpx.AsyncClient(
        base_url=url,
        headers={"accept-encoding": "identity", "content-type": "application/json"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0),
        timeout=None,
        trust_env=False,
    )


async def complete(
    client: httpx.AsyncClient, request: Request, *, timeout_s: float, due_s: float | None = None
) -> Answer:
    """Send, read to the end, check. A failure of any kind is an answer with an error."""
    stream = TokenStream()
    sent_s = perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            await _read(client, request, stream)
        error = _usage_error(stream, request)
    except (httpx.HTTPError, StreamFault) as fault:
        error = f"{type(fault).__name__}: {fault}"
    except TimeoutError:
        error = f"no complete answer within {timeout_s:g} s"
    end_s = perf_counter()
    times = tuple(stream.token_times(request.n_output_tokens)) if error is None else ()
    if error is None and not times:
        error = "no event had text or a token"
    return Answer(
        due_s=sent_s if due_s is None else due_s,
        sent_s=sent_s,
        end_s=end_s,
        token_times_s=times,
        n_output_tokens=request.n_output_tokens,
        error=error,
    )


async def _read(client: httpx.AsyncClient, request: Request, stream: TokenStream) -> None:
    async with client.stream("POST", "/v1/completions", content=request.body, headers=request.headers) as response:
        if response.status_code != httpx.codes.OK:
            body = await response.aread()
            raise StreamFault(f"HTTP {response.status_code}: {body[:200].decode(errors='replace')}")
        async for chunk in response.aiter_raw():
            stream.feed(chunk, perf_counter())


def _usage_error(stream: TokenStream, request: Request) -> str | None:
    if not stream.done:
        return "stream ended without [DONE]"
    usage = stream.usage
    if not isinstance(usage, dict):
        return f"usage: needed an object, found {usage!r}"
    found = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    needed = (request.n_prompt_tokens, request.n_output_tokens)
    if found != needed:
        return f"usage (prompt_tokens, completion_tokens): needed {needed}, found {found}"
    return None
