"""The tables of keys, quotas and the audit log, as the newest migration leaves them."""

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table

METADATA: Final = MetaData()
_COUNTER: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up INTEGER columns only

KEYS: Final = Table(
    "api_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("label", String(256), nullable=False),
    Column("scopes", String(64), nullable=False),  # joined by commas
    Column("tenant", String(128)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)
QUOTAS: Final = Table(
    "tenant_quotas",
    METADATA,
    Column("tenant", String(128), primary_key=True),
    Column("tasks", BigInteger),
    Column("bytes", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrent_requests", BigInteger),
)
AUDIT: Final = Table(
    "audit_log",
    METADATA,
    Column("id", _COUNTER, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("key_id", String(64)),
    Column("tenant", String(128)),
    Column("request_id", String(128)),
    Column("action", String(32), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("digest", String(71)),
    Column("generation", Integer),
    sqlite_autoincrement=True,  # an id is never used twice
)
