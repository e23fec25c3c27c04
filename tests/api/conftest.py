"""One server for most tests: three tasks beside the base. A test that writes uses names of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.api.server import TASKS, RunningServer, StepGate
from tests.api.tiny_model import TinyModel, save_tiny_model

StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_server(tiny: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(tiny) as server:
        for seed, name in enumerate(TASKS):
            assert server.put_task(name, tiny.core_file(seed)).status_code == 201
        yield server


@pytest.fixture
def server(shared_server: RunningServer) -> Iterator[RunningServer]:
    """The shared server; afterwards nothing of the test may be left in its engine."""
    yield shared_server
    shared_server.wait_until_idle()


@pytest.fixture
def start_server(tiny: TinyModel) -> Iterator[StartServer]:
    """Starts servers with settings of their own; they are closed after the test."""
    running: list[RunningServer] = []

    def start(**settings: Any) -> RunningServer:
        running.append(RunningServer(tiny, **settings))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> StepGate:
    return StepGate.installed(monkeypatch)
