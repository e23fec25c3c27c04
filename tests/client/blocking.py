"""AsyncOneBasis driven from tests that block, so that each test is written once for both clients."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

from onebasis_client import AsyncOneBasis


class Blocking:
    """Every method of the client, run to its end on an event loop of our own. `close` it."""

    def __init__(self, client: AsyncOneBasis) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._adapted(method(*args, **kwargs))

    def _adapted(self, result: Any) -> Any:
        if inspect.isawaitable(result):
            return self._run(result)
        return self._entered(result) if hasattr(result, "__aenter__") else self._iterated(result)

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def result() -> Any:
            return await awaitable

        return self._runner.run(result())

    @contextmanager
    def _entered(self, manager: Any) -> Iterator[Iterator[Any]]:
        value = self._run(manager.__aenter__())
        try:
            yield self._iterated(value)
        except BaseException as error:
            if not self._run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self._run(manager.__aexit__(None, None, None))

    def _iterated(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        while (item := self._run(anext(items, end))) is not end:
            yield item
