"""What the store promises, on SQLite and on PostgreSQL."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from onebasis.coefficients.preconditions import ANY, Precondition
from onebasis.coefficients.store import StoredVersion, Written
from onebasis.core.errors import PreconditionFailed, StoreUnavailable, TaskNotFound, VersionNotFound
from onebasis.core.ids import SHARED, digest_of
from onebasis.identity.caller import Caller, Scope
from onebasis.identity.quota import Quota
from tests.coefficients.stored import by_name, live, n_versions, put

NEW = Precondition(if_none_match=(ANY,))
ONE, TWO, THREE = b"one", b"second", b"the third"
ACME = Caller(key_id="key-acme", tenant="acme", scopes=frozenset({Scope.REGISTER}), request_id="req-1")


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
