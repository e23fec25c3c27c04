"""What the registry answers. Field names are those of the JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Residual:
    """What a task has beside the basis. rank: the highest of any site. size_bytes: of its numbers. sites: how many."""

    rank: int
    size_bytes: int
    sites: int


@dataclass(frozen=True, slots=True)
class Task:
    """A registered task at its current version.

    Attributes:
        id: its name.
        digest: `sha256:<hex>` of the coefficient file's bytes.
        generation: counts the changes of the task, from 1.
        basis: digest of the basis that the server runs.
        created_at: Unix time in seconds.
        state: `ready`, or why it can't serve with the `reason`.
        provenance: what the file says about its making: data, recipe, scores.
        metadata: what the writer of this version noted beside it.
        tenant: to whom it is private; None for a task that all may use.
        residual: its private low-rank update; None for a task that the basis holds whole.
    """

    id: str
    digest: str
    generation: int
    base: str
    basis: str | None
    size_bytes: int
    form: str
    k: int | None
    created_at: int
    state: str
    reason: str | None
    provenance: Any
    metadata: Mapping[str, str]
    tenant: str | None = None
    residual: Residual | None = None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Part of the registry, by name."""

    data: tuple[Task, ...]
    last_id: str | None
    has_more: bool


@dataclass(frozen=True, slots=True)
class Version:
    """One of the versions that a task has had since it was last deleted."""

    task: str
    digest: str
    generation: int
    size_bytes: int
    created_at: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Part of a task's history, newest first."""

    data: tuple[Version, ...]
    last_id: int | None
    has_more: bool


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a write. `created` False: the task stood at these bytes already."""

    task: Task
    created: bool


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted layer, and the sizes of its factors V [k_in, d_in] and U [k_out, d_out].

    n_mix: how many numbers a task of form `vector` has here; 0 if the basis knows no such form.
    """

    name: str
    d_in: int
    d_out: int
    k_in: int
    k_out: int
    n_mix: int = 0


@dataclass(frozen=True, slots=True)
class Basis:
    """What coefficients have to be made for."""

    digest: str
    size_bytes: int
    kind: str
    base_model: str
    base_fingerprint: str
    sites: tuple[Site, ...]
    report: Mapping[str, Any]
