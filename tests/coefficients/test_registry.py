import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Thread

import pytest
from sqlalchemy import text

from onebasis.coefficients.preconditions import ANY, Precondition
from onebasis.core.errors import (
    CoefficientError,
    DigestMismatch,
    InvalidTaskName,
    ModelNotFound,
    NoBasis,
    PreconditionFailed,
    ReservedTaskName,
    StoreUnavailable,
    TaskNotFound,
)
from onebasis.core.ids import digest_of
from onebasis.telemetry.reports import RegistrySnapshot
from tests.coefficients.builders import BASE, basis_spec, coefficients, started

BASIS, OTHER_BASIS = basis_spec(), basis_spec(seed=1)
ONE = coefficients(BASIS, provenance={"score": 0.5})
TWO = coefficients(BASIS, form="diag", k=2)
NEW = Precondition(if_none_match=(ANY,))


@pytest.fixture
def registry(store):
    return started(store, BASIS)


def names(registry) -> list[str]:
    return [task.name for task in registry.page(limit=1000).tasks]


def test_a_registered_task_is_all_there(registry):
    done = registry.register("plural", ONE, declared_digest=digest_of(ONE))
    assert (done.created, done.replaced) == (True, False)
    task = registry.get("plural")
    assert (task.version, task.coefficients is done.task.coefficients) == (done.task.version, True)
    assert (task.name, task.digest, task.generation) == ("plural", digest_of(ONE), 1)
    assert (task.created_at, task.size_bytes, task.form, task.k) == (1234, len(ONE), "core", None)
    assert (task.state, task.reason, task.provenance) == ("ready", None, {"score": 0.5})
    assert registry.content("plural") == (digest_of(ONE), ONE)
    resolved = registry.resolve("plural")
    assert (resolved.name, resolved.coefficients) == ("plural", task.coefficients)


def test_register_tells_new_replaced_and_unchanged_apart(registry):
    outcomes = [registry.register("a", data) for data in (ONE, ONE, TWO)]
    assert [(o.created, o.replaced) for o in outcomes] == [(True, False), (False, False), (True, True)]
    assert [o.task.generation for o in outcomes] == [1, 1, 2]
    registry.delete("a")
    again = registry.register("a", ONE)
    assert (again.created, again.replaced, again.task.generation) == (True, False, 4)


@pytest.mark.parametrize(
    ("name", "data", "kwargs", "error"),
    [
        ("", ONE, {}, InvalidTaskName),
        ("a/b", ONE, {}, InvalidTaskName),
        ("a@b", ONE, {}, InvalidTaskName),
        ("x" * 129, ONE, {}, InvalidTaskName),
        (BASE, ONE, {}, ReservedTaskName),
        ("a", ONE, {"declared_digest": digest_of(TWO)}, DigestMismatch),
        ("a", ONE[:-1], {}, CoefficientError),
        ("a", b"", {}, CoefficientError),
        ("a", coefficients(OTHER_BASIS), {}, CoefficientError),
        ("a", ONE, {"precondition": Precondition(if_match=(digest_of(TWO),))}, PreconditionFailed),
    ],
)
def test_a_refused_upload_changes_nothing(registry, store, name, data, kwargs, error):
    registry.register("kept", ONE)
    with pytest.raises(error):
        registry.register(name, data, **kwargs)
    assert names(registry) == ["kept"]
    assert store.changes(None).mark.change == 1
    assert registry.snapshot() == RegistrySnapshot(n_registered=1, size_bytes=len(ONE), n_retired=0)


def test_a_broken_replacement_leaves_the_earlier_version_serving(registry):
    registry.register("a", ONE)
    with pytest.raises(CoefficientError):
        registry.register("a", TWO[:-1])
    assert registry.resolve("a").coefficients.digest == digest_of(ONE)


def test_without_a_basis_nothing_is_registered_but_the_base_resolves(store):
    registry = started(store, None)
    with pytest.raises(NoBasis):
        registry.register("a", ONE)
    assert registry.resolve(BASE) is None
    with pytest.raises(ModelNotFound):
        registry.resolve("a")


def test_delete_returns_what_was_there_and_frees_the_name(registry):
    registry.register("a", ONE)
    with pytest.raises(PreconditionFailed):
        registry.delete("a", Precondition(if_match=(digest_of(TWO),)))
    assert registry.delete("a", Precondition(if_match=(digest_of(ONE),))).digest == digest_of(ONE)
    for ask in (registry.get, registry.content, registry.delete):
        with pytest.raises(TaskNotFound) as caught:
            ask("a")
        assert caught.value.code == "task_not_found"
    assert registry.register("a", TWO, precondition=NEW).created


def test_pages_are_sorted_complete_and_know_their_end(registry):
    wanted = sorted(f"t{i}" for i in range(11))
    for name in reversed(wanted):
        registry.register(name, ONE)
    found, after = [], None
    while True:
        page = registry.page(limit=4, after=after)
        found += [task.name for task in page.tasks]
        if not page.has_more:
            break
        after = found[-1]
    assert found == wanted
    assert not registry.page(limit=11).has_more
    assert registry.page(limit=10).has_more
    registry.delete(wanted[4])
    assert registry.page(limit=1, after=wanted[4]).tasks[0].name == wanted[5], "a cursor outlives its task"
    assert registry.page(limit=5, after="zzz").tasks == ()


def test_models_resolve_to_base_current_or_an_exact_version(registry):
    registry.register("a", ONE)
    registry.register("a", TWO)
    assert registry.resolve(BASE) is None
    assert registry.resolve("a").coefficients.digest == digest_of(TWO)
    assert registry.resolve(f"a@{digest_of(TWO)}").coefficients is registry.get("a").coefficients
    old = registry.resolve(f"a@{digest_of(ONE)}")
    assert (old.name, old.coefficients.digest) == ("a", digest_of(ONE))
    assert registry.resolve(f"a@{digest_of(ONE)}").coefficients is old.coefficients, "kept, not parsed again"


@pytest.mark.parametrize(
    "model",
    [
        *("", "b", "A", "a@", "a@sha256:12"),
        *("@" + digest_of(ONE), f"{BASE}@{digest_of(ONE)}", f"b@{digest_of(ONE)}", f"a@{digest_of(ONE)} "),
        *(f"a@{digest_of(b'never')}", f"a@{digest_of(TWO)}"),
    ],
)
def test_an_unknown_model_is_never_answered_by_another(registry, model):
    registry.register("a", ONE)
    registry.register("c", TWO)
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve(model)
    assert caught.value.code == "model_not_found"


def test_a_deleted_task_is_gone_under_its_digests_too(registry):
    registry.register("a", ONE)
    registry.register("a", TWO)
    registry.resolve(f"a@{digest_of(ONE)}")  # now it is in the cache of old versions
    registry.delete("a")
    registry.register("a", TWO)
    with pytest.raises(ModelNotFound):
        registry.resolve(f"a@{digest_of(ONE)}")


def test_a_request_keeps_what_it_resolved(registry):
    registry.register("a", ONE)
    before = registry.resolve("a")
    registry.register("a", TWO)
    registry.delete("a")
    assert before.coefficients.flat_cores().any()
    assert before.coefficients.digest == digest_of(ONE)


def test_when_the_store_fails_the_memory_stays_as_it_was(registry, database):
    registry.register("a", ONE)
    before = registry.snapshot()
    with database.writing() as connection:
        connection.execute(text("DROP TABLE task_versions"))
    for work in (lambda: registry.register("a", TWO), lambda: registry.delete("a")):
        with pytest.raises(StoreUnavailable):
            work()
    assert registry.resolve("a").coefficients.digest == digest_of(ONE)
    assert registry.snapshot() == before


def test_of_many_threads_that_want_a_new_name_exactly_one_wins(registry):
    files = [coefficients(BASIS, seed=seed) for seed in range(12)]

    def attempt(data: bytes) -> bool:
        try:
            return registry.register("a", data, precondition=NEW).created
        except PreconditionFailed:
            return False

    with ThreadPoolExecutor(6) as pool:
        won = [data for data, created in zip(files, pool.map(attempt, files), strict=True) if created]
    assert [digest_of(data) for data in won] == [registry.get("a").digest]


def test_a_writer_slow_to_return_from_the_store_does_not_hide_the_next_one(registry, store, monkeypatch):
    put, committed = store.put, Event()

    def slow_put(name, data, *args, **kwargs):
        version = put(name, data, *args, **kwargs)
        committed.set()
        if data == ONE:
            time.sleep(0.2)  # for the other writer to overtake, if anything lets it
        return version

    monkeypatch.setattr(store, "put", slow_put)
    slow = Thread(target=registry.register, args=("a", ONE))
    slow.start()
    committed.wait()
    registry.register("a", TWO)
    slow.join()
    assert (registry.get("a").digest, registry.get("a").generation) == (digest_of(TWO), 2)


def test_memory_and_store_agree_after_many_threads(registry, store):
    """Readers run all the while: they see whole tasks and sorted pages, and never wait or fail."""
    files = [coefficients(BASIS, seed=seed) for seed in range(3)]
    done = False

    def write(i: int) -> None:
        name = f"t{i % 5}"
        registry.register(name, files[i % 3])
        if i % 4 == 0:
            with suppress(TaskNotFound):
                registry.delete(name)

    def read() -> None:
        while not done:
            found = [task.name for task in registry.page(limit=100).tasks]
            if found != sorted(set(found)):
                raise AssertionError(found)

    reader = Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(90)))
    done = True
    reader.join()
    again = started(store, BASIS)
    for ours, stored in zip(registry.page(limit=100).tasks, again.page(limit=100).tasks, strict=True):
        assert (ours.name, ours.digest, ours.generation) == (stored.name, stored.digest, stored.generation)
    assert registry.snapshot() == again.snapshot()
