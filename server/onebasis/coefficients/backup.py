"""A registry in one portable file, and back: tasks, API keys (hashed), quotas and the audit log.

Between SQLite and PostgreSQL, whichever it came from.

The file is an SQLite database with the registry's own tables, so a server could even run on it.
"""

import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sqlalchemy import Connection, Table, delete, func, insert, select, text

from onebasis.coefficients.tables import FILES, HISTORY, VERSIONS
from onebasis.core.errors import InvalidBackup, InvalidStore, StoreNotEmpty
from onebasis.core.ids import Digest, digest_of
from onebasis.identity.tables import AUDIT, KEYS, QUOTAS
from onebasis.storage.database import Database

_N_ROWS_AT_ONCE: Final = 64
_TABLES: Final = (HISTORY, FILES, VERSIONS, KEYS, QUOTAS, AUDIT)  # files before the versions that point at them


@dataclass(frozen=True, slots=True)
class Copied:
    """What a backup or a restore has copied. `n_versions` includes tombstones, `n_keys` revoked keys.

    `damaged`: files whose bytes do not have their digest. They are copied as they are; a server lists their tasks
    as unusable, and an upload of the right bytes mends them.
    """

    n_files: int
    n_versions: int
    n_keys: int
    damaged: tuple[Digest, ...]


def back_up(database: Database, path: Path) -> Copied:
    """Write everything that the registry holds at this moment to a new file; servers may go on meanwhile.

    Raises:
        InvalidBackup: the path is taken.
        StoreUnavailable, StoreDamaged, OSError: nothing is left at `path`.
    """
    if path.exists():
        raise InvalidBackup(str(path), "it exists already; name a new file")
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / "backup.db"
        with (
            closing(Database(f"sqlite:///{partial}")) as target,
            database.reading() as source,
            target.writing() as connection,
        ):
            copied = _copy(source, connection)
        _make_single_file(partial)
        partial.rename(path)
    return copied


def restore(path: Path, database: Database, *, replace: bool = False) -> Copied:
    """Bring a registry to what a backup holds, its history included, in one transaction.

    Args:
        replace: drop what is there. Running servers notice and read everything anew.

    Raises:
        StoreNotEmpty: there are tasks or keys, or were; nothing has changed.
        InvalidBackup: the file is no backup; nothing has changed.
        StoreUnavailable.
    """
    with reading_backup(path) as backup, database.writing() as connection:
        n_versions, n_keys = _n_rows(connection, VERSIONS), _n_rows(connection, KEYS)
        if (n_versions or n_keys) and not replace:
            raise StoreNotEmpty(n_versions, n_keys)
        copied = _copy(backup, connection)
        connection.execute(HISTORY.update().values(epoch=uuid.uuid4().hex))
    return copied


@contextmanager
def reading_backup(path: Path) -> Iterator[Connection]:
    """A backup's rows in the tables of today; the file itself stays as it is.

    Raises:
        InvalidBackup: the file is no backup.
    """
    if not path.is_file():
        raise InvalidBackup(str(path), "there is no such file")
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / "backup.db"))  # its schema may have to be migrated
        source = _open(copy, shown=path)
        with closing(source), source.reading() as connection:
            yield connection


def _open(path: Path, *, shown: Path) -> Database:
    """A backup, brought to the newest schema. A file without our tables is not made into an empty registry."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSIONS.name,)).fetchone()
        if found is None:
            raise InvalidBackup(str(shown), "it has no tasks in it; give a file that `registry backup` wrote")
        return Database(f"sqlite:///{path}")
    except (sqlite3.Error, InvalidStore) as error:
        raise InvalidBackup(str(shown), f"it can't be read ({error})") from error


def _copy(source: Connection, target: Connection) -> Copied:
    """Copy every row, checking each file's bytes against its digest. The target's history becomes the source's."""
    for table in reversed(_TABLES):
        target.execute(delete(table))
    damaged: list[Digest] = []
    counts = dict.fromkeys(_TABLES, 0)
    for table in _TABLES:
        rows = source.execution_options(yield_per=_N_ROWS_AT_ONCE).execute(select(table)).mappings()
        for some in rows.partitions():
            found = [dict(row) for row in some]
            if table is FILES:
                damaged += [file["digest"] for file in found if digest_of(bytes(file["body"])) != file["digest"]]
            target.execute(insert(table), found)
            counts[table] += len(found)
    _go_on_counting(target)
    return Copied(counts[FILES], counts[VERSIONS], counts[KEYS], tuple(damaged))


def _n_rows(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _go_on_counting(connection: Connection) -> None:
    """The next entry of the audit log comes after those that were copied. SQLite sees to that itself."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(pg_get_serial_sequence('audit_log', 'id'), max(id)) FROM audit_log"))


def _make_single_file(path: Path) -> None:
    """Fold the write-ahead log into the database."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
