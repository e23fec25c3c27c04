"""The tasks that clients can name. The store is the truth; the memory follows it. No torch, no HTTP."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.catalog import Catalog, RegisteredTask, TaskPage
from onebasis.coefficients.library import Binding, Library
from onebasis.coefficients.preconditions import NO_PRECONDITION, Precondition
from onebasis.coefficients.store import Mark, StoredVersion, TaskStore, Written
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.errors import (
    CoefficientError,
    DigestMismatch,
    InvalidDigest,
    InvalidTaskName,
    ModelNotFound,
    NoBasis,
    RequestError,
    ReservedTaskName,
    StoreDamaged,
    StoreUnavailable,
    TaskNotFound,
    TaskUnusable,
    VersionNotFound,
)
from onebasis.core.ids import Digest, TaskKey, digest_of, parse_digest, parse_task_name
from onebasis.core.request import ResolvedTask
from onebasis.core.residual import ResidualLimits
from onebasis.identity.audit import Action
from onebasis.identity.caller import OPERATOR, Caller
from onebasis.identity.errors import PermissionDenied
from onebasis.telemetry.reports import RegistrySnapshot

_LOG: Final = logging.getLogger(__name__)
_N_HISTORIES_KEPT: Final = 128
_MISS_WAITS_S: Final = 2.0  # for the store, before a name that the memory does not know is "not now"
_PAUSE_AFTER_FAILURE_S: Final = 1.0  # in which misses do not ask a store that has just failed


@dataclass(frozen=True, slots=True)
class Registration:
    """`created`: a new version was stored. `replaced`: there was an earlier one."""

    task: RegisteredTask
    created: bool
    replaced: bool


class TaskRegistry:
    """Any thread. Writers of all replicas meet in the store alone; `follow` brings what they did to this memory.

    Invariant, under `_lock`: `_catalog` is the store as it was at `_mark`, perhaps without tasks that have been deleted
    since. Readers take no lock.

    Args:
        residual_limits: what a task's residual may have; None for any that the basis's sites can have.
    """

    def __init__(
        self,
        store: TaskStore,
        basis: BasisSpec | None,
        base_name: str,
        clock: Callable[[], float] = time.time,
        residual_limits: ResidualLimits | None = None,
    ) -> None:
        self._store = store
        self._library = Library(store, basis, residual_limits)
        self._base_name = base_name
        self._clock = clock
        self._catalog = Catalog()
        self._lock = threading.Lock()
        self._mark: Mark | None = None
        self._n_begun = 0  # readings of the store
        self._last_done = 0  # the number of the last one that succeeded
        self._followed_s = time.monotonic()
        self._failed_s = float("-inf")
        self._history = lru_cache(maxsize=_N_HISTORIES_KEPT)(self._read_history)

    def follow(self, *, wait_s: float = -1) -> None:
        """Bring the memory to the store as it is at some moment after this call began.

        Threads that call at once share one reading. A task that can't serve is kept, logged and listed; it stops
        nothing.

        Args:
            wait_s: how long to wait for another thread's reading; -1 for as long as it takes.

        Raises:
            StoreUnavailable, StoreDamaged: the memory is as it was.
        """
        n_begun_before = self._n_begun
        if not self._lock.acquire(timeout=wait_s):
            self._failed_s = time.monotonic()
            raise StoreUnavailable(f"no answer within {wait_s:.0f} s")
        try:
            if self._last_done > n_begun_before:
                return
            self._n_begun += 1
            self._read_changes()
            self._last_done = self._n_begun
            self._followed_s = time.monotonic()
        except (StoreUnavailable, StoreDamaged):
            self._failed_s = time.monotonic()
            raise
        finally:
            self._lock.release()

    def register(
        self,
        name: str,
        data: bytes,
        *,
        author: Caller = OPERATOR,
        precondition: Precondition = NO_PRECONDITION,
        declared_digest: Digest | None = None,
        metadata: Mapping[str, str] | None = None,
        action: Action = Action.TASK_PUT,
    ) -> Registration:
        """Make `data` the current version of `name`. On return it serves and survives kill -9.

        Args:
            author: whose task it is, and whose quota it uses. The operator's tasks are shared with all.
            action: what the audit log calls it.
            metadata: of the new version; None: whatever it has if the task stands at these bytes already.

        Raises:
            InvalidTaskName, ReservedTaskName, NoBasis, DigestMismatch, CoefficientError: the store was not touched.
            PreconditionFailed, QuotaExceeded, StoreUnavailable: nothing was stored.
        """
        if parse_task_name(name) == self._base_name:
            raise ReservedTaskName(name)
        digest = digest_of(data)
        if declared_digest not in (None, digest):
            raise DigestMismatch(declared=declared_digest, found=digest)
        coefficients = self._library.bind_upload(data)
        written = self._store.put(
            name,
            data,
            digest,
            author=author,
            now=int(self._clock()),
            precondition=precondition,
            metadata=metadata,
            action=action,
        )
        return self._registration(written, Binding(coefficients.file, coefficients, reason=None))

    def roll_back(
        self, name: str, digest: Digest, precondition: Precondition = NO_PRECONDITION, *, author: Caller = OPERATOR
    ) -> Registration:
        """Make an older version of a task the current one, by one more version.

        Raises:
            TaskNotFound, VersionNotFound, TaskUnusable, PreconditionFailed, StoreUnavailable: nothing has changed.
            PermissionDenied: a tenant can't change a shared task.
        """
        self._check_spelling(name)
        known = self._store.digests(name, author.owner)
        if digest not in known:
            self._check_owned(name, author)
            raise VersionNotFound(name, digest) if known else TaskNotFound(name)  # the memory may be older
        coefficients = self._usable(name, digest, gone=TaskNotFound(name))
        written = self._store.point(name, digest, author=author, now=int(self._clock()), precondition=precondition)
        return self._registration(written, Binding(coefficients.file, coefficients, reason=None))

    def delete(
        self, name: str, precondition: Precondition = NO_PRECONDITION, *, author: Caller = OPERATOR
    ) -> StoredVersion:
        """Take a task away; what is in flight finishes. Returns the version that it had.

        Raises:
            TaskNotFound, PreconditionFailed, StoreUnavailable: nothing has changed.
            PermissionDenied: a tenant can't delete a shared task.
        """
        self._check_spelling(name)
        try:
            version = self._store.delete(name, author=author, now=int(self._clock()), precondition=precondition)
        except TaskNotFound:
            self._check_owned(name, author)
            raise
        self.follow()
        return version

    def get(self, name: str, tenant: str | None = None) -> RegisteredTask:
        """The current version of what the name means to a tenant, or to the operator.

        Raises:
            TaskNotFound, also of another tenant's task; StoreUnavailable if the memory can't tell.
        """
        task = self._find(name, tenant)
        if task is None:
            raise TaskNotFound(name)
        return task

    def page(self, limit: int, after: str | None = None, tenant: str | None = None) -> TaskPage:
        """Up to `limit` tasks that a tenant can name, by name, from the first behind `after`."""
        return self._catalog.page(limit, after, tenant)

    def versions(
        self, name: str, limit: int, before: int | None = None, tenant: str | None = None
    ) -> list[StoredVersion]:
        """Up to `limit` versions, newest first, since the task was last deleted. Raises TaskNotFound."""
        self._check_spelling(name)
        if tenant is not None:
            with suppress(TaskNotFound):
                return self._store.versions(name, limit, before, owner=tenant)
        return self._store.versions(name, limit, before)

    def content(self, name: str, digest: Digest | None = None, tenant: str | None = None) -> tuple[Digest, bytes]:
        """The digest and the exact bytes of a version, by default the current one.

        Raises:
            TaskNotFound, VersionNotFound, StoreUnavailable, StoreDamaged.
        """
        self._check_spelling(name)
        if tenant is not None:
            with suppress(TaskNotFound):
                return self._store.content(name, digest, owner=tenant)
        return self._store.content(name, digest)

    def resolve(self, model: str, tenant: str | None = None) -> ResolvedTask | None:
        """What a request's `model` means now: None for the base, a task, or `task@digest` for one of its versions.

        A name means a tenant's own task, or a shared one if it has none of that name.

        Reads the store only for a name or version that the memory does not know.

        Raises:
            ModelNotFound: no such task, or it never had that version since it was last deleted.
            TaskUnusable: it exists, but not for this basis, or its bytes are damaged.
            StoreUnavailable: the store would have to be read, and can't be now.
        """
        if model == self._base_name:
            return None
        name, at, digest = model.partition("@")
        task = self._find(name, tenant)
        if task is None:
            raise ModelNotFound(model)
        if at and digest != task.digest:
            return ResolvedTask(name, self._old_version(task.key, digest, model))
        if task.coefficients is None:
            raise TaskUnusable(name, task.reason or "unknown")
        return ResolvedTask(name, task.coefficients)

    def snapshot(self) -> RegistrySnapshot:
        """Counts as of the last reading of the store, and how long ago that was. O(1)."""
        n_versions = 0 if self._mark is None else self._mark.change
        n_registered = len(self._catalog)
        return RegistrySnapshot(
            n_registered=n_registered,
            n_retired=n_versions - n_registered,
            size_bytes=self._catalog.size_bytes,
            age_s=time.monotonic() - self._followed_s,
        )

    def _read_changes(self) -> None:
        """Under the lock. What is deleted before its file is read is left out: it will be looked for, and not found."""
        changes = self._store.changes(self._mark)
        live = [version for version in changes.tasks.values() if version is not None]
        bindings = self._library.bind_all([version.digest for version in live])
        found = [version for version in live if version.digest in bindings]
        tasks = {version.key: self._registered(version, bindings[version.digest]) for version in found}
        if changes.is_whole:
            self._catalog.replace_all(tasks)
        else:
            for key in changes.tasks:
                self._catalog.set(key, tasks.get(key))
        self._mark = changes.mark

    def _registered(self, version: StoredVersion, binding: Binding) -> RegisteredTask:
        if version.name == self._base_name:
            binding = Binding(binding.file, None, reason=str(ReservedTaskName(version.name)))
        if binding.coefficients is None:
            _LOG.warning("task %s at %s can't serve: %s", version.name, version.digest, binding.reason)
        return RegisteredTask(version, binding)

    def _registration(self, written: Written, binding: Binding) -> Registration:
        self.follow()
        return Registration(self._registered(written.version, binding), written.created, written.replaced)

    def _find(self, name: str, tenant: str | None) -> RegisteredTask | None:
        """A task of the memory or, before it is said to be unknown, of the store."""
        task = self._catalog.find(name, tenant)
        if task is None and _is_spelt_right(name):
            self._look_again()
            task = self._catalog.find(name, tenant)
        return task

    def _check_owned(self, name: str, author: Caller) -> None:
        """Why the author has nothing to change here. Raises TaskNotFound, or PermissionDenied of a shared task."""
        task = self.get(name, author.tenant)
        if task.key.owner != author.owner:
            raise PermissionDenied(f"task {name!r} is shared by all tenants; only a key without a tenant changes it")

    def _look_again(self) -> None:
        """Follow for the sake of something unknown; a store that does not answer is not asked by everybody."""
        if time.monotonic() - self._failed_s < _PAUSE_AFTER_FAILURE_S:
            raise StoreUnavailable("it failed a moment ago")
        self.follow(wait_s=_MISS_WAITS_S)

    def _old_version(self, key: TaskKey, digest: str, model: str) -> BoundCoefficients:
        try:
            wanted = parse_digest(digest)
        except InvalidDigest as error:
            raise ModelNotFound(model) from error
        if not self._has_had(key, wanted):
            self._look_again()
            if not self._has_had(key, wanted):
                raise ModelNotFound(model)
        return self._usable(model, wanted, gone=ModelNotFound(model))

    def _has_had(self, key: TaskKey, digest: Digest) -> bool:
        """Since the task was last deleted.

        The mark is read before the task, and set after it. The other way round a restore in between could pair the new
        epoch with a generation of the old one, under which a history would be kept that is too short later.
        """
        mark = self._mark
        task = self._catalog.get(key)
        return mark is not None and task is not None and digest in self._history(mark.epoch, key, task.generation)

    def _read_history(self, _epoch: str, key: TaskKey, _generation: int) -> frozenset[Digest]:
        """The digests that a task has had, asked anew when the memory has a new generation or another epoch."""
        return self._store.digests(key.name, key.owner)

    def _usable(self, shown: str, digest: Digest, *, gone: RequestError) -> BoundCoefficients:
        """`gone`: what to raise if its bytes are, because the task has been deleted meanwhile."""
        try:
            return self._library.bind_version(digest)
        except KeyError:
            raise gone from None
        except (CoefficientError, NoBasis, StoreDamaged) as error:
            raise TaskUnusable(shown, str(error)) from error

    @staticmethod
    def _check_spelling(name: str) -> None:
        if not _is_spelt_right(name):
            raise TaskNotFound(name)


def _is_spelt_right(name: str) -> bool:
    try:
        return parse_task_name(name) == name
    except InvalidTaskName:
        return False
