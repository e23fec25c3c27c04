"""The tables of coefficient files and of the versions of tasks, as the newest migration leaves them."""

from typing import Final

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table

TABLES = MetaData()
FILES: Final = Table(
    "coefficient_files",
    TABLES,
    Column("digest", String(71), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
VERSIONS: Final = Table(
    "task_versions",
    TABLES,
    Column("owner", String(128), primary_key=True),  # a tenant, or SHARED
    Column("name", String(128), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("digest", ForeignKey("coefficient_files.digest"), index=True),  # NULL: a tombstone
    Column("created_at", BigInteger, nullable=False),
    Column("change", BigInteger, nullable=False, unique=True),
    Column("metadata", JSON, nullable=False),  # of names to texts
)
HISTORY: Final = Table("task_history", TABLES, Column("epoch", String(32), primary_key=True))  # one row
