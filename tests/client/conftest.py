"""Both clients, connected to the servers of tests/api."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from onebasis_client import AsyncOneBasis, OneBasis
from tests.api.conftest import gate, server, shared_server, start_server, step, tiny
from tests.api.server import RunningServer
from tests.client.blocking import Blocking

__all__ = ["gate", "server", "shared_server", "start_server", "step", "tiny"]

Connect = Callable[..., Any]


def url_of(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of either kind, from a URL and settings; they are closed after the test."""
    opened: list[OneBasis | Blocking] = []

    def make(url: str, **settings: Any) -> OneBasis | Blocking:
        sync = request.param == "sync"
        opened.append(OneBasis(url, **settings) if sync else Blocking(AsyncOneBasis(url, **settings)))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(server: RunningServer, connect: Connect) -> Any:
    """Either kind of client, connected to the shared server."""
    return connect(url_of(server))
