"""A task's full cores from its coefficients: on the host, or on a GPU from the numbers as the file holds them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.request import StoredNumbers, TaskCoefficients
from onebasis.kernels import triton_batched
from onebasis.kernels.triton_batched import Expansion, expand_, plan_expansion
from onebasis.kernels.vector_expansion import VectorExpansion, expand_vector, plan_vector_expansion

Expand = Callable[[TaskCoefficients], Tensor]
"""Gives [n_core_numbers] float32, the cores of all sites."""

_N_PLANS: Final = 64
_STORED_DTYPES: Final = {
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.uint16): torch.bfloat16,
}


def expansion_for(basis: BasisSpec, device: torch.device) -> Expand:
    """The way that fits the device: Triton's on a GPU where triton is installed, the host's everywhere else."""
    if device.type == "cuda" and triton_batched.is_available():
        return DeviceExpansion(basis, device)
    return expand_on_host


def expand_on_host(coefficients: TaskCoefficients) -> Tensor:
    """Full cores, on the CPU."""
    return torch.from_numpy(coefficients.flat_cores())


class DeviceExpansion:
    """Copies the file's few numbers to the device and expands them there, after what the device is doing already.

    Forms `core` and `diag` are Triton's, `vector` is a product of torch's over mixing cores that stay on the device.
    The copy comes from pinned memory on a stream of its own: it neither waits for the running step nor makes the
    engine thread wait. Keeps the layouts (form, prefix, choice of sites) of late; most tasks share one. Engine
    thread only.
    """

    def __init__(self, basis: BasisSpec, device: torch.device) -> None:
        self._core_shapes = [site.core_shape() for site in basis.sites]
        self._mixing = [torch.from_numpy(basis.mixing[site.name]).to(device) for site in basis.sites if basis.mixing]
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._plan = lru_cache(maxsize=_N_PLANS)(self._make_plan)

    def __call__(self, coefficients: TaskCoefficients) -> Tensor:
        """[n_core_numbers] float32 on the device."""
        stored = coefficients.stored
        plan = self._plan(stored.form, stored.used_shapes)
        if isinstance(plan, VectorExpansion):
            return expand_vector(self._to_device(stored), plan)
        cores = torch.empty(plan.n_core_numbers, dtype=torch.float32, device=self._device)
        expand_(cores, self._to_device(stored), plan)
        return cores

    def _make_plan(self, form: str, used_shapes: tuple[tuple[int, int], ...]) -> Expansion | VectorExpansion:
        if form == "vector":
            return plan_vector_expansion(self._mixing, [used != (0, 0) for used in used_shapes])
        return plan_expansion(form, self._core_shapes, used_shapes, device=self._device)

    def _to_device(self, stored: StoredNumbers) -> Tensor:
        staged = torch.empty(stored.values.nbytes, dtype=torch.uint8, pin_memory=self._copies is not None)
        staged.numpy()[:] = stored.values.view(np.uint8)
        numbers = staged.view(_STORED_DTYPES[stored.values.dtype])
        if self._copies is None:
            return numbers
        with torch.cuda.stream(self._copies):
            copied = numbers.to(self._device, non_blocking=True)
        running = torch.cuda.current_stream(self._device)
        running.wait_stream(self._copies)
        copied.record_stream(running)
        return copied
