"""A real Envoy and the picker before two real server processes and a real PostgreSQL, for all tests of this folder."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loadtests.common.postgres import own_postgres
from loadtests.common.subject import Subject
from loadtests.rollout.stack import Stack
from tests.api.tiny_model import TinyModel, save_tiny_model

_OPTIONS = ("--dtype", "float32", "--threads", "1", "--kv-cache-mib", "32", "--shutdown-delay-s", "2")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def stack(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("stack")
    with ExitStack() as inside:
        store = inside.enter_context(own_postgres())
        yield inside.enter_context(Stack.open(Subject(tiny.folder, tiny.basis_path, ()), folder, store, _OPTIONS))
