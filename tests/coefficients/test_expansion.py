"""Which expansion a device gets, and the host's. What the GPU's gives: tests/kernels/test_triton_interpreted.py."""

import numpy as np
import pytest
import torch

from onebasis.coefficients import expansion
from onebasis.coefficients.expansion import expand_on_host, expansion_for
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.kernels import triton_batched
from tests.coefficients.builders import basis_spec, coefficients

BASIS = basis_spec()
GPU = torch.device("cuda")


def bound(**options):
    return bind(parse_coefficients(coefficients(BASIS, **options)), BASIS)


def test_the_host_expands_for_a_cpu_and_where_triton_is_missing(monkeypatch):
    assert expansion_for(BASIS, torch.device("cpu")) is expand_on_host
    monkeypatch.setattr(triton_batched, "is_available", lambda: False)
    assert expansion_for(BASIS, GPU) is expand_on_host


def test_a_gpu_expands_by_itself_where_triton_is_installed(monkeypatch):
    """The choice alone: there is no GPU to do it."""
    monkeypatch.setattr(triton_batched, "is_available", lambda: True)
    monkeypatch.setattr(expansion, "DeviceExpansion", lambda basis, device: (basis, device))
    assert expansion_for(BASIS, GPU) == (BASIS, GPU)


def test_the_host_gives_the_cores_of_the_file():
    task = bound(form="diag", k=2)
    assert expand_on_host(task).tolist() == task.flat_cores().tolist()


@pytest.mark.parametrize(
    ("options", "used_shapes"),
    [
        ({}, ((2, 3), (5, 4), (7, 6))),
        ({"k": 3}, ((2, 3), (3, 3), (3, 3))),
        ({"form": "diag", "k": 3, "sites": ("layers.0.up_proj",)}, ((0, 0), (3, 3), (0, 0))),
    ],
)
def test_stored_numbers_are_the_files_own_with_their_places(options, used_shapes):
    task = bound(dtype=np.float16, **options)
    assert task.stored.values.dtype == np.float16
    assert task.stored.values.tolist() == task.file.numbers().tolist()
    assert (task.stored.form, task.stored.used_shapes) == (options.get("form", "core"), used_shapes)
