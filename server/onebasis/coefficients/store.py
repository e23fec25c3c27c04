"""Tasks in SQL. A replacement, a roll-back and a delete are each one more version of the task, the last a tombstone.

Versions are appended and never changed. A delete alone removes some: those before its tombstone, which no client can
name any more, and the files of theirs that no other version names.

Every version has a change number. They are given in the order of the commits, because writers come one after another;
so "what is new since change n" is one range of an index, and misses nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, insert, select, update

from onebasis.coefficients.preconditions import NO_PRECONDITION, Precondition
from onebasis.coefficients.tables import FILES, HISTORY, VERSIONS
from onebasis.coefficients.usage import check_stored_quota
from onebasis.core.errors import StoreDamaged, TaskNotFound, VersionNotFound
from onebasis.core.ids import SHARED, Digest, TaskKey
from onebasis.identity.audit import Action, Change, record
from onebasis.identity.caller import OPERATOR, Caller
from onebasis.storage.database import Database

_VERSION_COLUMNS: Final = (*VERSIONS.c, FILES.c.size_bytes)  # the fields of a StoredVersion
_N_BODIES_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """From `change` on, the owner's `name` means the file `digest`. `created_at` is a Unix second."""

    owner: str
    name: str
    generation: int
    digest: Digest
    created_at: int
    change: int
    metadata: Mapping[str, str]
    size_bytes: int

    @property
    def key(self) -> TaskKey:
        return TaskKey(self.owner, self.name)


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
    """What happened between two marks, by task: the last version, or None if it is a tombstone.

    `is_whole`: these are all live tasks there are, not what has changed.
    """

    mark: Mark
    tasks: Mapping[TaskKey, StoredVersion | None]
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
        author: Caller = OPERATOR,
        precondition: Precondition = NO_PRECONDITION,
        metadata: Mapping[str, str] | None = None,
        action: Action = Action.TASK_PUT,
    ) -> Written:
        """Make `data` the current version of the author's `name`; on return it is durable.

        Nothing is written when `digest` is current already, under this metadata or when none is given. A stored
        file whose bytes are damaged is written anew.

        Raises:
            PreconditionFailed: another version is current than the caller demanded; nothing was stored.
            QuotaExceeded: the author's tenant has too many tasks or bytes; nothing was stored.
        """
        key = TaskKey(author.owner, name)
        with self._database.writing() as connection:
            current = _latest(connection, key)
            precondition.check(current.digest)
            is_there = _is_stored(connection, digest, data)
            if is_there and current.stands_at(digest, metadata):
                return Written(_one_version(connection, key, current.generation), created=False, replaced=False)
            check_stored_quota(connection, author, digest, len(data), is_new_task=current.digest is None)
            if is_there is None:
                row = {"digest": digest, "size_bytes": len(data), "body": data, "created_at": now}
                connection.execute(insert(FILES).values(row))
            elif not is_there:
                connection.execute(update(FILES).where(FILES.c.digest == digest).values(body=data))
            written = _append(connection, key, current, digest, metadata or {}, now)
            record(connection, author, _change(action, written.version), now)
            return written

    def point(
        self,
        name: str,
        digest: Digest,
        *,
        now: int,
        author: Caller = OPERATOR,
        precondition: Precondition = NO_PRECONDITION,
    ) -> Written:
        """Make an older version of the author's `name` the current one, with the metadata that it had.

        Raises:
            TaskNotFound, VersionNotFound, PreconditionFailed: nothing was stored.
        """
        key = TaskKey(author.owner, name)
        with self._database.writing() as connection:
            current = _latest(connection, key)
            if current.digest is None:
                raise TaskNotFound(name)
            precondition.check(current.digest)
            found = _is_nameable(connection, key) & (VERSIONS.c.digest == digest)
            generation = connection.execute(select(func.max(VERSIONS.c.generation)).where(found)).scalar_one()
            if generation is None:
                raise VersionNotFound(name, digest)
            version = _one_version(connection, key, generation)
            if generation == current.generation:
                return Written(version, created=False, replaced=False)
            written = _append(connection, key, current, digest, version.metadata, now)
            record(connection, author, _change(Action.TASK_ROLLBACK, written.version), now)
            return written

    def delete(
        self, name: str, *, now: int, author: Caller = OPERATOR, precondition: Precondition = NO_PRECONDITION
    ) -> StoredVersion:
        """Append a tombstone and erase what is older. Returns the version that was current.

        What the disk has damaged can't be erased either: then the tombstone has to do, until the name's next delete.

        Raises:
            TaskNotFound, PreconditionFailed: nothing was written.
        """
        try:
            return self._delete(TaskKey(author.owner, name), now, author, precondition, is_erased=True)
        except StoreDamaged:
            return self._delete(TaskKey(author.owner, name), now, author, precondition, is_erased=False)

    def _delete(
        self, key: TaskKey, now: int, author: Caller, precondition: Precondition, *, is_erased: bool
    ) -> StoredVersion:
        with self._database.writing() as connection:
            current = _latest(connection, key)
            if current.digest is None:
                raise TaskNotFound(key.name)
            precondition.check(current.digest)
            version = _one_version(connection, key, current.generation)
            _insert(connection, key, current.generation + 1, None, {}, now)
            if is_erased:
                _erase(connection, key, current.generation)
            record(connection, author, _change(Action.TASK_DELETE, version), now)
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
        tasks = {
            TaskKey(row["owner"], row["name"]): None if row["digest"] is None else StoredVersion(**row) for row in rows
        }
        return Changes(Mark(epoch, last), tasks, is_whole=False)

    def body(self, digest: Digest) -> bytes:
        """The exact bytes of a file. Raises KeyError if no version names it, StoreDamaged if it can't be read."""
        with self._database.reading() as connection:
            row = connection.execute(select(FILES.c.body).where(FILES.c.digest == digest)).first()
        if row is None:
            raise KeyError(digest)
        return bytes(row.body)

    def content(self, name: str, digest: Digest | None = None, owner: str = SHARED) -> tuple[Digest, bytes]:
        """The digest and the exact bytes of a version, by default the current one.

        Raises:
            TaskNotFound, VersionNotFound; StoreDamaged if they can't be read.
        """
        key = TaskKey(owner, name)
        with self._database.reading() as connection:
            current = _latest(connection, key).digest
            if current is None:
                raise TaskNotFound(name)
            wanted = digest or current
            found = _is_nameable(connection, key) & (VERSIONS.c.digest == wanted)
            row = connection.execute(select(FILES.c.body).join(VERSIONS).where(found).limit(1)).first()
        if row is None:
            raise VersionNotFound(name, wanted)
        return wanted, bytes(row.body)

    def bodies(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes | StoreDamaged]]:
        """The bytes of many files, some at a time, without those that no version names any more when it comes to them.

        What can't be read does not keep the others from it.
        """
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

    def versions(self, name: str, limit: int, before: int | None = None, owner: str = SHARED) -> list[StoredVersion]:
        """Up to `limit` versions of a task, newest first, of generations below `before`.

        Those that are older than a delete are not told. Raises TaskNotFound.
        """
        key = TaskKey(owner, name)
        with self._database.reading() as connection:
            if _latest(connection, key).digest is None:
                raise TaskNotFound(name)
            found = _is_nameable(connection, key)
            if before is not None:
                found &= VERSIONS.c.generation < before
            asked = select(*_VERSION_COLUMNS).join(FILES).where(found)
            rows = connection.execute(asked.order_by(VERSIONS.c.generation.desc()).limit(limit)).mappings().all()
            return [StoredVersion(**row) for row in rows]

    def digests(self, name: str, owner: str = SHARED) -> frozenset[Digest]:
        """All files that the task has had since it was last deleted; none if there is no such task."""
        key = TaskKey(owner, name)
        with self._database.reading() as connection:
            found = select(VERSIONS.c.digest).distinct().where(_is_nameable(connection, key))
            return frozenset(connection.execute(found).scalars())


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


def _is_of(key: TaskKey) -> ColumnElement[bool]:
    return (VERSIONS.c.owner == key.owner) & (VERSIONS.c.name == key.name)


def _change(action: Action, version: StoredVersion) -> Change:
    return Change(action, version.name, version.digest, version.generation)


def _latest(connection: Connection, key: TaskKey) -> _Latest:
    found = select(VERSIONS.c.generation, VERSIONS.c.digest, VERSIONS.c.metadata).where(_is_of(key))
    row = connection.execute(found.order_by(VERSIONS.c.generation.desc()).limit(1)).first()
    return _Latest(0, None, {}) if row is None else _Latest(*row)


def _live(connection: Connection) -> dict[TaskKey, StoredVersion]:
    key = (VERSIONS.c.owner, VERSIONS.c.name)
    latest = select(*key, func.max(VERSIONS.c.generation).label("generation")).group_by(*key).subquery()
    is_latest = and_(*(VERSIONS.c[column.name] == column for column in latest.c))
    found = select(*_VERSION_COLUMNS).join(latest, is_latest).join(FILES)
    versions = (StoredVersion(**row) for row in connection.execute(found).mappings())
    return {version.key: version for version in versions}


def _is_nameable(connection: Connection, key: TaskKey) -> ColumnElement[bool]:
    """A version of this name since it was last deleted.

    There are older ones where a damaged file could not be erased, and where a server of before revision 0004 of the
    schema has deleted while the fleet was updated.
    """
    tombstones = _is_of(key) & VERSIONS.c.digest.is_(None)
    last = connection.execute(select(func.max(VERSIONS.c.generation)).where(tombstones)).scalar_one()
    return _is_of(key) & (VERSIONS.c.generation > (last or 0))


def _one_version(connection: Connection, key: TaskKey, generation: int) -> StoredVersion:
    found = _is_of(key) & (VERSIONS.c.generation == generation)
    row = connection.execute(select(*_VERSION_COLUMNS).join(FILES).where(found)).mappings().one()
    return StoredVersion(**row)


def _append(
    connection: Connection, key: TaskKey, current: _Latest, digest: Digest, metadata: Mapping[str, str], now: int
) -> Written:
    _insert(connection, key, current.generation + 1, digest, metadata, now)
    version = _one_version(connection, key, current.generation + 1)
    return Written(version, created=True, replaced=current.digest is not None)


def _insert(
    connection: Connection, key: TaskKey, generation: int, digest: Digest | None, metadata: Mapping[str, str], now: int
) -> None:
    last = connection.execute(select(func.max(VERSIONS.c.change))).scalar_one()
    row = {**key._asdict(), "generation": generation, "digest": digest, "metadata": dict(metadata)}
    connection.execute(insert(VERSIONS).values(row | {"created_at": now, "change": (last or 0) + 1}))


def _erase(connection: Connection, key: TaskKey, last: int) -> None:
    """Remove the versions of a name up to a generation, and those of their files that no version of anybody's names."""
    gone = _is_of(key) & (VERSIONS.c.generation <= last)
    named = select(VERSIONS.c.digest).distinct().where(gone, VERSIONS.c.digest.is_not(None))
    digests = connection.execute(named).scalars().all()
    connection.execute(delete(VERSIONS).where(gone))
    is_named = select(VERSIONS.c.digest).where(VERSIONS.c.digest == FILES.c.digest).exists()
    unnamed = delete(FILES).where(FILES.c.digest == bindparam("gone"), ~is_named)
    connection.execute(unnamed, [{"gone": digest} for digest in digests])
