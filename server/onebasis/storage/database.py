"""One SQL database, SQLite or PostgreSQL, with the same promises on both.

A reader sees one moment. Writers come one after another: what a writer reads stays true until its commit, so
there are no lost races to handle. What was committed survives kill -9.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError, InternalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from onebasis.core.errors import InvalidStore, StoreDamaged, StoreUnavailable
from onebasis.storage.migrate import UnknownRevision, migrate

_SQLITE_PRAGMAS: Final = (
    "PRAGMA busy_timeout = 10000",  # first, so that the others wait for their locks too
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a commit is on the disk before it is acknowledged
    "PRAGMA foreign_keys = ON",
)
_POSTGRES_SETTINGS: Final = (
    "SET lock_timeout = '10s'",
    "SET idle_in_transaction_session_timeout = '60s'",  # a writer that hangs lets go of its lock
)
_POSTGRES_TIMEOUTS: Final = {"connect_timeout": "5", "tcp_user_timeout": "10000"}  # seconds, milliseconds
_WRITER_LOCK: Final = 0x6F6E6562  # any number, the same in every replica: "oneb"


class Database:
    """Owns the connections. Any thread; open one at a time in a process, as `migrate` says.

    Args:
        url: SQLAlchemy's, such as sqlite:////var/lib/onebasis/tasks.db (the folder must exist) or
            postgresql://user:password@host/name. The schema is created or brought up to date; several processes
            may start on one database at once.

    Raises:
        InvalidStore: it can't be opened, is no database, or a newer program has been at it.
    """

    def __init__(self, url: str) -> None:
        shown = url.rpartition("@")[2].partition("?")[0]  # without user, password and options
        try:
            self._engine = _engine(make_url(url), shown)
            self._readers = self._engine
            if self.is_postgres:
                self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ")
            self._writers = self._engine.execution_options(sqlite_begin="IMMEDIATE")
            with self._writers.begin() as connection:
                self._wait_for_turn(connection)
                migrate(connection)
        except UnknownRevision as error:
            raise InvalidStore(shown, str(error), advice="update this program, or give another database") from error
        except (SQLAlchemyError, ImportError) as error:
            raise InvalidStore(shown, _cause(error)) from error

    @property
    def is_postgres(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads one moment of the database. Waits for no writer.

        Raises:
            StoreUnavailable: the database failed.
            StoreDamaged: what was asked for is there and can't be read.
        """
        try:
            with self._readers.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _as_ours(error) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction of the only writer: committed and durable after the block, undone if the block raises.

        Raises:
            StoreUnavailable: the database failed, or other writers took too long; nothing was written.
            StoreDamaged: as when reading; nothing was written.
        """
        try:
            with self._writers.begin() as connection:
                self._wait_for_turn(connection)
                yield connection
        except SQLAlchemyError as error:
            raise _as_ours(error) from error

    def close(self) -> None:
        """Give the connections back. Nothing needs to be saved."""
        self._engine.dispose()

    def _wait_for_turn(self, connection: Connection) -> None:
        """PostgreSQL: until commit, no other writer. SQLite has done that with BEGIN IMMEDIATE."""
        if self.is_postgres:
            connection.execute(select(func.pg_advisory_xact_lock(_WRITER_LOCK)))


def _engine(url: URL, shown: str) -> Engine:
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InvalidStore(shown, "in memory, each thread would have a registry of its own")
        engine = create_engine(url)
        _configure_sqlite(engine)
        return engine
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        url = url.set(drivername="postgresql+psycopg")
        engine = create_engine(url.set(query=_POSTGRES_TIMEOUTS | dict(url.query)), pool_pre_ping=True)
        _configure_postgres(engine)
        return engine
    raise ArgumentError(f"{url.drivername!r} is not supported, sqlite and postgresql are")


def _configure_sqlite(engine: Engine) -> None:
    """Pragmas, and transactions begun by us: the driver's own begin late, after the reads they depend on."""

    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        _execute(connection, _SQLITE_PRAGMAS)

    def on_begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _configure_postgres(engine: Engine) -> None:
    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        _execute(connection, _POSTGRES_SETTINGS)
        connection.commit()

    event.listen(engine, "connect", on_connect)


def _execute(connection: DBAPIConnection, statements: tuple[str, ...]) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


def _as_ours(error: SQLAlchemyError) -> StoreUnavailable | StoreDamaged:
    """SQLite tells of a malformed file with its plainest error, PostgreSQL of a broken page with an internal one."""
    is_damage = type(error) in (DatabaseError, InternalError)
    return StoreDamaged(_cause(error)) if is_damage else StoreUnavailable(_cause(error))


def _cause(error: Exception) -> str:
    """The driver's own words, on one line: SQLAlchemy's text would repeat the statement and the uploaded bytes."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
