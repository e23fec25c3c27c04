"""How much of its quota of tasks and bytes a tenant uses: counted in the transaction that would add to it."""

from sqlalchemy import ColumnElement, Connection, Select, func, select

from onebasis.coefficients.tables import FILES, VERSIONS
from onebasis.core.ids import Digest
from onebasis.identity.caller import Caller
from onebasis.identity.errors import QuotaExceeded

_RETRY_AFTER_S = 60  # time alone frees nothing; it keeps programs from asking again at once


def check_stored_quota(
    connection: Connection, author: Caller, digest: Digest, size_bytes: int, *, is_new_task: bool
) -> None:
    """Check that the author's tenant may add this file as a version of a task.

    Bytes are those of the files that its tasks can still name, current or older, each file once; what is older than
    a delete does not count.

    Raises:
        QuotaExceeded: it may not.
    """
    quota = author.quota
    if quota.tasks is not None and is_new_task:
        n_tasks = connection.execute(select(func.count()).select_from(_tasks(author.owner).subquery())).scalar_one()
        if n_tasks >= quota.tasks:
            raise _exceeded("tasks", f"{n_tasks} registered", quota.tasks)
    if quota.bytes is not None:
        others = select(func.coalesce(func.sum(FILES.c.size_bytes), 0)).where(
            FILES.c.digest.in_(_nameable(author.owner)), FILES.c.digest != digest
        )
        n_bytes = connection.execute(others).scalar_one() + size_bytes
        if n_bytes > quota.bytes:
            raise _exceeded("bytes", f"{n_bytes} with this file", quota.bytes)


def _tasks(owner: str) -> Select[str]:
    return select(VERSIONS.c.name).distinct().where(_is_alive(owner))


def _nameable(owner: str) -> Select[str]:
    return select(VERSIONS.c.digest).where(_is_alive(owner))


def _is_alive(owner: str) -> ColumnElement[bool]:
    """A version of the owner's that no later delete has taken away."""
    later = VERSIONS.alias("later")
    is_deleted = select(later.c.generation).where(
        later.c.owner == VERSIONS.c.owner,
        later.c.name == VERSIONS.c.name,
        later.c.generation > VERSIONS.c.generation,
        later.c.digest.is_(None),
    )
    return (VERSIONS.c.owner == owner) & VERSIONS.c.digest.is_not(None) & ~is_deleted.exists()


def _exceeded(quota: str, found: str, allowed: int) -> QuotaExceeded:
    remedy = "delete tasks, or ask an admin for more"
    return QuotaExceeded(quota, found=found, allowed=allowed, retry_after_s=_RETRY_AFTER_S, remedy=remedy)
