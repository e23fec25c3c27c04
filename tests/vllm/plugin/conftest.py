"""One vLLM of each kind for all tests: each takes half a minute to start on a quiet machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.request import TaskCoefficients
from tests.api.tiny_model import save_tiny_model
from tests.coefficients.builders import with_mixing_cores
from tests.vllm.plugin.offline import OfflineVllm

N_MIX = 3
N_SLOTS = 1000
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Tiny:
    """A model folder for vLLM, and a basis with mixing cores."""

    folder: Path
    basis_path: Path
    basis: BasisSpec

    def task(self, seed: int, form: str = "core") -> TaskCoefficients:
        """Random, and strong enough to change the greedy answer."""
        counts = {
            "core": self.basis.n_core_numbers,
            "diag": sum(min(site.k_in, site.k_out) for site in self.basis.sites),
            "vector": N_MIX * len(self.basis.sites),
        }
        numbers = np.random.default_rng(seed).normal(0.0, 1.0, counts[form]).astype(np.float16)
        made_for = {"basis": self.basis.digest, "base_fingerprint": self.basis.base_fingerprint}
        return bind(parse_coefficients(write_coefficients(numbers, form=form, **made_for)), self.basis)


@pytest.fixture(scope="session", autouse=True)
def _small_vllm():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setenv(name, os.environ.get(name, value))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The basis is not in the model's folder, where vLLM would take it for weights."""
    made = save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", head_dim=32)
    path = tmp_path_factory.mktemp("basis") / "tiny.basis.safetensors"
    path.write_bytes(with_mixing_cores(made.basis_path.read_bytes(), made.basis.sites, N_MIX))
    made.basis_path.unlink()
    return Tiny(made.folder, path, read_basis_spec(path))


@pytest.fixture(scope="session")
def vllm(tiny):
    return OfflineVllm(tiny.folder, tiny.basis_path, n_slots=N_SLOTS)
