"""Tasks in SQL. Append-only: a replacement, a roll-back and a delete are each one more version of the task.

Every version has a change number. They are given in the order of the commits, without gaps, because writers come
one after another; so "what is new since change n" is one range of an index, and misses nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    JSON,
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
    update,
)

from onebasis.coefficients.preconditions import NO_PRECONDITION, Precondition
from onebasis.core.errors import StoreDamaged, TaskNotFound, VersionNotFound
from onebasis.core.ids import Digest
from onebasis.storage.database import Database

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
    Column("name", String(128), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("digest", ForeignKey("coefficient_files.digest")),  # NULL: a tombstone
    Column("created_at", BigInteger, nullable=False),
    Column("change", BigInteger, nullable=False, unique=True),
    Column("metadata", JSON, nullable=False),  # of names to texts
)
HISTORY: Final = Table("task_history", TABLES, Column("epoch", String(32), primary_key=True))  # one row
_VERSION_COLUMNS: Final = (*VERSIONS.c, FILES.c.size_bytes)  # the fields of a StoredVersion
_N_BODIES_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """From `change` on, `name` means the file `digest`. `created_at` is a Unix second."""

    name: str
    generation: int
    digest: Digest
    created_at: int
    change: int
    metadata: Mapping[str, str]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """`created`: a version was appended, else the task stands at it already. `replaced`: there was an earlier one."""

    version: StoredVersion
    created: bool
    replaced: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of the store: everything up to `change`. Marks of two epochs are not of one history."""

    epoch: str
    change: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened between two marks, by name: the last version, or None if it is a tombstone.

    `is_whole`: these are all live tasks there are, not what has changed.
    """

    mark: Mark
    tasks: Mapping[str, StoredVersion | None]
    is_whole: bool


class TaskStore:
    """The only reader and writer of its tables. Any thread. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(
        self,
        name: str,
        data: bytes,
        digest: Digest,
        *,
        now: int,
        precondition: Precondition = NO_PRECONDITION,
        metadata: Mapping[str, str] | None = None,
    ) -> Written:
        """Make `data` the current version of `name`; on return it is durable.

        Nothing is written when `digest` is current already, under this metadata or when none is given. A stored
        file whose bytes are damaged is written anew.

        Raises:
            PreconditionFailed: another version is current than the caller demanded; nothing was stored.
        """
        with self._database.writing() as connection:
            current = _latest(connection, name)
            precondition.check(current.digest)
            is_there = _is_stored(connection, digest, data)
            if is_there and current.stands_at(digest, metadata):
                return Written(_one_version(connection, name, current.generation), created=False, replaced=False)
            if is_there is None:
                row = {"digest": digest, "size_bytes": len(data), "body": data, "created_at": now}
                connection.execute(insert(FILES).values(row))
            elif not is_there:
                connection.execute(update(FILES).where(FILES.c.digest == digest).values(body=data))
            return _append(connection, name, current, digest, metadata or {}, now)

    def point(self, name: str, digest: Digest, *, now: int, precondition: Precondition = NO_PRECONDITION) -> Written:
        """Make an older version of `name` the current one, with the metadata that it had.

        Raises:
            TaskNotFound, VersionNotFound, PreconditionFailed: nothing was stored.
        """
        with self._database.writing() as connection:
            current = _latest(connection, name)
            if current.digest is None:
                raise TaskNotFound(name)
            precondition.check(current.digest)
            since = _first_generation(connection, name)
            found = (VERSIONS.c.name == name) & (VERSIONS.c.digest == digest) & (VERSIONS.c.generation >= since)
            generation = connection.execute(select(func.max(VERSIONS.c.generation)).where(found)).scalar_one()
            if generation is None:
                raise VersionNotFound(name, digest)
            version = _one_version(connection, name, generation)
            if generation == current.generation:
                return Written(version, created=False, replaced=False)
            return _append(connection, name, current, digest, version.metadata, now)

    def delete(self, name: str, *, now: int, precondition: Precondition = NO_PRECONDITION) -> StoredVersion:
        """Append a tombstone. Returns the version that was current. Raises TaskNotFound, PreconditionFailed."""
        with self._database.writing() as connection:
            current = _latest(connection, name)
            if current.digest is None:
                raise TaskNotFound(name)
            precondition.check(current.digest)
            version = _one_version(connection, name, current.generation)
            _insert(connection, name, current.generation + 1, None, {}, now)
            return version

    def changes(self, since: Mark | None) -> Changes:
        """What is new since a mark; everything if there is none, or if the history has been replaced meanwhile."""
        with self._database.reading() as connection:
            epoch = connection.execute(select(HISTORY.c.epoch)).scalar_one()
            if since is None or since.epoch != epoch:
                last = connection.execute(select(func.max(VERSIONS.c.change))).scalar_one()
                return Changes(Mark(epoch, last or 0), _live(connection), is_whole=True)
            new = select(*_VERSION_COLUMNS).join(FILES, isouter=True).where(VERSIONS.c.change > since.change)
            rows = connection.execute(new.order_by(VERSIONS.c.change)).mappings().all()
        last = rows[-1]["change"] if rows else since.change
        tasks = {row["name"]: StoredVersion(**row) if row["digest"] is not None else None for row in rows}
        return Changes(Mark(epoch, last), tasks, is_whole=False)

    def body(self, digest: Digest) -> bytes:
        """The exact bytes of a file. Raises KeyError if it was never stored, StoreDamaged if it can't be read."""
        with self._database.reading() as connection:
            row = connection.execute(select(FILES.c.body).where(FILES.c.digest == digest)).first()
        if row is None:
            raise KeyError(digest)
        return bytes(row.body)

    def bodies(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes | StoreDamaged]]:
        """The bytes of many files, some at a time. What can't be read does not keep the others from it."""
        for start in range(0, len(digests), _N_BODIES_AT_ONCE):
            some = digests[start : start + _N_BODIES_AT_ONCE]
            try:
                with self._database.reading() as connection:
                    found = select(FILES.c.digest, FILES.c.body).where(FILES.c.digest.in_(some))
                    rows = connection.execute(found).all()
                yield from ((row.digest, bytes(row.body)) for row in rows)
            except StoreDamaged as error:
                yield from [(some[0], error)] if len(some) == 1 else self._one_by_one(some)

    def _one_by_one(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes | StoreDamaged]]:
        for digest in digests:
            yield from self.bodies([digest])

    def versions(self, name: str, limit: int, before: int | None = None) -> list[StoredVersion]:
        """Up to `limit` versions of a task, newest first, of generations below `before`.

        Those that are older than a delete are not told. Raises TaskNotFound.
        """
        with self._database.reading() as connection:
            if _latest(connection, name).digest is None:
                raise TaskNotFound(name)
            found = (VERSIONS.c.name == name) & (VERSIONS.c.generation >= _first_generation(connection, name))
            if before is not None:
                found &= VERSIONS.c.generation < before
            asked = select(*_VERSION_COLUMNS).join(FILES).where(found)
            rows = connection.execute(asked.order_by(VERSIONS.c.generation.desc()).limit(limit)).mappings().all()
            return [StoredVersion(**row) for row in rows]

    def digests(self, name: str) -> frozenset[Digest]:
        """All files that the task has had since it was last deleted; none if there is no such task."""
        with self._database.reading() as connection:
            found = (VERSIONS.c.name == name) & (VERSIONS.c.generation >= _first_generation(connection, name))
            return frozenset(connection.execute(select(VERSIONS.c.digest).distinct().where(found)).scalars())


@dataclass(frozen=True, slots=True)
class _Latest:
    """The last version of a name; generation 0 if there never was one, digest None if it does not exist now."""

    generation: int
    digest: Digest | None
    metadata: Mapping[str, str]

    def stands_at(self, digest: Digest, metadata: Mapping[str, str] | None) -> bool:
        return self.digest == digest and metadata in (None, self.metadata)


def _is_stored(connection: Connection, digest: Digest, data: bytes) -> bool | None:
    """Is the file there with these bytes? None: there is none."""
    row = connection.execute(select(FILES.c.body).where(FILES.c.digest == digest)).first()
    return None if row is None else bytes(row.body) == data


def _latest(connection: Connection, name: str) -> _Latest:
    found = select(VERSIONS.c.generation, VERSIONS.c.digest, VERSIONS.c.metadata).where(VERSIONS.c.name == name)
    row = connection.execute(found.order_by(VERSIONS.c.generation.desc()).limit(1)).first()
    return _Latest(0, None, {}) if row is None else _Latest(*row)


def _live(connection: Connection) -> dict[str, StoredVersion]:
    last = select(VERSIONS.c.name, func.max(VERSIONS.c.generation).label("generation")).group_by(VERSIONS.c.name)
    latest = last.subquery()
    is_latest = (VERSIONS.c.name == latest.c.name) & (VERSIONS.c.generation == latest.c.generation)
    found = select(*_VERSION_COLUMNS).join(latest, is_latest).join(FILES)
    return {row["name"]: StoredVersion(**row) for row in connection.execute(found).mappings()}


def _first_generation(connection: Connection, name: str) -> int:
    """The first one that is not older than a delete."""
    tombstones = (VERSIONS.c.name == name) & VERSIONS.c.digest.is_(None)
    last = connection.execute(select(func.max(VERSIONS.c.generation)).where(tombstones)).scalar_one()
    return (last or 0) + 1


def _one_version(connection: Connection, name: str, generation: int) -> StoredVersion:
    found = (VERSIONS.c.name == name) & (VERSIONS.c.generation == generation)
    row = connection.execute(select(*_VERSION_COLUMNS).join(FILES).where(found)).mappings().one()
    return StoredVersion(**row)


def _append(
    connection: Connection, name: str, current: _Latest, digest: Digest, metadata: Mapping[str, str], now: int
) -> Written:
    _insert(connection, name, current.generation + 1, digest, metadata, now)
    version = _one_version(connection, name, current.generation + 1)
    return Written(version, created=True, replaced=current.digest is not None)


def _insert(
    connection: Connection, name: str, generation: int, digest: Digest | None, metadata: Mapping[str, str], now: int
) -> None:
    last = connection.execute(select(func.max(VERSIONS.c.change))).scalar_one()
    row = {"name": name, "generation": generation, "digest": digest, "metadata": dict(metadata)}
    connection.execute(insert(VERSIONS).values(row | {"created_at": now, "change": (last or 0) + 1}))
