import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import StoredVersion, TaskStore
from onebasis.core.errors import InvalidStore, PreconditionFailed, StoreUnavailable, TaskNotFound
from onebasis.core.ids import digest_of

ANY = Precondition()
NEW = Precondition(if_none_match=True)
ONE, TWO = b"one", b"second"


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/tasks.db"


@pytest.fixture
def store(url):
    store = TaskStore(url)
    yield store
    store.close()


def put(store, name, data, precondition=ANY, now=100) -> StoredVersion:
    return store.put(name, data, digest_of(data), precondition, now)


def names(store) -> list[str]:
    return sorted(version.name for version in store.current())


def test_what_is_put_is_read_back(store):
    version = put(store, "a", ONE, now=7)
    assert version == StoredVersion("a", 1, digest_of(ONE), created_at=7, size_bytes=3, created=True)
    assert store.body(version.digest) == ONE
    assert list(store.current()) == [StoredVersion("a", 1, digest_of(ONE), 7, 3)]


def test_a_second_version_replaces_and_keeps_the_first(store):
    put(store, "a", ONE)
    second = put(store, "a", TWO, now=200)
    assert (second.generation, second.created) == (2, True)
    assert list(store.current()) == [StoredVersion("a", 2, digest_of(TWO), 200, 6)]
    assert store.body(digest_of(ONE)) == ONE
    assert store.version_of("a", digest_of(ONE)) == StoredVersion("a", 1, digest_of(ONE), 100, 3)
    assert store.n_versions() == 2


def test_the_same_digest_again_changes_nothing(store):
    first = put(store, "a", ONE, now=100)
    again = put(store, "a", ONE, now=200)
    assert again == StoredVersion("a", first.generation, first.digest, created_at=100, size_bytes=3)
    assert store.n_versions() == 1


def test_going_back_to_an_older_file_is_a_new_version(store):
    for data in (ONE, TWO, ONE):
        last = put(store, "a", data)
    assert (last.generation, last.created) == (3, True)
    assert store.version_of("a", digest_of(ONE)).generation == 3


def test_two_tasks_may_share_one_file(store, tmp_path):
    put(store, "a", ONE)
    put(store, "b", ONE)
    store.delete("a", ANY, 200)
    assert names(store) == ["b"]
    assert store.body(digest_of(ONE)) == ONE
    with sqlite3.connect(tmp_path / "tasks.db") as raw:
        assert raw.execute("select count(*) from coefficient_files").fetchone() == (1,)


def test_a_delete_is_a_tombstone_and_the_name_can_come_back(store):
    put(store, "a", ONE)
    store.delete("a", ANY, 200)
    assert names(store) == []
    assert store.n_versions() == 2
    assert store.version_of("a", digest_of(ONE)) is None, "what was deleted is not named any more"
    with pytest.raises(TaskNotFound):
        store.delete("a", ANY, 300)
    assert put(store, "a", TWO, NEW).generation == 3
    assert store.version_of("a", digest_of(ONE)) is None
    assert store.version_of("a", digest_of(TWO)).generation == 3


def test_preconditions_are_checked_against_the_current_version(store):
    put(store, "a", ONE, NEW)
    for precondition in (NEW, Precondition(if_match=digest_of(TWO))):
        for write in (lambda p: put(store, "a", TWO, p), lambda p: store.delete("a", p, 200)):
            with pytest.raises(PreconditionFailed, match=f"found {digest_of(ONE)}") as caught:
                write(precondition)
            assert caught.value.code == "precondition_failed"
    with pytest.raises(PreconditionFailed, match="found no task of that name"):
        put(store, "b", ONE, Precondition(if_match=digest_of(ONE)))
    assert store.n_versions() == 1
    assert put(store, "a", TWO, Precondition(if_match=digest_of(ONE))).generation == 2
    store.delete("a", Precondition(if_match=digest_of(TWO)), 200)


def test_a_failed_write_leaves_no_file_behind(store):
    put(store, "a", ONE)
    with pytest.raises(PreconditionFailed):
        put(store, "a", TWO, NEW)
    with pytest.raises(KeyError):
        store.body(digest_of(TWO))


def test_sqlite_runs_with_what_durability_needs(store):
    with store._reading() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}


def test_of_many_writers_that_want_a_new_name_exactly_one_wins(url, store):
    other = TaskStore(url)  # a second process would look the same

    def attempt(i: int) -> bool:
        try:
            return put((store, other)[i % 2], "a", b"%d" % i, NEW).created
        except PreconditionFailed:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = [i for i, created in enumerate(pool.map(attempt, range(24))) if created]
    other.close()
    assert len(won) == 1
    assert [store.body(version.digest) for version in store.current()] == [b"%d" % won[0]]
    assert store.n_versions() == 1


def test_concurrent_compare_and_swap_loses_no_update(url, store):
    """Each writer replaces what it read, and reads again when it lost: every one of them gets its version."""
    put(store, "a", b"start")
    stores = [store, TaskStore(url)]

    def add(i: int) -> None:
        while True:
            (current,) = stores[i % 2].current()
            try:
                put(stores[i % 2], "a", b"%d" % i, Precondition(if_match=current.digest))
            except PreconditionFailed:
                continue
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(18)))
    stores[1].close()
    assert store.n_versions() == 19
    assert all(store.version_of("a", digest_of(b"%d" % i)) for i in range(18))


def test_a_lost_race_that_shows_as_a_duplicate_key_is_compared_again(store, monkeypatch):
    """As on a database without BEGIN IMMEDIATE: another writer commits between our read and our insert."""
    from onebasis.coefficients import store as module

    latest = module._latest
    n_lost = 0

    def stale(connection, name):
        nonlocal n_lost
        found = latest(connection, name)
        if n_lost < n_races:
            n_lost += 1
            return (found[0] - 1, None)
        return found

    put(store, "a", ONE)
    monkeypatch.setattr(module, "_latest", stale)
    n_races = 1
    with pytest.raises(PreconditionFailed, match=f"found {digest_of(ONE)}"):
        put(store, "a", TWO, NEW)
    n_lost = 0
    assert put(store, "a", TWO).generation == 2
    n_races, n_lost = 2, 0
    with pytest.raises(PreconditionFailed, match="one writer at a time"):
        put(store, "a", ONE)
    assert store.n_versions() == 2


WRITER = """
import sys, time
from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import digest_of

store = TaskStore(sys.argv[1])
for i in range(1_000_000):
    data = b"%d" % i * 5_000
    store.put("task-%d" % i, data, digest_of(data), Precondition(), i)
    print(i, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(url):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for n_wanted in (1, 20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=env)
        try:
            acknowledged = [int(writer.stdout.readline()) for _ in range(n_wanted)]
        finally:
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.communicate()[0].split()]
        assert writer.returncode == -signal.SIGKILL
        store = TaskStore(url)
        found = {version.name: store.body(version.digest) for version in store.current()}
        store.close()
        assert len(acknowledged) >= n_wanted
        for i in acknowledged:
            assert found[f"task-{i}"] == b"%d" % i * 5_000


def test_a_writer_killed_inside_its_transaction_blocks_nobody_and_leaves_nothing(url, store):
    script = WRITER.replace(
        "for i in", "store._writer.begin().__enter__(); print(0, flush=True); time.sleep(60)\nfor i in"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True, env=env)
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    started_s = time.monotonic()
    put(store, "a", ONE)
    assert time.monotonic() - started_s < 5
    assert names(store) == ["a"]


@pytest.mark.parametrize(
    "wrong", ["sqlite:///{}/no/folder/tasks.db", "no url", "nosuchdb://me:secret@host/x", "sqlite:///{}/text"]
)
def test_a_store_that_can_not_be_opened_is_the_operators_error(tmp_path, wrong):
    (tmp_path / "text").write_text("this is not a database, however long it may be " * 100)
    with pytest.raises(InvalidStore, match=r"task store .+ give a URL such as sqlite:////var") as caught:
        TaskStore(wrong.format(tmp_path))
    assert "secret" not in str(caught.value)


def test_a_database_that_fails_later_is_told_without_the_uploaded_bytes(store, tmp_path):
    put(store, "a", ONE)
    with sqlite3.connect(tmp_path / "tasks.db") as raw:
        raw.execute("drop table task_versions")
    for work in (lambda: put(store, "b", TWO), lambda: store.delete("a", ANY, 1), store.current, store.n_versions):
        with pytest.raises(StoreUnavailable, match=r"does not answer \(no such table: task_versions\)"):
            work()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(InvalidStore, match="in memory"):
        TaskStore(url)
