"""The servers of tests/api, for clients that other people wrote."""

import os

import pytest

from tests.api.conftest import gate, server, shared_server, start_server, step, tiny
from tests.api.server import RunningServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or LiteLLM asks the internet for prices when it is imported

__all__ = ["gate", "server", "shared_server", "start_server", "step", "tiny"]


@pytest.fixture(autouse=True)
def _no_proxy_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients read these; the server is on loopback."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")


@pytest.fixture
def url(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture(scope="session")
def tool_server(tiny):
    """The model is taken for one that writes calls as Hermes does."""
    with RunningServer(tiny, tool_parser="hermes") as running:
        yield running
