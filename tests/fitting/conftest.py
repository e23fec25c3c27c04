"""One tiny model on disk for all; every test loads its own copy, since training puts sites into it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import TinyModel, save_tiny_model
from tests.fitting.tiny import tiny_base, tiny_basis


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Work this small is slower on several threads, and much slower where they have to wait for a core."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def base(llama: TinyModel) -> LoadedBase:
    return tiny_base(llama.folder)


@pytest.fixture
def basis(base: LoadedBase, tmp_path: Path) -> Basis:
    return tiny_basis(base, tmp_path / "tiny.basis.safetensors")
