"""What came before a delete is erased, with its bytes; from now on the delete itself does it."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_FILES = sa.table("coefficient_files", sa.column("digest"), sa.column("body"))


def upgrade() -> None:
    """The index comes first: every file that goes is looked up in it, here and by the foreign key.

    A file that the disk has damaged stays.
    """
    op.create_index("ix_task_versions_digest", "task_versions", ["digest"])
    op.execute(
        "DELETE FROM task_versions WHERE generation < (SELECT max(later.generation) FROM task_versions AS later"
        " WHERE later.owner = task_versions.owner AND later.name = task_versions.name AND later.digest IS NULL)"
    )
    versions = sa.table("task_versions", sa.column("digest"))
    is_named = sa.select(versions.c.digest).where(versions.c.digest == _FILES.c.digest).exists()
    connection = op.get_bind()
    for digest in connection.execute(sa.select(_FILES.c.digest).where(~is_named)).scalars().all():
        if _can_be_read(connection, digest):
            connection.execute(_FILES.delete().where(_FILES.c.digest == digest))


def _can_be_read(connection: sa.Connection, digest: str) -> bool:
    try:
        with _aside(connection) as reader:
            reader.execute(sa.select(_FILES.c.body).where(_FILES.c.digest == digest)).all()
    except sa.exc.DatabaseError:
        return False
    return True


@contextmanager
def _aside(connection: sa.Connection) -> Iterator[sa.Connection]:
    """To meet damage there and go on here. SQLite needs another connection, which on PostgreSQL would wait for us."""
    if connection.dialect.name == "postgresql":
        with connection.begin_nested():
            yield connection
    else:
        with connection.engine.execution_options(sqlite_begin="DEFERRED").connect() as other:
            yield other
