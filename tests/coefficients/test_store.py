"""What the store promises, on SQLite and on PostgreSQL."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text

from onebasis.coefficients.preconditions import ANY, NO_PRECONDITION, Precondition
from onebasis.coefficients.store import StoredVersion, TaskStore, Written
from onebasis.core.errors import PreconditionFailed, StoreUnavailable, TaskNotFound, VersionNotFound
from onebasis.core.ids import SHARED, digest_of
from onebasis.identity.caller import Caller, Scope
from onebasis.identity.quota import Quota
from onebasis.storage.database import Database

NEW = Precondition(if_none_match=(ANY,))
ONE, TWO, THREE = b"one", b"second", b"the third"
ACME = Caller(key_id="key-acme", tenant="acme", scopes=frozenset({Scope.REGISTER}), request_id="req-1")


@pytest.fixture
def store(database):
    return TaskStore(database)


def put(store, name, data, precondition=NO_PRECONDITION, now=100, metadata=None) -> Written:
    return store.put(name, data, digest_of(data), precondition=precondition, now=now, metadata=metadata)


def by_name(tasks):
    """Of shared tasks."""
    assert {key.owner for key in tasks} <= {SHARED}
    return {key.name: version for key, version in tasks.items()}


def live(store) -> dict[str, StoredVersion]:
    return by_name(store.changes(None).tasks)


def n_versions(store) -> int:
    return store.changes(None).mark.change


def generations(store, name) -> list[int]:
    return [version.generation for version in store.versions(name, limit=100)]


def test_what_is_put_is_read_back(store):
    written = put(store, "a", ONE, now=7)
    version = StoredVersion(SHARED, "a", 1, digest_of(ONE), created_at=7, change=1, metadata={}, size_bytes=3)
    assert written == Written(version, created=True, replaced=False)
    assert store.body(version.digest) == ONE
    assert live(store) == {"a": version}
    with pytest.raises(KeyError):
        store.body(digest_of(TWO))


def test_a_second_version_replaces_and_keeps_the_first(store):
    put(store, "a", ONE)
    second = put(store, "a", TWO, now=200)
    assert (second.version.generation, second.created, second.replaced) == (2, True, True)
    assert live(store) == {"a": second.version}
    assert store.body(digest_of(ONE)) == ONE
    assert store.digests("a") == {digest_of(ONE), digest_of(TWO)}
    assert generations(store, "a") == [2, 1]


def test_the_same_digest_again_changes_nothing(store):
    first = put(store, "a", ONE, now=100)
    again = put(store, "a", ONE, now=200)
    assert again == Written(first.version, created=False, replaced=False)
    assert n_versions(store) == 1


def test_metadata_belongs_to_a_version(store):
    first = put(store, "a", ONE, metadata={"team": "blue"})
    assert put(store, "a", ONE).version == first.version, "none given: none changed"
    assert not put(store, "a", ONE, metadata={"team": "blue"}).created
    other = put(store, "a", ONE, metadata={"team": "ré"})
    assert (other.created, other.replaced, other.version.generation) == (True, True, 2)
    assert live(store)["a"].metadata == {"team": "ré"}
    assert put(store, "a", TWO).version.metadata == {}
    assert store.point("a", digest_of(ONE), now=1).version.metadata == {"team": "ré"}, "of the last such version"


def test_pointing_back_appends_the_older_version(store):
    put(store, "a", ONE)
    put(store, "a", TWO)
    back = store.point("a", digest_of(ONE), now=300)
    assert (back.version.generation, back.version.digest, back.version.created_at) == (3, digest_of(ONE), 300)
    assert (back.created, back.replaced) == (True, True)
    assert live(store)["a"] == back.version
    again = store.point("a", digest_of(ONE), now=400)
    assert again == Written(back.version, created=False, replaced=False)
    assert generations(store, "a") == [3, 2, 1]


def test_pointing_back_obeys_conditions_and_finds_only_versions_of_this_task(store):
    put(store, "a", ONE)
    put(store, "a", TWO)
    put(store, "b", b"other")
    with pytest.raises(PreconditionFailed):
        store.point("a", digest_of(ONE), now=1, precondition=Precondition(if_match=(digest_of(ONE),)))
    with pytest.raises(VersionNotFound):
        store.point("a", digest_of(b"other"), now=1)
    with pytest.raises(TaskNotFound):
        store.point("c", digest_of(ONE), now=1)
    store.delete("a", now=1)
    with pytest.raises(TaskNotFound):
        store.point("a", digest_of(ONE), now=1)
    put(store, "a", TWO)
    with pytest.raises(VersionNotFound):
        store.point("a", digest_of(ONE), now=1)
    assert n_versions(store) == 5


def kept(database):
    """What takes room: the versions by owner, name and generation, and the files."""
    with database.reading() as connection:
        versions = connection.execute(text("SELECT owner, name, generation, digest FROM task_versions")).all()
        files = connection.execute(text("SELECT digest FROM coefficient_files")).scalars()
        return sorted(map(tuple, versions)), set(files)


def test_a_delete_erases_what_nobody_can_name_any_more(store, database):
    for data in (ONE, TWO, THREE, TWO):
        put(store, "a", data)
    put(store, "b", THREE)
    put(store, "b", ONE)
    store.put("a", TWO, digest_of(TWO), now=1, author=ACME)
    b_and_acme = [("", "b", 1, digest_of(THREE)), ("", "b", 2, digest_of(ONE)), ("acme", "a", 1, digest_of(TWO))]
    store.delete("a", now=200)
    assert kept(database) == ([("", "a", 5, None), *b_and_acme], {digest_of(ONE), digest_of(TWO), digest_of(THREE)})
    store.delete("b", now=200)
    assert kept(database)[1] == {digest_of(TWO)}
    store.delete("a", now=200, author=ACME)
    assert kept(database) == ([("", "a", 5, None), ("", "b", 3, None), ("acme", "a", 2, None)], set())
    with pytest.raises(KeyError):
        store.body(digest_of(TWO))

    assert put(store, "a", ONE).version.generation == 6
    assert store.body(digest_of(ONE)) == ONE
    store.delete("a", now=300)
    assert kept(database) == ([("", "a", 7, None), ("", "b", 3, None), ("acme", "a", 2, None)], set())


def test_what_an_older_server_left_behind_a_tombstone_is_not_named_and_goes_with_the_next_delete(store, database):
    acme = replace(ACME, quota=Quota(bytes=len(TWO)))
    store.put("a", ONE, digest_of(ONE), now=1, author=acme)
    with database.writing() as connection:
        connection.execute(text("INSERT INTO task_versions VALUES ('acme', 'a', 2, NULL, 1, 2, '{}')"))
    store.put("a", TWO, digest_of(TWO), now=1, author=acme)
    assert store.digests("a", "acme") == {digest_of(TWO)}
    assert [version.generation for version in store.versions("a", 9, owner="acme")] == [3]
    with pytest.raises(VersionNotFound):
        store.content("a", digest_of(ONE), "acme")
    with pytest.raises(VersionNotFound):
        store.point("a", digest_of(ONE), now=1, author=acme)
    store.delete("a", now=1, author=acme)
    assert kept(database) == ([("acme", "a", 4, None)], set())


def test_uploads_and_deletes_by_turns_take_no_room(store, database):
    store.put("kept", ONE, digest_of(ONE), now=1, author=ACME)
    for i in range(20):
        data = b"%d" % i * 1000
        store.put("a", data, digest_of(data), now=1, author=ACME)
        store.delete("a", now=2, author=ACME)
    assert kept(database) == ([("acme", "a", 40, None), ("acme", "kept", 1, digest_of(ONE))], {digest_of(ONE)})


def test_a_follower_that_lags_still_learns_of_a_delete(store):
    put(store, "a", ONE)
    put(store, "b", ONE)
    mark = store.changes(None).mark
    put(store, "a", TWO)
    store.delete("a", now=1)
    put(store, "b", TWO)
    store.delete("b", now=1)
    again = put(store, "b", THREE)
    assert by_name(store.changes(mark).tasks) == {"a": None, "b": again.version}
    assert store.changes(mark).mark.change == again.version.change == 7


def test_content_is_of_the_version_that_is_named(store):
    put(store, "a", ONE)
    put(store, "a", TWO)
    put(store, "b", THREE)
    assert store.content("a") == (digest_of(TWO), TWO)
    assert store.content("a", digest_of(ONE)) == (digest_of(ONE), ONE)
    with pytest.raises(VersionNotFound):
        store.content("a", digest_of(THREE))
    for name, owner in (("c", SHARED), ("a", "acme")):
        with pytest.raises(TaskNotFound):
            store.content(name, owner=owner)
    store.delete("a", now=1)
    with pytest.raises(TaskNotFound):
        store.content("a", digest_of(ONE))
    put(store, "b", ONE)
    put(store, "a", THREE)
    with pytest.raises(VersionNotFound):
        store.content("a", digest_of(ONE))


def test_two_tasks_may_share_one_file(store, database):
    put(store, "a", ONE)
    put(store, "b", ONE)
    store.delete("a", now=200)
    assert live(store).keys() == {"b"}
    assert store.body(digest_of(ONE)) == ONE
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM coefficient_files")).scalar_one() == 1


def test_a_damaged_file_is_written_anew_by_an_upload_of_the_same_bytes(store, database):
    put(store, "a", ONE)
    with database.writing() as connection:
        connection.execute(text("UPDATE coefficient_files SET body = :body"), {"body": b"???"})
    assert put(store, "a", ONE).created
    assert store.body(digest_of(ONE)) == ONE
    assert not put(store, "a", ONE).created


def test_a_delete_is_a_tombstone_and_the_name_can_come_back(store):
    put(store, "a", ONE)
    assert store.delete("a", now=200).digest == digest_of(ONE)
    assert live(store) == {}
    assert n_versions(store) == 2
    assert store.digests("a") == frozenset(), "what was deleted is not named any more"
    for work in (lambda: store.delete("a", now=300), lambda: store.versions("a", 9)):
        with pytest.raises(TaskNotFound):
            work()
    again = put(store, "a", TWO, NEW)
    assert (again.version.generation, again.created, again.replaced) == (3, True, False)
    assert store.digests("a") == {digest_of(TWO)}
    assert generations(store, "a") == [3]


def test_versions_come_in_pages_newest_first(store):
    for i in range(7):
        put(store, "a", b"%d" % i)
    assert [version.generation for version in store.versions("a", limit=3)] == [7, 6, 5]
    assert [version.generation for version in store.versions("a", limit=3, before=5)] == [4, 3, 2]
    assert [version.generation for version in store.versions("a", limit=3, before=2)] == [1]
    assert store.versions("a", limit=3, before=1) == []


def test_preconditions_are_checked_against_the_current_version(store):
    put(store, "a", ONE, NEW)
    for precondition in (
        NEW,
        Precondition(if_match=(digest_of(TWO),)),
        Precondition(if_match=()),
        Precondition(if_none_match=(digest_of(TWO), digest_of(ONE))),
    ):
        for write in (lambda p: put(store, "a", TWO, p), lambda p: store.delete("a", now=200, precondition=p)):
            with pytest.raises(PreconditionFailed, match=f"found {digest_of(ONE)}") as caught:
                write(precondition)
            assert caught.value.code == "precondition_failed"
    for precondition in (Precondition(if_match=(digest_of(ONE),)), Precondition(if_match=(ANY,))):
        with pytest.raises(PreconditionFailed, match="found no task of that name"):
            put(store, "b", ONE, precondition)
    assert n_versions(store) == 1
    assert put(store, "a", TWO, Precondition(if_match=(digest_of(TWO), digest_of(ONE)))).created
    assert put(store, "a", ONE, Precondition(if_match=(ANY,), if_none_match=(digest_of(ONE),))).created
    store.delete("a", now=200, precondition=Precondition(if_match=(digest_of(ONE),)))


def test_a_failed_write_leaves_no_file_behind(store):
    put(store, "a", ONE)
    with pytest.raises(PreconditionFailed):
        put(store, "a", TWO, NEW)
    with pytest.raises(KeyError):
        store.body(digest_of(TWO))


def test_changes_are_the_last_version_of_each_task_since_a_mark(store):
    put(store, "a", ONE)
    put(store, "gone", ONE)
    mark = store.changes(None).mark
    assert store.changes(mark) == store.changes(mark)
    assert (store.changes(mark).tasks, store.changes(mark).mark, store.changes(mark).is_whole) == ({}, mark, False)
    put(store, "b", ONE)
    second = put(store, "b", TWO)
    store.delete("gone", now=1)
    changes = store.changes(mark)
    assert by_name(changes.tasks) == {"b": second.version, "gone": None}
    assert (changes.mark.change, changes.mark.epoch) == (5, mark.epoch)


def test_a_mark_of_another_history_gets_everything(store, database):
    put(store, "a", ONE)
    mark = store.changes(None).mark
    with database.writing() as connection:
        connection.execute(text("UPDATE task_history SET epoch = 'another'"))
    changes = store.changes(mark)
    assert (changes.is_whole, by_name(changes.tasks).keys(), changes.mark.epoch) == (True, {"a"}, "another")


def test_bodies_of_more_files_than_are_read_at_once(store):
    files = {digest_of(b"%d" % i): b"%d" % i for i in range(150)}
    for i, data in enumerate(files.values()):
        put(store, f"t{i}", data)
    assert dict(store.bodies([*files, digest_of(b"never")])) == files


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
    assert store.body(live(store)["a"].digest) == b"%d" % won[0]
    assert n_versions(store) == 1


def test_concurrent_compare_and_swap_loses_no_update(store_url, store):
    """Each writer replaces what it read, and reads again when it lost: every one of them gets its version."""
    put(store, "a", b"start")
    second = Database(store_url)
    stores = [store, TaskStore(second)]

    def add(i: int) -> None:
        while True:
            current = live(stores[i % 2])["a"]
            try:
                put(stores[i % 2], "a", b"%d" % i, Precondition(if_match=(current.digest,)))
            except PreconditionFailed:
                continue
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(18)))
    second.close()
    assert n_versions(store) == 19
    assert store.digests("a") == {digest_of(b"start"), *(digest_of(b"%d" % i) for i in range(18))}


def test_a_follower_of_many_writers_misses_no_change(store_url, store):
    """Change numbers are given in the order of commits: none appears behind a mark that has been read."""
    second = Database(store_url)
    stores = [store, TaskStore(second)]
    seen: set[str] = set()
    mark = store.changes(None).mark
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(put, stores[i % 2], f"t{i}", b"%d" % i) for i in range(60)]
        while len(seen) < 60:
            is_over = all(future.done() for future in writing)
            changes = store.changes(mark)
            seen |= by_name(changes.tasks).keys()
            mark = changes.mark
            assert len(seen) == 60 or not is_over, "a change was missed"
    second.close()
    assert mark.change == 60


WRITER = """
import sys, time
from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import SHARED, digest_of
from onebasis.storage.database import Database

database = Database(sys.argv[1])
store = TaskStore(database)
for i in range(1_000_000):
    data = b"%d" % i * 5_000
    store.put("task-%d" % i, data, digest_of(data), now=i)
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
        found = {name: store.body(version.digest) for name, version in live(store).items()}
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
    assert live(store).keys() == {"a"}


def test_a_database_that_fails_later_is_told_without_the_uploaded_bytes(store, database):
    put(store, "a", ONE)
    mark = store.changes(None).mark
    with database.writing() as connection:
        connection.execute(text("DROP TABLE task_versions"))
    for work in (
        lambda: put(store, "b", TWO),
        lambda: store.delete("a", now=1),
        lambda: store.changes(mark),
        lambda: store.versions("a", 1),
    ):
        with pytest.raises(StoreUnavailable, match=r"does not answer \(.*task_versions") as caught:
            work()
        assert "second" not in str(caught.value)
