"""The end of a server's life, seen from HTTP: it says so, then nothing new comes in, and what runs may finish."""

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onebasis.api.errors import error_response
from onebasis.core.errors import Draining
from onebasis.telemetry.metrics import Metrics

_READING = frozenset({"GET", "HEAD"})


class Drain:
    """Invariant: `_n_open` requests that generate or write are under way; `_idle` is set when there are none.

    `is_leaving` comes first: whoever sends traffic here should stop. With `is_draining` new work is refused.
    Event loop only.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._n_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_leaving = False
        self.is_draining = False

    def announce(self) -> None:
        """Not ready from now on; what comes is still served."""
        self.is_leaving = True
        self._metrics.set_draining(True)

    def begin(self) -> None:
        """Refuse what comes from now on."""
        self.announce()
        self.is_draining = True

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether everything under way has ended in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def enter(self) -> None:
        """A request begins. Raises Draining when it must not."""
        if self.is_draining:
            raise Draining
        self._n_open += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request that entered has ended, its last byte included."""
        self._n_open -= 1
        if self._n_open == 0:
            self._idle.set()


class DrainGate:
    """Lets requests that generate or write pass while the server does not drain. Reading is always allowed.

    Answers of a server that is leaving close their connection: the client's next request goes to another one.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _closing(send) if self._drain.is_leaving else send
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        try:
            self._drain.enter()
        except Draining as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()


def _closing(send: Send) -> Send:
    """The same, with `Connection: close` in the answer."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        await send(message)

    return closing
