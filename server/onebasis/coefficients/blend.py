"""Weighted sums of tasks. In a shared basis the sum of the coefficients is the sum of the updates, exactly."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import write_coefficients
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.residual_sum import sum_residuals
from onebasis.coefficients.weighted_sum import weighted_sum
from onebasis.core.errors import InvalidParameter, ModelNotFound, TaskUnusable
from onebasis.core.ids import Digest
from onebasis.core.request import BlendPart, ResolvedTask, StoredNumbers, TaskCoefficients
from onebasis.core.residual import ResidualLimits, Residuals, size_bytes

_DOMAIN: Final = b"onebasis blend 1\n"  # no file begins so: a blend never has the digest of a file
_KEPT_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BlendedCoefficients:
    """A sum that exists in memory only. `cores` is [n_core_numbers] float32, of sites whose cores have `shapes`."""

    digest: Digest
    cores: NDArray[np.float32]
    shapes: tuple[tuple[int, int], ...]
    residual: Residuals

    @property
    def size_bytes(self) -> int:
        return self.cores.nbytes + size_bytes(self.residual)

    @property
    def rank(self) -> int:
        return max(map(max, self.shapes))

    def flat_cores(self) -> NDArray[np.float32]:
        return self.cores

    @property
    def stored(self) -> StoredNumbers:
        return StoredNumbers(self.cores, "core", self.shapes)


class Blends:
    """Makes blends of registered tasks; those used last are kept, up to a bound of bytes. Any thread.

    Invariant, under `_lock`: `_kept` is in the order of use, and its sums take `_kept_bytes`, at most _KEPT_BYTES, or
    it has one.

    Args:
        limits: what the residual of a sum may have.
    """

    def __init__(self, registry: TaskRegistry, basis: BasisSpec | None, limits: ResidualLimits | None = None) -> None:
        self._registry = registry
        self._limits = limits
        self._shapes = () if basis is None else tuple(site.core_shape() for site in basis.sites)
        self._lock = Lock()
        self._kept: OrderedDict[Digest, BlendedCoefficients] = OrderedDict()
        self._kept_bytes = 0

    def resolve(self, weights: Sequence[tuple[str, float]], tenant: str | None = None) -> ResolvedTask:
        """The blend of these tasks as they stand now.

        Args:
            weights: of `task` or `task@digest`, finite, at least one.
            tenant: whose names they are.

        Raises:
            ModelNotFound, TaskUnusable, StoreUnavailable: as when the part is asked for alone.
            InvalidParameter: a part is the base, or the sum is too large for float32, or its residual for this server.
        """
        found = [(self._part(model, tenant), weight) for model, weight in weights]
        parts = tuple(BlendPart(task.name, task.coefficients.digest, weight) for task, weight in found)
        digest = blend_digest(parts)
        with self._lock:
            blend = self._kept.get(digest)
        if blend is None:
            summands = [(task.coefficients, weight) for task, weight in found]
            blend = BlendedCoefficients(
                digest, _weighted_sum(summands), self._shapes, sum_residuals(summands, self._limits)
            )
        self._keep(blend)
        return ResolvedTask("+".join(part.task for part in parts), blend, parts)

    def _part(self, model: str, tenant: str | None) -> ResolvedTask:
        try:
            task = self._registry.resolve(model, tenant)
        except (ModelNotFound, TaskUnusable) as error:
            error.param = "blend"
            raise
        if task is None:
            raise InvalidParameter("blend", f"{model!r} is the base model; name tasks only")
        return task

    def _keep(self, blend: BlendedCoefficients) -> None:
        with self._lock:
            if blend.digest not in self._kept:
                self._kept[blend.digest] = blend
                self._kept_bytes += blend.size_bytes
            self._kept.move_to_end(blend.digest)
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].size_bytes


def blend_digest(parts: Sequence[BlendPart]) -> Digest:
    """The identity of a sum: of its parts' digests and exact weights, in any order."""
    lines = sorted(f"{part.digest} {part.weight.hex()}\n" for part in parts)
    return Digest("sha256:" + hashlib.sha256(_DOMAIN + "".join(lines).encode()).hexdigest())


def blend_file(blend: ResolvedTask, basis: BasisSpec, name: str) -> bytes:
    """A coefficient file of a blend: full cores and its residual in float32, its provenance says what was summed."""
    parts = [{"task": part.task, "digest": part.digest, "weight": part.weight} for part in blend.parts]
    return write_coefficients(
        blend.coefficients.flat_cores(),
        form="core",
        basis=basis.digest,
        base_fingerprint=basis.base_fingerprint,
        task=name,
        provenance={"blend": parts},
        residual=blend.coefficients.residual,
    )


def _weighted_sum(summands: Sequence[tuple[TaskCoefficients, float]]) -> NDArray[np.float32]:
    """[n_core_numbers] float32."""
    cores = weighted_sum([coefficients.flat_cores() for coefficients, _ in summands], [w for _, w in summands])
    if not np.isfinite(cores).all():
        raise InvalidParameter("blend", "the weighted sum is too large for float32; lower the weights")
    return cores
