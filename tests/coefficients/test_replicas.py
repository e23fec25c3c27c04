"""Several registries on one store: what one does, the others see; what they do not know, they look for."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from onebasis.coefficients.blend import Blends
from onebasis.coefficients.follower import Follower
from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.store import TaskStore
from onebasis.core.errors import (
    ModelNotFound,
    PreconditionFailed,
    StoreUnavailable,
    TaskNotFound,
    VersionNotFound,
)
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database
from tests.coefficients.builders import basis_spec, coefficients, started
from tests.storage.damage import cut_off_pages

BASIS = basis_spec()
ONE, TWO, THREE = (coefficients(BASIS, seed=seed) for seed in range(3))


class CountedStore(TaskStore):
    """A store that counts its readings, and lets a test hold them up."""

    def __init__(self, database):
        super().__init__(database)
        self.n_changes_read = 0
        self.n_bodies_read = 0
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_reading = threading.Event()
        self.before_bodies = lambda: None

    def changes(self, since):
        self.n_changes_read += 1
        self.is_reading.set()
        assert self.may_read.wait(timeout=10)
        return super().changes(since)

    def bodies(self, digests):
        self.n_bodies_read += len(digests)
        self.before_bodies()
        return super().bodies(digests)


@pytest.fixture
def stores(store_url):
    databases = [Database(store_url), Database(store_url)]
    yield [CountedStore(database) for database in databases]
    for database in databases:
        database.close()


@pytest.fixture
def replicas(stores):
    return [started(store, BASIS) for store in stores]


def state(registry):
    return [(task.name, task.digest, task.generation, task.state) for task in registry.page(limit=99).tasks]


def break_store(database):
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE task_history RENAME TO elsewhere"))


def mend_store(database):
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO task_history"))


def test_every_kind_of_change_reaches_the_other_replica(replicas):
    one, two = replicas
    for change in (
        lambda: one.register("a", ONE),
        lambda: one.register("b", TWO, metadata={"note": "x"}),
        lambda: one.register("a", TWO),
        lambda: one.roll_back("a", digest_of(ONE)),
        lambda: two.delete("b"),
        lambda: two.register("b", THREE),
    ):
        change()
        for replica in replicas:
            replica.follow()
        assert state(one) == state(two)
        assert one.snapshot() == two.snapshot()
    assert [name for name, *_ in state(two)] == ["a", "b"]


def test_conditions_hold_between_replicas_however_old_their_memory(replicas):
    one, two = replicas
    one.register("a", ONE)
    two.register("a", TWO)
    with pytest.raises(PreconditionFailed):
        one.register("a", THREE, precondition=Precondition(if_match=(digest_of(ONE),)))
    assert one.get("a").digest == digest_of(ONE), "its memory is old"
    one.follow()
    assert one.get("a").digest == digest_of(TWO)


def test_an_unknown_name_is_looked_for_in_the_store(replicas):
    one, two = replicas
    one.register("a", ONE)
    assert two.resolve("a").coefficients.digest == digest_of(ONE)
    one.register("b", TWO)
    assert two.get("b").digest == digest_of(TWO)
    one.register("c", THREE)
    assert two.content("c") == (digest_of(THREE), THREE)
    one.register("d", ONE)
    assert two.delete("d").digest == digest_of(ONE), "a delete asks the store alone"
    with pytest.raises(TaskNotFound):
        two.get("d")


def test_an_unknown_version_is_looked_for_in_the_store(replicas):
    one, two = replicas
    one.register("a", ONE)
    two.follow()
    with pytest.raises(ModelNotFound):
        two.resolve(f"a@{digest_of(TWO)}")
    one.register("a", TWO)
    one.register("a", THREE)
    assert two.get("a").digest == digest_of(ONE)
    assert two.resolve(f"a@{digest_of(TWO)}").coefficients.digest == digest_of(TWO)
    assert two.roll_back("a", digest_of(ONE)).task.generation == 4


@pytest.fixture
def lagging(replicas):
    """The second replica knows a task at its third version, and its history; the first one has just deleted it."""
    one, two = replicas
    for data in (ONE, TWO, THREE):
        one.register("a", data)
    two.follow()
    assert two.resolve(f"a@{digest_of(TWO)}").coefficients.digest == digest_of(TWO)
    one.delete("a")
    return replicas


def test_a_replica_that_lags_serves_on_from_memory_what_another_has_deleted(lagging):
    _, two = lagging
    assert two.resolve("a").coefficients.digest == digest_of(THREE)
    assert two.resolve(f"a@{digest_of(TWO)}").coefficients.digest == digest_of(TWO)


def test_a_version_whose_bytes_another_replica_has_erased_is_not_found(lagging):
    _, two = lagging
    with pytest.raises(ModelNotFound):
        two.resolve(f"a@{digest_of(ONE)}")
    with pytest.raises(ModelNotFound) as caught:
        Blends(two, BASIS).resolve([("a", 1.0), (f"a@{digest_of(ONE)}", 1.0)])
    assert caught.value.param == "blend"


def test_the_content_of_a_task_is_the_store_s_however_old_the_memory(lagging):
    one, two = lagging
    for digest in (None, digest_of(ONE), digest_of(THREE)):
        with pytest.raises(TaskNotFound):
            two.content("a", digest)
    one.register("a", TWO)
    assert two.get("a").digest == digest_of(THREE), "its memory is old"
    assert two.content("a") == (digest_of(TWO), TWO)
    for digest in (digest_of(ONE), digest_of(THREE)):
        with pytest.raises(VersionNotFound):
            two.content("a", digest)


def test_a_roll_back_to_a_version_that_is_deleted_meanwhile_finds_no_task(replicas, stores, monkeypatch):
    one, two = replicas
    one.register("a", ONE)
    one.register("a", TWO)

    def digests(*args):
        found = TaskStore.digests(stores[1], *args)
        one.delete("a")
        return found

    monkeypatch.setattr(stores[1], "digests", digests)
    with pytest.raises(TaskNotFound):
        two.roll_back("a", digest_of(ONE))


def test_what_is_deleted_while_a_replica_reads_it_is_unknown_there_and_looked_for(replicas, stores):
    one, two = replicas
    one.register("gone", ONE)
    one.register("back", TWO)

    def delete_both() -> None:
        stores[1].before_bodies = lambda: None
        one.delete("gone")
        one.delete("back")
        one.register("back", THREE)

    stores[1].before_bodies = delete_both
    two.follow()
    assert state(two) == []
    assert two.resolve("back").coefficients.digest == digest_of(THREE)
    with pytest.raises(ModelNotFound):
        two.resolve("gone")
    assert state(two) == state(one)


def test_uploads_and_files_that_are_in_use_are_not_read_from_the_store(replicas, stores):
    one, two = replicas
    one.register("a", ONE)
    one.register("b", ONE)
    one.register("c", ONE, metadata={"other": "version"})
    assert stores[0].n_bodies_read == 0
    two.follow()
    assert stores[1].n_bodies_read == 1
    assert two.get("a").coefficients is two.get("b").coefficients is two.get("c").coefficients


def test_misses_at_once_share_a_reading_that_began_after_them(replicas, stores):
    one, two = replicas
    store = stores[1]
    store.n_changes_read = 0
    store.may_read.clear()
    store.is_reading.clear()
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(two.follow)
        assert store.is_reading.wait(timeout=10)
        one.register("late", ONE)  # the reading under way may not see it
        asking = [pool.submit(two.get, "late") for _ in range(16)]
        time.sleep(0.2)  # for all of them to wait
        store.may_read.set()
        first.result()
        assert {future.result().digest for future in asking} == {digest_of(ONE)}
    assert store.n_changes_read == 2


def test_names_that_can_not_be_tasks_are_not_looked_for(replicas, stores):
    n_before = stores[0].n_changes_read
    for name in ("a b", "", "x" * 129, "a\x00"):
        with pytest.raises(TaskNotFound):
            replicas[0].get(name)
        with pytest.raises(ModelNotFound):
            replicas[0].resolve(name)
        with pytest.raises(TaskNotFound):
            replicas[0].delete(name)
        with pytest.raises(TaskNotFound):
            replicas[0].versions(name, 1)
    assert stores[0].n_changes_read == n_before


def test_versions_that_never_were_cost_no_reading_of_a_history_each(replicas, stores, monkeypatch):
    replicas[0].register("a", ONE)
    n_read = 0
    digests = TaskStore.digests

    def counted(store, name, owner):
        nonlocal n_read
        n_read += 1
        return digests(store, name, owner)

    monkeypatch.setattr(TaskStore, "digests", counted)
    for i in range(20):
        with pytest.raises(ModelNotFound):
            replicas[0].resolve(f"a@{digest_of(b'%d' % i)}")
    assert n_read == 1


def test_while_the_store_fails_known_tasks_serve_and_unknown_ones_are_not_denied(replicas, stores):
    one, _ = replicas
    one.register("a", ONE)
    break_store(stores[1]._database)
    with pytest.raises(StoreUnavailable):
        one.follow()
    n_before = stores[0].n_changes_read
    assert one.resolve("a").coefficients.digest == digest_of(ONE)
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            one.get("unknown")
    assert stores[0].n_changes_read == n_before, "a store that has just failed is not asked by everybody"
    mend_store(stores[1]._database)
    one.follow()


def test_a_reading_that_hangs_holds_up_a_miss_for_a_bounded_time(replicas, stores, monkeypatch):
    monkeypatch.setattr("onebasis.coefficients.registry._MISS_WAITS_S", 0.05)
    stores[0].may_read.clear()
    stores[0].is_reading.clear()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(replicas[0].follow)
        assert stores[0].is_reading.wait(timeout=10)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                replicas[0].get("unknown")
        stores[0].may_read.set()
        hanging.result()


def test_a_history_that_was_replaced_is_read_anew(replicas, stores):
    one, two = replicas
    one.register("a", ONE)
    one.register("b", ONE)
    two.follow()
    with stores[0]._database.writing() as connection:
        for statement in ("DELETE FROM task_versions WHERE name = 'a'", "UPDATE task_history SET epoch = 'new'"):
            connection.execute(text(statement))
    two.follow()
    assert [name for name, *_ in state(two)] == ["b"]


@pytest.fixture
def follower(replicas):
    follower = Follower(replicas[1], interval_s=0.02)
    follower.start()
    yield follower
    follower.stop()
    assert not follower.is_alive


def wait_until(condition, timeout_s=10.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_follower_brings_changes_without_being_asked(replicas, follower):
    one, two = replicas
    one.register("a", ONE)
    wait_until(lambda: state(two) == state(one))
    one.delete("a")
    wait_until(lambda: state(two) == [])


def test_a_follower_tells_of_a_failing_store_once_and_goes_on_after_it(replicas, stores, follower, caplog):
    one, two = replicas
    caplog.set_level("INFO")
    break_store(stores[0]._database)
    wait_until(lambda: "can't follow its store" in caplog.text)
    age_s = two.snapshot().age_s
    wait_until(lambda: two.snapshot().age_s > age_s + 0.3)
    mend_store(stores[0]._database)
    wait_until(lambda: "follows its store again" in caplog.text)
    assert caplog.text.count("can't follow its store") == 1
    assert caplog.text.count("follows its store again") == 1
    one.register("a", ONE)
    wait_until(lambda: state(two) == state(one))


def test_one_file_that_sqlite_itself_can_not_read_stops_nothing(sqlite_url):
    """A page of its blob points to nowhere, as after a fault of the disk."""
    broken, whole = (
        coefficients(BASIS, seed=seed, provenance={"text": f"{seed}-{seed + 1}," * 4000}) for seed in (3, 4)
    )
    database = Database(sqlite_url)
    registry = started(TaskStore(database), BASIS)
    registry.register("broken", broken)
    registry.register("whole", whole)
    database.close()
    cut_off_pages(sqlite_url, broken)
    database = Database(sqlite_url)
    registry = started(TaskStore(database), BASIS)
    assert [(name, is_ready) for name, *_, is_ready in state(registry)] == [("broken", "unusable"), ("whole", "ready")]
    assert "malformed" in registry.get("broken").reason
    registry.delete("broken")
    assert [name for name, *_ in state(registry)] == ["whole"]
    assert registry.register("broken", ONE).task.generation == 3
    assert [version.generation for version in registry.versions("broken", 9)] == [3]
    database.close()
