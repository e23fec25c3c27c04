"""The current version of every task, in memory."""

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onebasis.coefficients.library import Binding
from onebasis.coefficients.store import StoredVersion
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.ids import Digest


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """One version of a task. Without `coefficients` it can't serve, and `reason` says why."""

    version: StoredVersion
    binding: Binding

    @property
    def name(self) -> str:
        return self.version.name

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

    Invariant: `_names` is the sorted keys of `_tasks`, `_size_bytes` the sum of their files' sizes. Both containers
    are replaced by a writer that changes many tasks; a reader between two updates may find a name whose task has
    just gone.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, RegisteredTask] = {}
        self._names: list[str] = []
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._names)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def get(self, name: str) -> RegisteredTask | None:
        return self._tasks.get(name)

    def page(self, limit: int, after: str | None) -> TaskPage:
        """Up to `limit` tasks by name, from the first behind `after`."""
        names = self._names
        start = 0 if after is None else bisect_right(names, after)
        found = map(self._tasks.get, names[start : start + limit])
        return TaskPage(tuple(task for task in found if task is not None), start + limit < len(names))

    def replace_all(self, tasks: Mapping[str, RegisteredTask]) -> None:
        """Hold these and no others."""
        self._tasks = dict(tasks)
        self._names = sorted(tasks)
        self._size_bytes = sum(task.version.size_bytes for task in tasks.values())

    def set(self, name: str, task: RegisteredTask | None) -> None:
        """One task's new version; None takes it away."""
        before = self._tasks.get(name)
        if before is not None:
            self._size_bytes -= before.version.size_bytes
        if task is not None:
            self._size_bytes += task.version.size_bytes
            self._tasks[name] = task
        if (task is None) != (before is None):
            names = self._names.copy()
            if task is None:
                names.remove(name)
                del self._tasks[name]
            else:
                insort(names, name)
            self._names = names
