"""The end of a server's life, seen from HTTP: nothing new comes in, what runs may finish."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from onebasis.api.errors import error_response
from onebasis.core.errors import Draining
from onebasis.telemetry.metrics import Metrics

_READING = frozenset({"GET", "HEAD"})


class Drain:
    """Invariant: `_n_open` requests that generate or write are under way; `_idle` is set when there are none.

    Event loop only.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._n_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    def begin(self) -> None:
        """Refuse what comes from now on."""
        self.is_draining = True
        self._metrics.set_draining(True)

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
    """Lets requests that generate or write pass while the server does not drain. Reading is always allowed."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _READING:
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
