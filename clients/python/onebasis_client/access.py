"""Keys, quotas and the audit log, as admins set and read them. Field names are those of the JSON."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict


class Scope(StrEnum):
    """What a key may do. None implies another."""

    GENERATE = "generate"
    REGISTER = "register"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; never the key itself. Times are Unix seconds.

    Attributes:
        id: public, names the key in the audit log.
        scopes: what it may do; a Scope each, or one that this client does not know yet.
        tenant: whose tasks are private to it; None for the operator.
    """

    id: str
    label: str
    scopes: tuple[str, ...]
    tenant: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class NewKey(ApiKey):
    """A key just made. `key` opens the server, and is shown in this answer alone."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Part of the keys, by id."""

    data: tuple[ApiKey, ...]
    last_id: str | None
    has_more: bool


class Limits(TypedDict, total=False):
    """Limits of a tenant; one left out or None does not limit. What each counts: the server's docs/access.md."""

    tasks: int | None
    bytes: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use. None: no limit."""

    tenant: str
    tasks: int | None
    bytes: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change and its author.

    Attributes:
        id: counts up in the order of the changes, perhaps with gaps.
        at: Unix time in seconds.
        key_id: of the key that was used; None on a server without keys.
        action: such as `task.put`, `key.revoke`, `quota.set`.
        subject: the task, key or tenant that was changed.
        digest: of a task's new version, or of the one that a delete took away; `generation` likewise.
    """

    id: int
    at: int
    key_id: str | None
    tenant: str | None
    request_id: str | None
    action: str
    subject: str
    digest: str | None
    generation: int | None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Part of the audit log, oldest first."""

    data: tuple[AuditEntry, ...]
    last_id: int | None
    has_more: bool
