"""Which expansion a device gets, and the host's. What the GPU's gives: tests/kernels/test_triton_interpreted.py."""

import numpy as np
import pytest
import torch

from onebasis.coefficients import expansion
from onebasis.coefficients.expansion import DeviceExpansion, expand_on_host, expansion_for
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.kernels import triton_batched
from onebasis.kernels.vector_expansion import expand_vector, plan_vector_expansion
from tests.coefficients.builders import basis_spec, coefficients, mixed_basis_spec

BASIS = basis_spec()
MIXED = mixed_basis_spec()
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("sites", [None, ("layers.0.up_proj",), ("layers.0.q_proj", "layers.1.q_proj")])
def test_a_device_expands_vectors_as_the_host_does(dtype, sites):
    """In torch alone, so what runs on a GPU runs here."""
    task = bind(parse_coefficients(coefficients(MIXED, form="vector", sites=sites, dtype=dtype)), MIXED)
    assert task.stored.form == "vector"
    on_device = DeviceExpansion(MIXED, torch.device("cpu"))(task)
    assert on_device.dtype == torch.float32
    assert torch.equal(on_device, expand_on_host(task)), "both sum in one order"


def test_sites_of_one_size_are_expanded_together():
    mixing = [torch.randn(3, 2, 4), torch.randn(2, 5, 1), torch.randn(3, 2, 4)]
    plan = plan_vector_expansion(mixing, [True, True, True])
    assert [part.mixing.shape for part in plan.parts] == [(2, 3, 8), (1, 2, 5)]
    numbers = torch.randn(5)
    first, second, third = expand_vector(numbers, plan).split([8, 5, 8])
    torch.testing.assert_close(first.view(2, 4), mixing[0][0] + numbers[0] * mixing[0][1] + numbers[1] * mixing[0][2])
    torch.testing.assert_close(second.view(5, 1), mixing[1][0] + numbers[2] * mixing[1][1])
    torch.testing.assert_close(third.view(2, 4), mixing[2][0] + numbers[3] * mixing[2][1] + numbers[4] * mixing[2][2])
    with pytest.raises(ValueError, match=r"needed \[5\], found \[4\]"):
        expand_vector(numbers[:4], plan)
