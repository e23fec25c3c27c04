"""uvicorn, with our drain on SIGTERM and our envelope for what is no HTTP."""

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from onebasis.api.drain import Drain
from onebasis.api.errors import error_response
from onebasis.core.errors import Draining, RequestError
from onebasis.engine.interface import Engine

_log = logging.getLogger(__name__)
_FLUSH_S: Final = 5  # for the last bytes of what was cut


class HttpServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains: new work is refused, what runs may take `drain_s`, the rest is cut with an
    error of its own, and `run` returns. A second signal cuts at once; then `force_exit` is set.
    """

    def __init__(
        self,
        app: FastAPI,
        drain: Drain,
        engine: Engine,
        *,
        host: str,
        port: int,
        drain_s: float,
        max_header_bytes: int,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=EnvelopeProtocol,
                h11_max_incomplete_event_size=max_header_bytes,
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_FLUSH_S,
            )
        )
        self._drain = drain
        self._engine = engine
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """Between two instructions of anything on this thread, so it only leaves word with the loop."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._on_signal, signal.Signals(sig).name)

    def _on_signal(self, name: str) -> None:
        if self._draining is None:
            _log.info("%s: draining for at most %g s", name, self._drain_s)
            self._drain.begin()
            self._draining = asyncio.create_task(self._drain_and_exit())
        else:
            _log.warning("%s again: ending now", name)
            self._engine.end_all(Draining())
            self.config.timeout_graceful_shutdown = 1
            self.should_exit = self.force_exit = True

    async def _drain_and_exit(self) -> None:
        if not await self._drain.wait_until_idle(self._drain_s):
            _log.warning("not everything has ended in %g s; the rest is cut", self._drain_s)
            self._engine.end_all(Draining())
            await self._drain.wait_until_idle(_FLUSH_S)
        self.should_exit = True


class EnvelopeProtocol(H11Protocol):
    """Answers bytes that are no HTTP with the one envelope; uvicorn's own answer is plain text."""

    def send_400_response(self, msg: str) -> None:
        answer = error_response(RequestError(f"{msg} Send HTTP/1.1 as RFC 9112 has it."))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
