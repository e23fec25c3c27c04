"""The tiny model's server, for what has to be true of a running one."""

from collections.abc import Iterator

import pytest

from tests.api.server import RunningServer
from tests.api.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Has registered a task and answered for it and for the base, so that its metrics have all their labels."""
    tiny = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    with RunningServer(tiny) as server:
        assert server.put_task("plural", tiny.core_file(0)).status_code == 201
        server.complete(model="plural")
        server.complete()
        yield server
