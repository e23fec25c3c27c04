"""Tasks in SQL. Append-only: a delete is one more version, without a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
)

from onebasis.coefficients.preconditions import Precondition
from onebasis.core.errors import TaskNotFound
from onebasis.core.ids import Digest
from onebasis.storage.database import Database

_TABLES = MetaData()
_FILES: Final = Table(
    "coefficient_files",
    _TABLES,
    Column("digest", String(71), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
_VERSIONS: Final = Table(
    "task_versions",
    _TABLES,
    Column("name", String(128), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("digest", ForeignKey("coefficient_files.digest")),  # NULL: a tombstone
    Column("created_at", BigInteger, nullable=False),
)
_VERSION_COLUMNS: Final = (*_VERSIONS.c, _FILES.c.size_bytes)  # the fields of a StoredVersion


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A task at one moment: `name` meant the file `digest`. `created` says that this very call made it."""

    name: str
    generation: int
    digest: Digest
    created_at: int
    size_bytes: int
    created: bool = False


class TaskStore:
    """The only reader and writer of its tables. Any thread. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, data: bytes, digest: Digest, precondition: Precondition, now: int) -> StoredVersion:
        """Make `data` the current version of `name`; on return it is durable.

        The version is returned unchanged, with created=False, when `digest` is current already.

        Raises:
            PreconditionFailed: another version is current than the caller demanded.
            StoreUnavailable: the database failed; nothing was stored.
        """

        with self._database.writing() as connection:
            generation, current = _latest(connection, name)
            precondition.check(current)
            if current == digest:
                return _one_version(connection, name, generation)
            file = select(_FILES.c.digest).where(_FILES.c.digest == digest)
            if connection.execute(file).first() is None:
                row = {"digest": digest, "size_bytes": len(data), "body": data, "created_at": now}
                connection.execute(insert(_FILES).values(row))
            _append(connection, name, generation + 1, digest, now)
        return StoredVersion(name, generation + 1, digest, now, len(data), created=True)

    def delete(self, name: str, precondition: Precondition, now: int) -> None:
        """Append a tombstone. Raises TaskNotFound, PreconditionFailed, StoreUnavailable."""

        with self._database.writing() as connection:
            generation, current = _latest(connection, name)
            if current is None:
                raise TaskNotFound(name)
            precondition.check(current)
            _append(connection, name, generation + 1, None, now)

    def current(self) -> Iterator[StoredVersion]:
        """Every live task, without its body: ask `body` for one at a time. Raises StoreUnavailable."""
        latest = (
            select(_VERSIONS.c.name, func.max(_VERSIONS.c.generation).label("generation"))
            .group_by(_VERSIONS.c.name)
            .subquery()
        )
        is_latest = (_VERSIONS.c.name == latest.c.name) & (_VERSIONS.c.generation == latest.c.generation)
        found = select(*_VERSION_COLUMNS).join(latest, is_latest).join(_FILES)
        with self._database.reading() as connection:
            rows = connection.execute(found).mappings().all()
        return (StoredVersion(**row) for row in rows)

    def n_versions(self) -> int:
        """Count of all versions of all tasks, tombstones included. Scans; for start-up."""
        with self._database.reading() as connection:
            return connection.execute(select(func.count()).select_from(_VERSIONS)).scalar_one()

    def body(self, digest: Digest) -> bytes:
        """The exact bytes of a file. Raises KeyError if it was never stored, StoreUnavailable."""
        with self._database.reading() as connection:
            row = connection.execute(select(_FILES.c.body).where(_FILES.c.digest == digest)).first()
        if row is None:
            raise KeyError(digest)
        return bytes(row.body)

    def version_of(self, name: str, digest: Digest) -> StoredVersion | None:
        """The last version of `name` with that digest. What is older than a delete does not count."""
        tombstone = (
            select(func.max(_VERSIONS.c.generation))
            .where(_VERSIONS.c.name == name, _VERSIONS.c.digest.is_(None))
            .scalar_subquery()
        )
        found = select(func.max(_VERSIONS.c.generation)).where(
            _VERSIONS.c.name == name,
            _VERSIONS.c.digest == digest,
            _VERSIONS.c.generation > func.coalesce(tombstone, 0),
        )
        with self._database.reading() as connection:
            generation = connection.execute(found).scalar_one()
            return None if generation is None else _one_version(connection, name, generation)


def _latest(connection: Connection, name: str) -> tuple[int, Digest | None]:
    """(largest generation, its digest); (0, None) if there never was such a task."""
    versions = select(_VERSIONS.c.generation, _VERSIONS.c.digest).where(_VERSIONS.c.name == name)
    row = connection.execute(versions.order_by(_VERSIONS.c.generation.desc()).limit(1)).first()
    return (0, None) if row is None else (row.generation, row.digest)


def _one_version(connection: Connection, name: str, generation: int) -> StoredVersion:
    found = (_VERSIONS.c.name == name) & (_VERSIONS.c.generation == generation)
    row = connection.execute(select(*_VERSION_COLUMNS).join(_FILES).where(found)).mappings().one()
    return StoredVersion(**row)


def _append(connection: Connection, name: str, generation: int, digest: Digest | None, now: int) -> None:
    row = {"name": name, "generation": generation, "digest": digest, "created_at": now}
    connection.execute(insert(_VERSIONS).values(row))
