import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import StoredVersion, TaskStore
from onebasis.core.errors import PreconditionFailed, StoreUnavailable, TaskNotFound
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database

ANY = Precondition()
NEW = Precondition(if_none_match=True)
ONE, TWO = b"one", b"second"


@pytest.fixture
def store(database):
    return TaskStore(database)


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


def test_two_tasks_may_share_one_file(store, database):
    put(store, "a", ONE)
    put(store, "b", ONE)
    store.delete("a", ANY, 200)
    assert names(store) == ["b"]
    assert store.body(digest_of(ONE)) == ONE
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM coefficient_files")).scalar_one() == 1


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


def test_of_many_writers_that_want_a_new_name_exactly_one_wins(store_url, store):
    second = Database(store_url)  # another process would look the same
    other = TaskStore(second)

    def attempt(i: int) -> bool:
        try:
            return put((store, other)[i % 2], "a", b"%d" % i, NEW).created
        except PreconditionFailed:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = [i for i, created in enumerate(pool.map(attempt, range(24))) if created]
    second.close()
    assert len(won) == 1
    assert [store.body(version.digest) for version in store.current()] == [b"%d" % won[0]]
    assert store.n_versions() == 1


def test_concurrent_compare_and_swap_loses_no_update(store_url, store):
    """Each writer replaces what it read, and reads again when it lost: every one of them gets its version."""
    put(store, "a", b"start")
    second = Database(store_url)
    stores = [store, TaskStore(second)]

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
    second.close()
    assert store.n_versions() == 19
    assert all(store.version_of("a", digest_of(b"%d" % i)) for i in range(18))


WRITER = """
import sys, time
from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database

database = Database(sys.argv[1])
store = TaskStore(database)
for i in range(1_000_000):
    data = b"%d" % i * 5_000
    store.put("task-%d" % i, data, digest_of(data), Precondition(), i)
    print(i, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(store_url):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for n_wanted in (1, 20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, store_url], stdout=subprocess.PIPE, text=True, env=env)
        try:
            acknowledged = [int(writer.stdout.readline()) for _ in range(n_wanted)]
        finally:
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.communicate()[0].split()]
        assert writer.returncode == -signal.SIGKILL
        database = Database(store_url)
        store = TaskStore(database)
        found = {version.name: store.body(version.digest) for version in store.current()}
        database.close()
        assert len(acknowledged) >= n_wanted
        for i in acknowledged:
            assert found[f"task-{i}"] == b"%d" % i * 5_000


def test_a_writer_killed_inside_its_transaction_blocks_nobody_and_leaves_nothing(store_url, store):
    script = WRITER.replace(
        "for i in", "database.writing().__enter__(); print(0, flush=True); time.sleep(60)\nfor i in"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", script, store_url], stdout=subprocess.PIPE, text=True, env=env)
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    started_s = time.monotonic()
    put(store, "a", ONE)
    assert time.monotonic() - started_s < 5
    assert names(store) == ["a"]


def test_a_database_that_fails_later_is_told_without_the_uploaded_bytes(store, database):
    put(store, "a", ONE)
    with database.writing() as connection:
        connection.execute(text("DROP TABLE task_versions"))
    for work in (lambda: put(store, "b", TWO), lambda: store.delete("a", ANY, 1), store.current, store.n_versions):
        with pytest.raises(StoreUnavailable, match=r"does not answer \(.*task_versions"):
            work()
