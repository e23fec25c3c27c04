"""Sends requests and waits, blocking. What to send, when to repeat it and how to read it is decided elsewhere."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import httpx

from onebasis_client.calls import Call, Page, Request, StreamCall
from onebasis_client.connection import Connection, check_events, failure_of, is_answer, network_errors, reply_of
from onebasis_client.errors import OneBasisError, TransportError
from onebasis_client.events import EventReader
from onebasis_client.retries import RetryRule

T = TypeVar("T")
Cursor = TypeVar("Cursor")


class Sender:
    """Carries out calls over one httpx client, which it closes. Threads may share it."""

    def __init__(self, http: httpx.Client, connection: Connection, retries: RetryRule) -> None:
        self._http = http
        self._connection = connection
        self._retries = retries

    def close(self) -> None:
        self._http.close()

    def run(self, call: Call[T], retries: RetryRule | None = None) -> T:
        """The parsed answer. Raises OneBasisError."""

        def attempt() -> T:
            with closing(self._open(call.request)) as response, network_errors(heard=True):
                response.read()
            return call.parse(reply_of(response))

        return self._retrying(call.request, attempt, retries or self._retries)

    def pages(self, page_after: Callable[[Cursor | None], Call[Page[T, Cursor]]]) -> Iterator[T]:
        """All items of a list, each page fetched when it is reached. Raises OneBasisError."""
        after = None
        while True:
            page = self.run(page_after(after))
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    @contextmanager
    def stream(self, call: StreamCall[T]) -> Iterator[Iterator[T]]:
        """The chunks as they come. Once the first may have come nothing is sent again. Raises OneBasisError."""
        response = self._retrying(call.request, lambda: self._open(call.request), self._retries)
        with closing(response), closing(self._chunks(response, call)) as chunks:
            yield chunks

    def _chunks(self, response: httpx.Response, call: StreamCall[T]) -> Generator[T, None, None]:
        check_events(response)
        reader = EventReader(call.kind, response.headers.get("x-request-id"))
        try:
            with network_errors(heard=True):
                for data in response.iter_bytes():
                    yield from reader.feed(data)
        except TransportError:
            if not reader.is_done:  # what breaks behind the last event was no part of the answer
                raise
        reader.end()

    def _open(self, request: Request) -> httpx.Response:
        """A response of success whose body is still to be read."""
        with network_errors(heard=False):
            response = self._http.send(self._connection.build(request), stream=True)
        if is_answer(response):
            return response
        with closing(response), network_errors(heard=True):
            response.read()
        raise failure_of(response)

    @staticmethod
    def _retrying(request: Request, attempt: Callable[[], T], retries: RetryRule) -> T:
        n_failed = 0
        while True:
            try:
                return attempt()
            except OneBasisError as error:
                n_failed += 1
                pause_s = retries.pause_s(request, error, n_failed)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
