"""A record of every change: who, what, when, on which request. Written in the transaction of the change itself."""

import logging
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, insert, select

from onebasis.identity.caller import Caller
from onebasis.identity.tables import AUDIT
from onebasis.storage.database import Database

_LOG: Final = logging.getLogger(__name__)


class Action(StrEnum):
    """What was done."""

    TASK_PUT = "task.put"
    TASK_DELETE = "task.delete"
    TASK_ROLLBACK = "task.rollback"
    TASK_BLEND = "task.blend"
    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    QUOTA_SET = "quota.set"


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction does: to which task, key or tenant; digest and generation are of the task's
    new version, or of the one that a delete took away."""

    action: Action
    subject: str
    digest: str | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change and its author, `at` a Unix second. Ids count up in the order of the commits, perhaps with gaps."""

    id: int
    at: int
    key_id: str | None
    tenant: str | None
    request_id: str | None
    action: str
    subject: str
    digest: str | None
    generation: int | None


def record(connection: Connection, author: Caller, change: Change, now: int) -> None:
    """Add a change to the log, in the writing transaction that makes it: they are kept or lost together.

    The line in the process's own log is written at once; should the commit fail, the error follows it there.
    """
    who = {"key_id": author.key_id, "tenant": author.tenant, "request_id": author.request_id}
    connection.execute(insert(AUDIT).values(at=now, **who, **asdict(change)))
    _LOG.info("change", extra=who | asdict(change))


class AuditLog:
    """Reads what `record` wrote. Any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, limit: int, after: int = 0) -> list[AuditEntry]:
        """Up to `limit` entries with ids above `after`, oldest first. Raises StoreUnavailable."""
        found = select(*AUDIT.c).where(AUDIT.c.id > after).order_by(AUDIT.c.id).limit(limit)
        with self._database.reading() as connection:
            return [AuditEntry(**row) for row in connection.execute(found).mappings()]
