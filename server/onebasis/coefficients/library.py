"""The coefficient files that this process has in memory, bound to the loaded basis, by digest. No torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from weakref import WeakValueDictionary

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.store import TaskStore
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import CoefficientError, NoBasis, ServeError, StoreDamaged
from onebasis.core.ids import Digest
from onebasis.core.residual import ResidualLimits

_N_OLD_FILES_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class Binding:
    """A stored file under the loaded basis. Without `coefficients` it can't serve, and `reason` says why.

    `file` is None if not even its bytes could be parsed.
    """

    file: CoefficientFile | None
    coefficients: BoundCoefficients | None
    reason: str | None


class Library:
    """Reads files from the store and binds them. Any thread.

    A file that somebody still uses is never read twice: tasks that share it share its memory.

    Args:
        limits: what residuals may serve; a stored file beyond them is as one that does not fit the basis.
    """

    def __init__(self, store: TaskStore, basis: BasisSpec | None, limits: ResidualLimits | None) -> None:
        self._store = store
        self._basis = basis
        self._limits = limits
        self._in_use: WeakValueDictionary[Digest, BoundCoefficients] = WeakValueDictionary()
        self._recently_used = lru_cache(maxsize=_N_OLD_FILES_KEPT)(self._bind_stored)

    @property
    def basis(self) -> BasisSpec:
        """The loaded basis. Raises NoBasis."""
        if self._basis is None:
            raise NoBasis
        return self._basis

    def bind_upload(self, data: bytes) -> BoundCoefficients:
        """Check uploaded bytes. While the result is held, they need not be read from the store.

        Raises:
            NoBasis, CoefficientError.
        """
        coefficients = bind(parse_coefficients(data), self.basis, self._limits)
        return self._shared(coefficients)

    def bind_version(self, digest: Digest) -> BoundCoefficients:
        """One stored file; the last few that were asked for are kept.

        Raises:
            KeyError: no version names it any more.
            NoBasis, CoefficientError: it can't serve.
            StoreUnavailable, StoreDamaged: its bytes can't be read.
        """
        return self._in_use.get(digest) or self._recently_used(digest)

    def bind_all(self, digests: Collection[Digest]) -> Mapping[Digest, Binding]:
        """All of these files that some version still names; one that can't serve stops nothing.

        Raises:
            StoreUnavailable.
        """
        found = {digest: self._bound(digest) for digest in digests}
        for digest, data in self._store.bodies([digest for digest, binding in found.items() if binding is None]):
            found[digest] = self._binding(digest, data)
        return {digest: binding for digest, binding in found.items() if binding is not None}

    def _bound(self, digest: Digest) -> Binding | None:
        coefficients = self._in_use.get(digest)
        return None if coefficients is None else Binding(coefficients.file, coefficients, reason=None)

    def _binding(self, digest: Digest, data: bytes | StoreDamaged) -> Binding:
        file = None
        try:
            if isinstance(data, StoreDamaged):
                raise data
            file = _parse_stored(digest, data)
            return Binding(file, self._shared(bind(file, self.basis, self._limits)), reason=None)
        except ServeError as error:
            return Binding(file, None, reason=str(error))

    def _bind_stored(self, digest: Digest) -> BoundCoefficients:
        return self._shared(bind(_parse_stored(digest, self._store.body(digest)), self.basis, self._limits))

    def _shared(self, coefficients: BoundCoefficients) -> BoundCoefficients:
        return self._in_use.setdefault(coefficients.digest, coefficients)


def _parse_stored(digest: Digest, data: bytes) -> CoefficientFile:
    file = parse_coefficients(data)
    if file.digest != digest:
        raise CoefficientError(f"the stored bytes of {digest} are damaged, their digest is {file.digest}")
    return file
