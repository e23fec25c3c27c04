"""API keys, quotas, the audit log; and every task has an owner, "" for those that all share."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tasks that are there become shared. Their table is copied: SQLite can't change a primary key."""
    op.create_table(
        "owned_versions",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), sa.ForeignKey("coefficient_files.digest")),  # NULL: a tombstone
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO owned_versions SELECT '', name, generation, digest, created_at FROM task_versions")
    op.drop_table("task_versions")
    op.rename_table("owned_versions", "task_versions")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("label", sa.String(256), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(128)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "tenant_quotas",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("tasks", sa.BigInteger),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("concurrent_requests", sa.BigInteger),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key_id", sa.String(64)),
        sa.Column("tenant", sa.String(128)),
        sa.Column("request_id", sa.String(128)),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("digest", sa.String(71)),
        sa.Column("generation", sa.Integer),
        sqlite_autoincrement=True,
    )
