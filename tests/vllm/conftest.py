"""The servers of tests/api, on vLLM whatever the command line says."""

from collections.abc import Iterator

import pytest

from tests.api.conftest import server, shared_server, start_server
from tests.api.tiny_model import TinyModel
from tests.vllm.shared_llms import tiny_on_vllm

__all__ = ["server", "shared_server", "start_server", "tiny"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyModel]:
    with tiny_on_vllm(tmp_path_factory.mktemp("tiny")) as model:
        yield model
