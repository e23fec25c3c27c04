"""Around every request: its id, its size limit, its count and log line. Plain ASGI, so streams pass untouched."""

import logging
import time
import uuid
from types import MappingProxyType
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onebasis.api.errors import error_response
from onebasis.core.errors import BodyTooLarge, HeadersTooLarge
from onebasis.identity.caller import Caller
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.request_context import note, request_context
from onebasis.telemetry.traces import Traces

_log = logging.getLogger(__name__)
_REQUEST_ID: Final = "X-Request-Id"
_MAX_PLAIN = 128
_ROUTINE: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_LOGGED_HEADERS: Final = MappingProxyType(
    {"fairness_id": "x-llm-d-inference-fairness-id", "objective": "x-llm-d-inference-objective"}
)


class BodyLimit:
    """Refuses bodies over the cap: at once by Content-Length, else when the counted bytes pass it.

    Uploads have a cap of their own: JSON takes more memory than its bytes, and nobody sends much of it on purpose.
    """

    def __init__(self, app: ASGIApp, *, upload_bytes: int, json_bytes: int) -> None:
        self._app = app
        self._upload_bytes = upload_bytes
        self._json_bytes = min(upload_bytes, json_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/tasks/")
        limit_bytes = self._upload_bytes if is_upload else self._json_bytes
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit_bytes:
            error = BodyTooLarge(limit_bytes=limit_bytes, declared_bytes=int(declared))
            await error_response(error)(scope, receive, send)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit_bytes:
                raise BodyTooLarge(limit_bytes=limit_bytes)
            return message

        await self._app(scope, counted, send)


class HeaderLimit:
    """Refuses headers over the cap. How much is read before that is h11's `max_incomplete_event_size`, set in the cli.

    Each field counts for 32 bytes more than its text, as in HTTP/2, so that their number is bounded too.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found_bytes = sum(len(name) + len(value) + 32 for name, value in scope.get("headers", ()))
        if scope["type"] == "http" and found_bytes > self._limit_bytes:
            error = HeadersTooLarge(limit_bytes=self._limit_bytes, found_bytes=found_bytes)
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Observed:
    """Gives each request an id (the client's X-Request-Id if it is plain), echoes it, counts and logs the answer.
    All log lines of the request carry the id, and what a gateway says of its purpose.

    A bug of ours ends here: logged once, answered with the envelope if nothing has been sent yet.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _plain(headers.get(_REQUEST_ID)) or uuid.uuid4().hex
        with request_context(request_id=request_id):
            note(**{field: _plain(headers.get(header)) for field, header in _LOGGED_HEADERS.items()})
            await self._observe(request_id, scope, receive, send)

    async def _observe(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started_s = time.monotonic()
        status: int | None = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            if status is not None:
                raise
            _log.error("a request failed with a bug of ours", exc_info=error)
            await error_response(error)(scope, receive, observed)
        finally:
            self._metrics.observe_http(route=_route(scope), method=_method(scope["method"]), status=status or 500)
            is_routine = scope["path"] in _ROUTINE and status == 200  # some gateways scrape 20 times a second
            _log.log(
                logging.DEBUG if is_routine else logging.INFO,
                "%s %s %d",
                scope["method"],
                scope["path"],
                status or 500,
                extra={"duration_s": round(time.monotonic() - started_s, 4), **_shown(state.get("caller"))},
            )


class Traced:
    """A span around each request of the API, under the span that its `traceparent` header names."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):  # probes and scrapes would only be noise
            await self._app(scope, receive, send)
            return
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._traces.http_span(_method(scope["method"]), scope["path"], Headers(scope=scope)) as span:
            note(traceparent=span.traceparent)
            try:
                await self._app(scope, receive, observed)
            finally:
                span.answered(route=_route(scope), status=status)


def _plain(found: str | None) -> str | None:
    """A header's value that may be logged and echoed; None if it is absent, long, or has odd characters."""
    is_plain = found is not None and len(found) <= _MAX_PLAIN and found.isascii() and found.isprintable()
    return found if found and is_plain else None


def _route(scope: Scope) -> str:
    """The pattern that matched: few values, whatever clients send."""
    route: str = getattr(scope.get("route"), "path", "other")
    return route


def _shown(caller: Caller | None) -> dict[str, str | None]:
    return {} if caller is None or caller.key_id is None else {"key_id": caller.key_id, "tenant": caller.tenant}


def _method(found: str) -> str:
    """Metric label: few values, whatever clients send."""
    return found if found in ("GET", "HEAD", "PUT", "POST", "DELETE") else "other"
