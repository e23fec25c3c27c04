"""Sends requests and waits, in an event loop: Sender with `await`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import httpx

from onebasis_client.calls import Call, Page, Request, StreamCall
from onebasis_client.connection import Connection, check_events, failure_of, is_answer, network_errors, reply_of
from onebasis_client.errors import OneBasisError, TransportError
from onebasis_client.events import EventReader
from onebasis_client.retries import RetryRule

T = TypeVar("T")
Cursor = TypeVar("Cursor")


class AsyncSender:
    """Carries out calls over one httpx client, which it closes. One event loop."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection, retries: RetryRule) -> None:
        self._http = http
        self._connection = connection
        self._retries = retries

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, call: Call[T], retries: RetryRule | None = None) -> T:
        """The parsed answer. Raises OneBasisError."""

        async def attempt() -> T:
            async with aclosing(await self._open(call.request)) as response:
                with network_errors(heard=True):
                    await response.aread()
            return call.parse(reply_of(response))

        return await self._retrying(call.request, attempt, retries or self._retries)

    async def pages(self, page_after: Callable[[Cursor | None], Call[Page[T, Cursor]]]) -> AsyncIterator[T]:
        """All items of a list, each page fetched when it is reached. Raises OneBasisError."""
        after = None
        while True:
            page = await self.run(page_after(after))
            for item in page.data:
                yield item
            if not page.has_more:
                return
            after = page.last_id

    @asynccontextmanager
    async def stream(self, call: StreamCall[T]) -> AsyncIterator[AsyncIterator[T]]:
        """The chunks as they come. Once the first may have come nothing is sent again. Raises OneBasisError."""
        response = await self._retrying(call.request, lambda: self._open(call.request), self._retries)
        async with aclosing(response), aclosing(self._chunks(response, call)) as chunks:
            yield chunks

    async def _chunks(self, response: httpx.Response, call: StreamCall[T]) -> AsyncGenerator[T, None]:
        check_events(response)
        reader = EventReader(call.kind, response.headers.get("x-request-id"))
        try:
            with network_errors(heard=True):
                async for data in response.aiter_bytes():
                    for chunk in reader.feed(data):
                        yield chunk
        except TransportError:
            if not reader.is_done:  # what breaks behind the last event was no part of the answer
                raise
        reader.end()

    async def _open(self, request: Request) -> httpx.Response:
        """A response of success whose body is still to be read."""
        with network_errors(heard=False):
            response = await self._http.send(self._connection.build(request), stream=True)
        if is_answer(response):
            return response
        async with aclosing(response):
            with network_errors(heard=True):
                await response.aread()
        raise failure_of(response)

    @staticmethod
    async def _retrying(request: Request, attempt: Callable[[], Awaitable[T]], retries: RetryRule) -> T:
        n_failed = 0
        while True:
            try:
                return await attempt()
            except OneBasisError as error:
                n_failed += 1
                pause_s = retries.pause_s(request, error, n_failed)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
