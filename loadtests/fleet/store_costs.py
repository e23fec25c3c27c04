"""What tasks cost in a real PostgreSQL and in a replica's memory: measured, not taken from a formula."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from sqlalchemy import Engine, create_engine, event, make_url, text

from loadtests.common.postgres import own_postgres
from loadtests.common.subject import Subject
from loadtests.common.tasks import synthetic_tasks, task_name
from loadtests.common.timing import Quartiles, quartiles
from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database

_NOW = 1_750_000_000


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Files of one size. `stored_bytes` is pg_total_relation_size over the number of tasks: TOAST and indexes too."""

    n_tasks: int
    file_bytes: int
    stored_bytes: float


@dataclass(frozen=True, slots=True)
class StoreCosts:
    """Milliseconds at one client, PostgreSQL on the same machine. `n_..._statements`: SQL statements of each.

    `..._cpu_ms`: mean of PostgreSQL's own processor time in its clients' backends, which does not depend on how busy
    the machine is.

    Attributes:
        idle_poll_ms: a follower's look that finds nothing new.
        change_ms: one that finds one new version, and reads and binds its file.
        upload_ms: the transaction of one upload, on the disk.
        start_ms_per_task: reading and binding everything when a replica starts.
        memory_bytes_per_task: by which its process has grown then.
    """

    rows: list[RowCosts]
    idle_poll_ms: Quartiles
    change_ms: Quartiles
    upload_ms: Quartiles
    idle_poll_cpu_ms: float
    change_cpu_ms: float
    n_idle_poll_statements: int
    n_change_statements: int
    n_upload_statements: int
    start_ms_per_task: float
    memory_bytes_per_task: float


def measure(subject: Subject, *, n_tasks: int, small_bytes: int, n_polls: int, seed: int) -> StoreCosts:
    """Files of the subject's size, then as many of `small_bytes`, each in a database of its own."""
    names = [task_name(number) for number in range(n_tasks)]
    tasks = list(synthetic_tasks(subject.coefficients, names, seed=seed))
    small = [(name, data[-small_bytes:]) for name, data in tasks]  # the end of a file is all numbers
    with own_postgres() as url:
        row, upload_ms = _fill(url, tasks)
        small_row, _ = _fill(_second_database(url), small)
        return _follow(url, subject, tasks, [small_row, row], upload_ms, n_polls)


def _second_database(url: str) -> str:
    engine = _engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE second"))
    engine.dispose()
    return make_url(url).set(database="second").render_as_string(hide_password=False)


def _engine(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


def _fill(url: str, tasks: Sequence[tuple[str, bytes]]) -> tuple[RowCosts, list[float]]:
    database = Database(url)
    store = TaskStore(database)
    before = _size_bytes(url)
    times_ms = [_ms(_upload(store, name, data)) for name, data in tasks]
    grown = _size_bytes(url) - before
    database.close()
    mean_bytes = sum(len(data) for _, data in tasks) // len(tasks)
    return RowCosts(len(tasks), mean_bytes, grown / len(tasks)), times_ms


def _upload(store: TaskStore, name: str, data: bytes) -> Callable[[], object]:
    digest = digest_of(data)
    return lambda: store.put(name, data, digest, now=_NOW)


def _follow(
    url: str,
    subject: Subject,
    tasks: Sequence[tuple[str, bytes]],
    rows: list[RowCosts],
    upload_ms: list[float],
    n_polls: int,
) -> StoreCosts:
    """A replica that starts on the filled store and follows it."""
    reader = Database(url)
    registry = TaskRegistry(TaskStore(reader), read_basis_spec(subject.basis), "base")
    gc.collect()
    before_bytes = psutil.Process().memory_info().rss
    start_ms = _ms(registry.follow)
    grown_bytes = psutil.Process().memory_info().rss - before_bytes
    backends = _backends(url)  # the reader's: nobody else is connected yet
    writer = Database(url)
    store = TaskStore(writer)
    cpu_s = [_cpu_s(backends)]
    idle_ms = [_ms(registry.follow) for _ in range(n_polls)]
    cpu_s.append(_cpu_s(backends))
    change_ms = []
    for (name, _), (_, data) in itertools.islice(itertools.pairwise(tasks), n_polls):  # another task's file
        _upload(store, f"{name}-again", data[:-2] + bytes([data[-2] ^ 1, data[-1]]))()
        change_ms.append(_ms(registry.follow))
    cpu_s.append(_cpu_s(backends))
    with _counted() as n_idle:
        registry.follow()
    upload = _upload(store, "one-more", tasks[0][1][:-2] + bytes([tasks[0][1][-2] ^ 2, tasks[0][1][-1]]))
    with _counted() as n_upload:
        upload()
    with _counted() as n_change:
        registry.follow()
    writer.close()
    reader.close()
    return StoreCosts(
        rows=rows,
        idle_poll_ms=quartiles(idle_ms),
        change_ms=quartiles(change_ms),
        upload_ms=quartiles(upload_ms),
        idle_poll_cpu_ms=1000 * (cpu_s[1] - cpu_s[0]) / len(idle_ms),
        change_cpu_ms=1000 * (cpu_s[2] - cpu_s[1]) / len(change_ms),
        n_idle_poll_statements=len(n_idle),
        n_change_statements=len(n_change),
        n_upload_statements=len(n_upload),
        start_ms_per_task=start_ms / len(tasks),
        memory_bytes_per_task=grown_bytes / len(tasks),
    )


def _ms(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started_s)


def _backends(url: str) -> list[psutil.Process]:
    """PostgreSQL's processes for the open connections to the database, but the asking one."""
    engine = _engine(url)
    asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        pids = connection.execute(text(asked)).scalars().all()
    engine.dispose()
    return [psutil.Process(pid) for pid in pids]


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def _size_bytes(url: str) -> int:
    """Of all tables of the schema, with their indexes and what lies beside them."""
    engine = _engine(url)
    asked = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
    with engine.connect() as connection:
        found = connection.execute(text(f"{asked} 'public'::regnamespace")).scalar_one()
    engine.dispose()
    return int(found)


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The statements sent inside of the block; BEGIN and COMMIT are not among them."""
    seen: list[str] = []

    def on_execute(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", on_execute)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", on_execute)
