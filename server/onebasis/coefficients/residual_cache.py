"""The device-resident residuals of the tasks in use, apart from the cores: what is large here evicts nobody there."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.coefficients.numbers import widen
from onebasis.core.errors import ResidualMemoryFull
from onebasis.core.ids import Digest
from onebasis.core.request import TaskCoefficients
from onebasis.core.residual import count_numbers


@dataclass(frozen=True, slots=True)
class LowRank:
    """y += (x a^T) b. a: [r, d_in], b: [r, d_out], contiguous, in the model's dtype."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ResidentResidual:
    """One task's residual, by site name."""

    sites: Mapping[str, LowRank]
    size_bytes: int

    @property
    def max_rank(self) -> int:
        return max(factors.a.shape[0] for factors in self.sites.values())


class ResidualCache:
    """Residuals are kept when nobody uses them, until their memory is needed: least recently used goes first.

    Invariant: each resident is either pinned at least once or idle; together they have `size_bytes`, at most
    `limit_bytes`. Engine thread only, between steps; the sizes may be read from any.

    Args:
        dtype: of the model; residuals are rounded to it as the factors of the basis are.
    """

    def __init__(self, *, limit_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._dtype = dtype
        self._device = device
        self._resident: dict[Digest, ResidentResidual] = {}
        self._n_pins: dict[Digest, int] = {}
        self._idle: OrderedDict[Digest, None] = OrderedDict()  # least recently used first

    def acquire(self, coefficients: TaskCoefficients) -> ResidentResidual:
        """Pin a task's residual, copying it in if it is not there. Each acquire needs its own release.

        Raises:
            ResidualMemoryFull: those in use leave no room for it. Nothing changed.
        """
        digest = coefficients.digest
        if digest not in self._resident:
            size_bytes = count_numbers(coefficients.residual) * self._dtype.itemsize
            self._make_room(size_bytes)
            self._resident[digest] = self._copied(coefficients, size_bytes)
            self.size_bytes += size_bytes
        self._idle.pop(digest, None)
        self._n_pins[digest] = self._n_pins.get(digest, 0) + 1
        return self._resident[digest]

    def release(self, coefficients: TaskCoefficients) -> None:
        """Undo one acquire. Raises KeyError if it is not pinned."""
        digest = coefficients.digest
        self._n_pins[digest] -= 1
        if not self._n_pins[digest]:
            del self._n_pins[digest]
            self._idle[digest] = None

    def check_integrity(self) -> None:
        """Raise if the invariant is broken. Tests call it after every operation."""
        if sorted([*self._n_pins, *self._idle]) != sorted(self._resident):
            raise AssertionError(f"pinned {self._n_pins} and idle {list(self._idle)} are not the residents")
        if any(count < 1 for count in self._n_pins.values()):
            raise AssertionError(f"pinned less than once: {self._n_pins}")
        if self.size_bytes != sum(residual.size_bytes for residual in self._resident.values()):
            raise AssertionError(f"{self.size_bytes} bytes are not those of the residents")
        if self.size_bytes > self.limit_bytes:
            raise AssertionError(f"{self.size_bytes} bytes are over {self.limit_bytes}")

    def _make_room(self, size_bytes: int) -> None:
        n_pinned = sum(self._resident[digest].size_bytes for digest in self._n_pins)
        if n_pinned + size_bytes > self.limit_bytes:
            raise ResidualMemoryFull(needed_bytes=size_bytes, used_bytes=n_pinned, limit_bytes=self.limit_bytes)
        while self.size_bytes + size_bytes > self.limit_bytes:
            digest, _ = self._idle.popitem(last=False)
            self.size_bytes -= self._resident.pop(digest).size_bytes

    def _copied(self, coefficients: TaskCoefficients, size_bytes: int) -> ResidentResidual:
        sites = {
            name: LowRank(
                torch.from_numpy(widen(factors.a)).to(self._device, self._dtype),
                torch.from_numpy(widen(factors.b)).to(self._device, self._dtype).T.contiguous(),
            )
            for name, factors in coefficients.residual.items()
        }
        return ResidentResidual(sites, size_bytes)
