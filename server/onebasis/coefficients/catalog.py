"""The current version of every task, in memory."""

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from typing import Any, Literal

from onebasis.coefficients.library import Binding
from onebasis.coefficients.store import StoredVersion
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.ids import SHARED, Digest, TaskKey
from onebasis.core.residual import Residuals


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """One version of a task. Without `coefficients` it can't serve, and `reason` says why."""

    version: StoredVersion
    binding: Binding

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def key(self) -> TaskKey:
        return self.version.key

    @property
    def digest(self) -> Digest:
        return self.version.digest

    @property
    def generation(self) -> int:
        return self.version.generation

    @property
    def created_at(self) -> int:
        """Unix second of this version."""
        return self.version.created_at

    @property
    def size_bytes(self) -> int:
        return self.version.size_bytes

    @property
    def form(self) -> str | None:
        """None if the stored file can't even be parsed, as with `k`."""
        return self.binding.file.form if self.binding.file else None

    @property
    def k(self) -> int | None:
        return self.binding.file.k if self.binding.file else None

    @property
    def residual(self) -> Residuals:
        return self.binding.file.residual if self.binding.file else {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.binding.file.provenance if self.binding.file else {}

    @property
    def coefficients(self) -> BoundCoefficients | None:
        return self.binding.coefficients

    @property
    def reason(self) -> str | None:
        return self.binding.reason

    @property
    def state(self) -> Literal["ready", "unusable"]:
        return "unusable" if self.coefficients is None else "ready"


@dataclass(frozen=True, slots=True)
class TaskPage:
    tasks: tuple[RegisteredTask, ...]
    has_more: bool


class Catalog:
    """Readers of any thread take no lock; its owner lets one writer in at a time.

    Invariant: `_names` is the sorted names of `_tasks`' keys by owner, `_size_bytes` the sum of their files' sizes.
    Lists of names are replaced, never changed; a reader between two updates may find a name whose task has just gone.
    """

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, RegisteredTask] = {}
        self._names: dict[str, list[str]] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def get(self, key: TaskKey) -> RegisteredTask | None:
        return self._tasks.get(key)

    def find(self, name: str, tenant: str | None) -> RegisteredTask | None:
        """What the name means to a tenant: its own task before a shared one. To the operator: the shared one."""
        own = None if tenant is None else self._tasks.get(TaskKey(tenant, name))
        return own or self._tasks.get(TaskKey(SHARED, name))

    def page(self, limit: int, after: str | None, tenant: str | None) -> TaskPage:
        """Up to `limit` tasks that a tenant can name, by name, from the first behind `after`."""
        some = []
        for owner in {tenant or SHARED, SHARED}:
            names = self._names.get(owner, [])
            start = 0 if after is None else bisect_right(names, after)
            some.append(names[start : start + limit + 1])
        names = [name for name, _ in groupby(merge(*some))]
        found = (self.find(name, tenant) for name in names[:limit])
        return TaskPage(tuple(task for task in found if task is not None), len(names) > limit)

    def replace_all(self, tasks: Mapping[TaskKey, RegisteredTask]) -> None:
        """Hold these and no others."""
        names: dict[str, list[str]] = {}
        for owner, name in sorted(tasks):
            names.setdefault(owner, []).append(name)
        self._tasks = dict(tasks)
        self._names = names
        self._size_bytes = sum(task.version.size_bytes for task in tasks.values())

    def set(self, key: TaskKey, task: RegisteredTask | None) -> None:
        """One task's new version; None takes it away."""
        before = self._tasks.get(key)
        if before is not None:
            self._size_bytes -= before.version.size_bytes
        if task is not None:
            self._size_bytes += task.version.size_bytes
            self._tasks[key] = task
        if (task is None) != (before is None):
            names = self._names.get(key.owner, []).copy()
            if task is None:
                names.remove(key.name)
                del self._tasks[key]
            else:
                insort(names, key.name)
            self._names[key.owner] = names
            if not names:
                del self._names[key.owner]
