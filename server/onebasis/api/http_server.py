"""uvicorn, with our drain on SIGTERM, our envelope for what is no HTTP, and a bound on how slowly requests come."""

import asyncio
import logging
import signal
import socket
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from onebasis.api.drain import Drain
from onebasis.api.errors import error_response
from onebasis.core.errors import Draining, RequestError, RequestTimeout
from onebasis.engine.interface import Engine

_log = logging.getLogger(__name__)
_FLUSH_S: Final = 5  # for the last bytes of what was cut


class HttpServer(uvicorn.Server):
    """The first SIGTERM or SIGINT ends it: for `shutdown_delay_s` it is not ready but serves on, until whoever sends
    requests has noticed; then it drains: new work is refused, what runs may take `drain_s`, the rest is cut with an
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
        receive_timeout_s: float,
        shutdown_delay_s: float,
        drain_s: float,
        max_header_bytes: int,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=partial(EnvelopeProtocol, receive_timeout_s),  # type: ignore[arg-type]  # it is only called
                h11_max_incomplete_event_size=max_header_bytes,
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_FLUSH_S,
            )
        )
        self._drain = drain
        self._engine = engine
        self._shutdown_delay_s = shutdown_delay_s
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

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
        if self._ending is None:
            _log.info("%s: draining in %g s, for at most %g s", name, self._shutdown_delay_s, self._drain_s)
            self._drain.announce()
            self._ending = asyncio.create_task(self._drain_and_exit())
        else:
            _log.warning("%s again: ending now", name)
            self._drain.begin()
            self._engine.end_all(Draining())
            self.config.timeout_graceful_shutdown = 1
            self.should_exit = self.force_exit = True

    async def _drain_and_exit(self) -> None:
        await asyncio.sleep(self._shutdown_delay_s)
        self._drain.begin()
        if not await self._drain.wait_until_idle(self._drain_s):
            _log.warning("not everything has ended in %g s; the rest is cut", self._drain_s)
            self._engine.end_all(Draining())
            await self._drain.wait_until_idle(_FLUSH_S)
        self.should_exit = True


class EnvelopeProtocol(H11Protocol):
    """One connection. Bytes that are no HTTP, and requests that come too slowly, end it with the one envelope.

    Invariant: `_deadline` runs from the first moment at which a request may come, or its first byte on a kept
    connection, until its last byte is here. uvicorn's own timer is for connections that are silent between requests.
    """

    def __init__(self, receive_timeout_s: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._receive_timeout_s = receive_timeout_s
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        self._start_deadline()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(f"{msg} Send HTTP/1.1 as RFC 9112 has it."))

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._receive_timeout_s, self._on_deadline)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        if not self.transport.is_closing():
            self._refuse(RequestTimeout(limit_s=self._receive_timeout_s))

    def _refuse(self, error: RequestError) -> None:
        """End the connection; with an answer, unless one is under way or sent already."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(error)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            reason = HTTPStatus(answer.status_code).phrase.encode()
            events = (
                h11.Response(status_code=answer.status_code, headers=headers, reason=reason),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application still says goes nowhere
        self.transport.close()
