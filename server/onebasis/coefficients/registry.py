"""The tasks that clients can name, in memory; the store behind it is what survives. No torch, no HTTP."""

import logging
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Final, Literal

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import StoredVersion, TaskStore
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import (
    CoefficientError,
    DigestMismatch,
    InvalidDigest,
    ModelNotFound,
    NoBasis,
    ReservedTaskName,
    ServeError,
    TaskNotFound,
    TaskUnusable,
)
from onebasis.core.ids import Digest, digest_of, parse_digest, parse_task_name
from onebasis.core.request import ResolvedTask
from onebasis.telemetry.reports import RegistrySnapshot

_LOG: Final = logging.getLogger(__name__)
_N_OLD_VERSIONS_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A task's current version. Without `coefficients` it can't serve, and `reason` says why.

    `created_at` is the Unix second of this version; `form` is None if the stored file can't even be parsed.
    """

    name: str
    digest: Digest
    generation: int
    created_at: int
    size_bytes: int
    form: str | None
    k: int | None
    provenance: Mapping[str, Any]
    coefficients: BoundCoefficients | None
    reason: str | None

    @property
    def state(self) -> Literal["ready", "unusable"]:
        return "unusable" if self.coefficients is None else "ready"


@dataclass(frozen=True, slots=True)
class Registration:
    """`created`: a new version was stored. `replaced`: there was an earlier one."""

    task: RegisteredTask
    created: bool
    replaced: bool


@dataclass(frozen=True, slots=True)
class TaskPage:
    tasks: tuple[RegisteredTask, ...]
    has_more: bool


class TaskRegistry:
    """Any thread. Writers hold `_lock` from the store to the memory; readers take no lock.

    Invariant: `_names` is the sorted keys of `_tasks`. It is replaced, never changed; a reader between the two
    updates of a writer may find a name whose task has just gone.
    """

    def __init__(
        self,
        store: TaskStore,
        basis: BasisSpec | None,
        base_name: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._basis = basis
        self._base_name = base_name
        self._clock = clock
        self._lock = Lock()
        self._tasks: dict[str, RegisteredTask] = {}
        self._names: list[str] = []
        self._counts = RegistrySnapshot()
        self._old_version = lru_cache(maxsize=_N_OLD_VERSIONS_KEPT)(self._bind_stored)

    def load(self) -> None:
        """Read every current task. One that can't serve is kept, logged and listed; it stops nothing.

        Raises:
            StoreUnavailable: the list of tasks itself can't be read.
        """
        with self._lock:
            self._tasks = {version.name: self._load_one(version) for version in self._store.current()}
            self._names = sorted(self._tasks)
            size_bytes = sum(task.size_bytes for task in self._tasks.values())
            n_retired = self._store.n_versions() - len(self._tasks)
            self._counts = RegistrySnapshot(n_registered=len(self._tasks), n_retired=n_retired, size_bytes=size_bytes)

    def register(
        self,
        name: str,
        data: bytes,
        *,
        precondition: Precondition | None = None,
        declared_digest: Digest | None = None,
    ) -> Registration:
        """Make `data` the current version of `name`. On return it serves and survives kill -9.

        Raises:
            InvalidTaskName, ReservedTaskName, NoBasis, DigestMismatch, CoefficientError: the store was not touched.
            PreconditionFailed, StoreUnavailable: nothing was stored.
        """
        if parse_task_name(name) == self._base_name:
            raise ReservedTaskName(name)
        if self._basis is None:
            raise NoBasis
        digest = digest_of(data)
        if declared_digest not in (None, digest):
            raise DigestMismatch(declared=declared_digest, found=digest)
        coefficients = bind(parse_coefficients(data), self._basis)
        with self._lock:
            demanded = precondition or Precondition()
            version = self._store.put(name, data, digest, demanded, int(self._clock()))
            task = _registered(version, coefficients.file, coefficients, reason=None)
            before = self._tasks.get(name)
            self._remember(name, task, n_new_versions=int(version.created))
        return Registration(task, version.created, replaced=version.created and before is not None)

    def delete(self, name: str, precondition: Precondition | None = None) -> RegisteredTask:
        """Take a task away; what is in flight finishes. Returns what it was.

        Raises:
            TaskNotFound, PreconditionFailed, StoreUnavailable: nothing has changed.
        """
        with self._lock:
            task = self.get(name)
            self._store.delete(name, precondition or Precondition(), int(self._clock()))
            self._remember(name, None, n_new_versions=1)
        return task

    def get(self, name: str) -> RegisteredTask:
        """The current version. Raises TaskNotFound."""
        task = self._tasks.get(name)
        if task is None:
            raise TaskNotFound(name)
        return task

    def page(self, limit: int, after: str | None = None) -> TaskPage:
        """Up to `limit` tasks by name, from the first behind `after`."""
        names = self._names
        start = 0 if after is None else bisect_right(names, after)
        found = map(self._tasks.get, names[start : start + limit])
        return TaskPage(tuple(task for task in found if task is not None), start + limit < len(names))

    def content(self, name: str) -> bytes:
        """The exact bytes that were uploaded. Raises TaskNotFound, StoreUnavailable."""
        return self._store.body(self.get(name).digest)

    def resolve(self, model: str) -> ResolvedTask | None:
        """What a request's `model` means now: None for the base, a task, or `task@digest` for one of its versions.

        Reads the store only for a version that is not current.

        Raises:
            ModelNotFound: no such task, or it never had that version since it was last deleted.
            TaskUnusable: it exists, but not for this basis, or its bytes are damaged.
            StoreUnavailable: an old version can't be read now.
        """
        if model == self._base_name:
            return None
        name, at, digest = model.partition("@")
        task = self._tasks.get(name)
        if task is None:
            raise ModelNotFound(model)
        if at and digest != task.digest:
            return ResolvedTask(name, self._old_version_of(name, digest, model))
        if task.coefficients is None:
            raise TaskUnusable(name, task.reason or "unknown")
        return ResolvedTask(name, task.coefficients)

    def snapshot(self) -> RegistrySnapshot:
        return self._counts

    def _remember(self, name: str, task: RegisteredTask | None, *, n_new_versions: int) -> None:
        """Bring the memory to what the store now says of one name. Under the lock."""
        before = self._tasks.get(name)
        names = self._names.copy()
        if task is None:
            names.remove(name)
            del self._tasks[name]
        else:
            self._tasks[name] = task
            if before is None:
                insort(names, name)
        self._names = names
        counts = self._counts
        n_versions = counts.n_registered + counts.n_retired + n_new_versions
        size_bytes = counts.size_bytes + _size_bytes(task) - _size_bytes(before)
        self._counts = RegistrySnapshot(
            n_registered=len(names), n_retired=n_versions - len(names), size_bytes=size_bytes
        )

    def _load_one(self, version: StoredVersion) -> RegisteredTask:
        file = coefficients = reason = None
        try:
            if version.name == self._base_name:
                raise ReservedTaskName(version.name)
            file = self._parse_stored(version.digest)
            if self._basis is None:
                raise NoBasis
            coefficients = bind(file, self._basis)
        except ServeError as error:
            reason = str(error)
            _LOG.warning("task %s at %s can't serve: %s", version.name, version.digest, reason)
        return _registered(version, file, coefficients, reason)

    def _parse_stored(self, digest: Digest) -> CoefficientFile:
        file = parse_coefficients(self._store.body(digest))
        if file.digest != digest:
            raise CoefficientError(f"the stored bytes of {digest} are damaged, their digest is {file.digest}")
        return file

    def _bind_stored(self, digest: Digest) -> BoundCoefficients:
        if self._basis is None:
            raise NoBasis
        return bind(self._parse_stored(digest), self._basis)

    def _old_version_of(self, name: str, digest: str, model: str) -> BoundCoefficients:
        try:
            version = self._store.version_of(name, parse_digest(digest))
        except InvalidDigest as error:
            raise ModelNotFound(model) from error
        if version is None:
            raise ModelNotFound(model)
        try:
            return self._old_version(version.digest)
        except (CoefficientError, NoBasis) as error:
            raise TaskUnusable(model, str(error)) from error


def _registered(
    version: StoredVersion,
    file: CoefficientFile | None,
    coefficients: BoundCoefficients | None,
    reason: str | None,
) -> RegisteredTask:
    return RegisteredTask(
        name=version.name,
        digest=version.digest,
        generation=version.generation,
        created_at=version.created_at,
        size_bytes=version.size_bytes,
        form=file.form if file else None,
        k=file.k if file else None,
        provenance=file.provenance if file else {},
        coefficients=coefficients,
        reason=reason,
    )


def _size_bytes(task: RegisteredTask | None) -> int:
    return 0 if task is None else task.size_bytes
