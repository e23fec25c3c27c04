"""One server for most tests: three tasks beside the base. A test that writes uses names of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from onebasis.engine.runner import Runner
from tests.api.server import TASKS, RunningServer, StepGate
from tests.api.tiny_model import TinyModel, save_tiny_model

StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyModel]:
    folder = tmp_path_factory.mktemp("tiny")
    if request.config.getoption("--engine") == "native":
        yield save_tiny_model(folder)
        return
    from tests.vllm.shared_llms import tiny_on_vllm  # imports vLLM

    with tiny_on_vllm(folder) as model:
        yield model


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
def step(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The method that every step of the engine goes through; of vLLM's steps, where a request hears of its own."""
    if request.config.getoption("--engine") == "native":
        return Runner.execute
    from onebasis.engine.vllm.engine import VllmEngine

    return VllmEngine._take


@pytest.fixture
def gate(step: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> StepGate:
    return StepGate.installed(monkeypatch, step)
