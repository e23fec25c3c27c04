"""One adapter of PEFT's own for all tests here."""

from pathlib import Path

import pytest

from tests.api.tiny_model import TinyModel
from tests.fitting.peft.adapters import plain_adapter


@pytest.fixture(scope="session")
def adapter_folder(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_adapter(llama.folder, tmp_path_factory.mktemp("adapter") / "plural")
