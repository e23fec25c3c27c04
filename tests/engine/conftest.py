import pytest
import torch

from tests.engine.engines import World
from tests.model.families import tiny_base
from tests.model.tasks import random_basis, random_task


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    base = tiny_base("llama")
    basis = random_basis(base, tmp_path_factory.mktemp("basis"))
    return World(base, basis, [random_task(basis.spec, seed) for seed in range(12)])
