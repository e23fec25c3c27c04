"""Answers that come before their request has been read."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 16 * 1024 * 1024


class UnreadBody:
    """Reads what is left of a request's body, and throws it away, before an answer that closes the connection ends.

    Closing a connection on which bytes wait to be read resets it, and the reset may overtake the answer: a gateway in
    between would tell its client of a broken connection in place of 413. For a second at most, and 16 MiB; not where
    the client waits for leave to send.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body_under_way(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        is_read = closes = False
        n_bytes = 0

        async def noting() -> Message:
            nonlocal is_read, n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            return message

        async def holding(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start":
                closes = Headers(raw=message["headers"]).get("connection") == "close"
            is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_end and closes and not is_read:
                await send({**message, "more_body": True})
                limit_bytes = n_bytes + _LINGER_BYTES
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_S):
                        while not is_read and n_bytes < limit_bytes:
                            await noting()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, noting, holding)


def _has_body_under_way(headers: Headers) -> bool:
    return ("content-length" in headers or "transfer-encoding" in headers) and "expect" not in headers
