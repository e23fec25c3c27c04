"""A backup holds the whole history and goes into either kind of database."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner

from onebasis.cli import app
from onebasis.coefficients.backup import back_up, restore
from onebasis.coefficients.store import FILES, VERSIONS, TaskStore
from onebasis.core.errors import InvalidBackup, ModelNotFound, StoreNotEmpty
from onebasis.core.ids import SHARED, TaskKey, digest_of
from onebasis.identity.audit import AuditLog
from onebasis.identity.caller import Scope
from onebasis.identity.key_store import KeyStore
from onebasis.identity.quota import Quota
from onebasis.identity.quota_store import QuotaStore
from onebasis.storage.database import Database
from tests.coefficients.builders import basis_spec, coefficients, random_residual, started
from tests.identity.builders import ADMIN

BASIS = basis_spec()
ONE, TWO = (coefficients(BASIS, seed=seed) for seed in range(2))
OLD = [coefficients(BASIS, seed=seed) for seed in range(10, 14)]
NEW = [coefficients(BASIS, seed=seed) for seed in range(20, 22)]
THREE = coefficients(BASIS, seed=2, residual={BASIS.sites[0].name: random_residual(BASIS.sites[0])})


@pytest.fixture
def registry(database):
    """Three tasks, one of them deleted, one replaced and rolled back."""
    registry = started(TaskStore(database), BASIS)
    registry.register("a", ONE, metadata={"note": "é"})
    registry.register("a", TWO)
    registry.roll_back("a", digest_of(ONE))
    registry.register("gone", THREE)
    registry.delete("gone")
    registry.register("b", THREE)
    return registry


@pytest.fixture(params=["sqlite", "postgres"])
def other(request, tmp_path):
    """An empty database of either kind."""
    url = f"sqlite:///{tmp_path}/other.db"
    if request.param == "postgres":
        url = request.getfixturevalue("new_postgres_url")()
    database = Database(url)
    yield database
    database.close()


def everything(database):
    with database.reading() as connection:
        return [sorted(map(tuple, connection.execute(select(*table.c)).all()), key=str) for table in (FILES, VERSIONS)]


def test_a_backup_restored_elsewhere_is_the_same_registry(registry, database, other, tmp_path):
    done = back_up(database, tmp_path / "backup")
    assert (done.n_files, done.n_versions, done.n_keys, done.damaged) == (3, 5, 0, ())
    assert restore(tmp_path / "backup", other) == done
    assert everything(other) == everything(database)
    again = started(TaskStore(other), BASIS)
    assert [(t.name, t.digest, t.generation, t.state) for t in again.page(9).tasks] == [
        ("a", digest_of(ONE), 3, "ready"),
        ("b", digest_of(THREE), 1, "ready"),
    ]
    assert again.get("a").version.metadata == {"note": "é"}
    assert again.register("a", TWO).task.generation == 4, "its history goes on"


def test_keys_quotas_and_the_audit_log_come_along_and_the_log_goes_on(registry, database, other, tmp_path):
    keys = KeyStore(database)
    kept, secret = keys.create(ADMIN, label="app", scopes=frozenset({Scope.GENERATE}), tenant="acme")
    gone, _ = keys.create(ADMIN, label="old", scopes=frozenset({Scope.ADMIN}))
    keys.revoke(ADMIN, gone.id)
    quota = Quota(tasks=5, requests_per_minute=60)
    QuotaStore(database, Quota()).put(ADMIN, "acme", quota)
    assert back_up(database, tmp_path / "backup").n_keys == 2

    restore(tmp_path / "backup", other)
    assert QuotaStore(other, Quota()).of("acme") == quota
    assert KeyStore(other).page(9) == keys.page(9)
    assert secret not in (tmp_path / "backup").read_bytes().decode(errors="ignore")
    before = AuditLog(database).page(100)
    assert AuditLog(other).page(100) == before
    KeyStore(other).revoke(ADMIN, kept.id)
    assert [entry.id for entry in AuditLog(other).page(100, before[-1].id)] == [before[-1].id + 1]


def test_a_store_with_keys_alone_is_not_empty(registry, database, other, tmp_path):
    back_up(database, tmp_path / "backup")
    KeyStore(other).create(ADMIN, label="first", scopes=frozenset({Scope.ADMIN}))
    with pytest.raises(StoreNotEmpty, match="0 versions of tasks and 1 API keys"):
        restore(tmp_path / "backup", other)
    assert len(KeyStore(other).page(9)) == 1


def test_a_backup_is_one_file_and_is_never_written_over_another(registry, database, tmp_path):
    back_up(database, tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {"tasks.db", "tasks.db-wal", "tasks.db-shm"} == {"backup"}
    with pytest.raises(InvalidBackup, match="exists already"):
        back_up(database, tmp_path / "backup")
    assert (tmp_path / "backup").read_bytes() == before


def test_a_backup_is_of_one_moment_however_busy_the_store(database, other, tmp_path):
    """Every write makes two tasks alike, one after the other; no backup may be ahead in the second."""
    registry = started(TaskStore(database), BASIS)
    files = [coefficients(BASIS, seed=seed) for seed in range(40)]
    has_begun = Event()

    def write() -> None:
        for data in files:
            registry.register("first", data)
            registry.register("second", data)
            has_begun.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        has_begun.wait()
        done = back_up(database, tmp_path / "backup")
        writing.result()
    assert restore(tmp_path / "backup", other).damaged == ()
    changes = TaskStore(other).changes(None)
    assert changes.mark.change == done.n_versions
    first, second = (changes.tasks[TaskKey(SHARED, name)].generation for name in ("first", "second"))
    assert first - second in (0, 1)
    assert done.n_files == first


def test_a_restore_into_a_store_with_a_history_needs_the_operators_word(registry, database, other, tmp_path):
    back_up(database, tmp_path / "backup")
    running = started(TaskStore(other), BASIS)
    running.register("mine", ONE)
    running.delete("mine")
    running.register("a", THREE)
    before = everything(other)
    with pytest.raises(StoreNotEmpty, match="holds 2 versions"):
        restore(tmp_path / "backup", other)
    assert everything(other) == before
    restore(tmp_path / "backup", other, replace=True)
    assert everything(other) == everything(database)
    running.follow()
    assert [(task.name, task.digest) for task in running.page(9).tasks] == [
        ("a", digest_of(ONE)),
        ("b", digest_of(THREE)),
    ]


def test_a_running_registry_notices_that_its_own_store_went_back_to_a_backup(registry, database, tmp_path):
    back_up(database, tmp_path / "backup")
    registry.register("later", ONE)
    restore(tmp_path / "backup", database, replace=True)
    registry.register("other", TWO)  # as many changes as it knows of
    assert [task.name for task in registry.page(9).tasks] == ["a", "b", "other"]


@pytest.fixture
def went_back(database, tmp_path):
    """A registry that was asked for the third of a task's four versions, and what takes it back to the second."""
    registry = started(TaskStore(database), BASIS)
    for n, data in enumerate(OLD):
        if n == 2:
            back_up(database, tmp_path / "earlier")
        registry.register("t", data)
    assert registry.resolve(f"t@{digest_of(OLD[2])}").coefficients.digest == digest_of(OLD[2])
    return registry, lambda: restore(tmp_path / "earlier", database, replace=True)


def test_after_a_restore_a_version_is_looked_for_in_the_history_that_is_there_now(went_back):
    registry, go_back = went_back
    go_back()
    for data in NEW:
        registry.register("t", data)
    assert registry.get("t").generation == len(OLD), "the generation at which the old history was read"
    for gone in OLD[2:]:
        with pytest.raises(ModelNotFound):
            registry.resolve(f"t@{digest_of(gone)}")
    for data in (*OLD[:2], *NEW):
        assert registry.resolve(f"t@{digest_of(data)}").coefficients.digest == digest_of(data)


def test_a_version_that_is_looked_for_during_a_restore_does_not_spoil_the_new_history(went_back, monkeypatch):
    registry, go_back = went_back
    get = registry._catalog.get

    def get_and_go_back(key):
        """The reader has the task of before; all that it reads from here on is of after."""
        task = get(key)
        monkeypatch.undo()
        go_back()
        registry.follow()
        return task

    monkeypatch.setattr(registry._catalog, "get", get_and_go_back)
    with pytest.raises(ModelNotFound):
        registry.resolve(f"t@{digest_of(b'never')}")
    for data in NEW:
        registry.register("t", data)
    for data in NEW:
        assert registry.resolve(f"t@{digest_of(data)}").coefficients.digest == digest_of(data)


def test_a_damaged_file_is_named_and_keeps_nothing_else_from_being_saved(registry, database, other, tmp_path):
    with database.writing() as connection:
        statement = text("UPDATE coefficient_files SET body = :body WHERE digest = :digest")
        connection.execute(statement, {"body": b"damaged", "digest": digest_of(THREE)})
    assert back_up(database, tmp_path / "backup").damaged == (digest_of(THREE),)
    assert restore(tmp_path / "backup", other).damaged == (digest_of(THREE),)
    again = started(TaskStore(other), BASIS)
    assert [(task.name, task.state) for task in again.page(9).tasks] == [("a", "ready"), ("b", "unusable")]


@pytest.mark.parametrize("content", [None, b"", b"rubbish" * 1000])
def test_what_is_no_backup_is_refused_and_changes_nothing(registry, database, tmp_path, content):
    if content is not None:
        (tmp_path / "wrong").write_bytes(content)
    before = everything(database)
    with pytest.raises((InvalidBackup, StoreNotEmpty)):
        restore(tmp_path / "wrong", database)
    with pytest.raises(InvalidBackup):
        restore(tmp_path / "wrong", database, replace=True)
    assert everything(database) == before


def test_a_backup_is_not_changed_by_its_restore(registry, database, other, tmp_path):
    back_up(database, tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    restore(tmp_path / "backup", other)
    assert (tmp_path / "backup").read_bytes() == before


def test_the_commands(registry, store_url, other, tmp_path):
    url = other._engine.url.render_as_string(hide_password=False)
    run = CliRunner().invoke
    saved = run(app, ["registry", "backup", "--store", store_url, str(tmp_path / "backup")])
    assert (saved.exit_code, "3 files, 5 versions, 0 keys" in saved.output) == (0, True), saved.output
    restored = run(app, ["registry", "restore", "--store", url, str(tmp_path / "backup")])
    assert (restored.exit_code, restored.output) == (0, "restored 3 files, 5 versions, 0 keys\n")
    again = run(app, ["registry", "restore", "--store", url, str(tmp_path / "backup")])
    assert isinstance(again.exception, StoreNotEmpty)
    replaced = run(app, ["registry", "restore", "--store", url, "--replace", str(tmp_path / "backup")])
    assert replaced.exit_code == 0
