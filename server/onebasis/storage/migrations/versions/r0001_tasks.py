"""Coefficient files and the versions of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The tables that version 0.1.0 made without a revision number."""
    op.create_table(
        "coefficient_files",
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "task_versions",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), sa.ForeignKey("coefficient_files.digest")),  # NULL: a tombstone
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
