"""Tasks in SQL: what was acknowledged survives kill -9. Append-only; a delete is one more version, without a file.

SQLite is what runs today. Nothing but `_configure_sqlite` knows that: elsewhere a lost race shows as a
duplicate (name, generation), which `_write` handles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from onebasis.coefficients.preconditions import Precondition
from onebasis.core.errors import InvalidStore, PreconditionFailed, StoreUnavailable, TaskNotFound
from onebasis.core.ids import Digest

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
_SQLITE_PRAGMAS: Final = (
    "busy_timeout = 10000",  # first, so that the others wait for their locks too
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit is on the disk before it is acknowledged
    "foreign_keys = ON",
)

Result = TypeVar("Result")


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
    """One owner of a database of tasks. Any thread; writers queue up in the database, readers never wait."""

    def __init__(self, url: str) -> None:
        """Open the database, creating what is missing.

        Args:
            url: SQLAlchemy's, such as sqlite:////var/lib/onebasis/tasks.db. The folder must exist.

        Raises:
            InvalidStore: it can't be opened or is no database.
        """
        try:
            self._engine = create_engine(url)
            if self._engine.dialect.name == "sqlite":
                if self._engine.url.database in (None, "", ":memory:"):
                    raise InvalidStore(url, "in memory, each thread would have a registry of its own")
                _configure_sqlite(self._engine)
            self._writer = self._engine.execution_options(sqlite_begin="IMMEDIATE")
            with self._writer.begin() as connection:
                _TABLES.create_all(connection)
        except (SQLAlchemyError, ImportError) as error:
            raise InvalidStore(url.rpartition("@")[2], _cause(error)) from error  # without user and password

    def put(self, name: str, data: bytes, digest: Digest, precondition: Precondition, now: int) -> StoredVersion:
        """Make `data` the current version of `name`; on return it is durable.

        The version is returned unchanged, with created=False, when `digest` is current already.

        Raises:
            PreconditionFailed: another version is current than the caller demanded.
            StoreUnavailable: the database failed; nothing was stored.
        """

        def write(connection: Connection) -> StoredVersion:
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

        return self._write(write)

    def delete(self, name: str, precondition: Precondition, now: int) -> None:
        """Append a tombstone. Raises TaskNotFound, PreconditionFailed, StoreUnavailable."""

        def write(connection: Connection) -> None:
            generation, current = _latest(connection, name)
            if current is None:
                raise TaskNotFound(name)
            precondition.check(current)
            _append(connection, name, generation + 1, None, now)

        self._write(write)

    def current(self) -> Iterator[StoredVersion]:
        """Every live task, without its body: ask `body` for one at a time. Raises StoreUnavailable."""
        latest = (
            select(_VERSIONS.c.name, func.max(_VERSIONS.c.generation).label("generation"))
            .group_by(_VERSIONS.c.name)
            .subquery()
        )
        is_latest = (_VERSIONS.c.name == latest.c.name) & (_VERSIONS.c.generation == latest.c.generation)
        found = select(*_VERSION_COLUMNS).join(latest, is_latest).join(_FILES)
        with self._reading() as connection:
            rows = connection.execute(found).mappings().all()
        return (StoredVersion(**row) for row in rows)

    def n_versions(self) -> int:
        """Count of all versions of all tasks, tombstones included. Scans; for start-up."""
        with self._reading() as connection:
            return connection.execute(select(func.count()).select_from(_VERSIONS)).scalar_one()

    def body(self, digest: Digest) -> bytes:
        """The exact bytes of a file. Raises KeyError if it was never stored, StoreUnavailable."""
        with self._reading() as connection:
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
        with self._reading() as connection:
            generation = connection.execute(found).scalar_one()
            return None if generation is None else _one_version(connection, name, generation)

    def close(self) -> None:
        """Give the connections back. Nothing needs to be saved."""
        self._engine.dispose()

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` as one transaction. A lost race is compared again once."""
        for _ in range(2):
            try:
                with self._writer.begin() as connection:
                    return work(connection)
            except IntegrityError:
                continue
            except SQLAlchemyError as error:
                raise StoreUnavailable(_cause(error)) from error
        raise PreconditionFailed(required="one writer at a time", found="several that change this task")

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable(_cause(error)) from error


def _configure_sqlite(engine: Engine) -> None:
    """Pragmas, and transactions begun by us: the driver's own begin late, after the reads they depend on."""

    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


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


def _cause(error: Exception) -> str:
    """The driver's own words: SQLAlchemy's text would repeat the statement and the uploaded bytes."""
    return str(getattr(error, "orig", None) or error)
