"""Versions of tasks are numbered in the order of their commits and carry metadata; the history has an identity."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Existing versions are numbered name by name, which keeps the order of each task's own versions."""
    history = op.create_table("task_history", sa.Column("epoch", sa.String(32), primary_key=True))
    op.bulk_insert(history, [{"epoch": uuid.uuid4().hex}])
    op.add_column("task_versions", sa.Column("change", sa.BigInteger))
    op.add_column("task_versions", sa.Column("metadata", sa.JSON, nullable=False, server_default="{}"))
    _number_versions(op.get_bind())
    with op.batch_alter_table("task_versions") as versions:
        versions.alter_column("change", existing_type=sa.BigInteger, nullable=False)
        versions.create_unique_constraint("task_versions_change", ["change"])


def _number_versions(connection: sa.Connection) -> None:
    versions = sa.table("task_versions", sa.column("name"), sa.column("generation"), sa.column("change"))
    keys = connection.execute(sa.select(versions.c.name, versions.c.generation).order_by("name", "generation")).all()
    if keys:
        is_one = (versions.c.name == sa.bindparam("key")) & (versions.c.generation == sa.bindparam("number"))
        connection.execute(
            versions.update().where(is_one).values(change=sa.bindparam("n")),
            [{"key": name, "number": generation, "n": n} for n, (name, generation) in enumerate(keys, start=1)],
        )
