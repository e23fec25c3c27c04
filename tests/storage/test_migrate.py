"""Schemas of earlier programs are brought up to date with everything in them; those of later ones are left alone."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url, text

from onebasis.coefficients import store, tables
from onebasis.core.errors import InvalidStore, TaskNotFound
from onebasis.core.ids import SHARED, digest_of
from onebasis.identity.tables import METADATA
from onebasis.storage import migrate
from onebasis.storage.database import Database
from tests.storage.damage import cut_off_pages

TABLES_OF_0_1_0 = """
CREATE TABLE coefficient_files (
    digest VARCHAR(71) NOT NULL, size_bytes BIGINT NOT NULL, body {blob} NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (digest)
);
CREATE TABLE task_versions (
    name VARCHAR(128) NOT NULL, generation INTEGER NOT NULL, digest VARCHAR(71), created_at BIGINT NOT NULL,
    PRIMARY KEY (name, generation), FOREIGN KEY(digest) REFERENCES coefficient_files (digest)
);
INSERT INTO coefficient_files VALUES ('sha256:1', 1, {one}, 10), ('sha256:2', 2, {two}, 11);
INSERT INTO task_versions VALUES
    ('b', 1, 'sha256:1', 13), ('a', 1, 'sha256:1', 10), ('a', 2, NULL, 11), ('a', 3, 'sha256:2', 12);
"""


@pytest.fixture
def raw(store_url):
    """The database without our code in between; every statement commits."""
    url = make_url(store_url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


def execute(raw, script: str) -> None:
    with raw.connect() as connection:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(text(statement))


@pytest.fixture
def old(raw):
    """A database as version 0.1.0 left it: two tasks, three versions and a tombstone."""
    is_postgres = raw.dialect.name == "postgresql"
    one, two = (r"'\x01'", r"'\x0202'") if is_postgres else ("x'01'", "x'0202'")
    execute(raw, TABLES_OF_0_1_0.format(blob="BYTEA" if is_postgres else "BLOB", one=one, two=two))
    return raw


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrate._FOLDER))
    return ScriptDirectory.from_config(config)


def revision_of(raw) -> str | None:
    with raw.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def test_revisions_are_one_line():
    assert len(scripts().get_heads()) == 1


def test_a_new_database_is_at_the_head_and_has_the_tables_that_the_code_expects(database, raw):
    assert revision_of(raw) == scripts().get_current_head()
    with raw.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, [tables.TABLES, METADATA])
    assert found == []


def test_a_database_of_version_0_1_0_is_adopted_without_loss(old, store_url):
    assert revision_of(old) is None
    database = Database(store_url)
    tasks = store.TaskStore(database)
    changes = tasks.changes(None)
    assert {(task.name, task.generation, task.digest, task.created_at) for task in changes.tasks.values()} == {
        ("a", 3, "sha256:2", 12),
        ("b", 1, "sha256:1", 13),
    }
    assert (tasks.body("sha256:1"), tasks.body("sha256:2")) == (b"\1", b"\2\2")
    assert changes.mark.change == 4
    tasks.delete("b", now=14)
    assert {task.owner for task in changes.tasks.values()} == {SHARED}
    assert tasks.changes(changes.mark).tasks == {(SHARED, "b"): None}
    database.close()
    assert revision_of(old) == scripts().get_current_head()
    Database(store_url).close()


def test_what_was_deleted_before_is_erased_and_what_was_replaced_is_kept(old, store_url):
    execute(
        old,
        """
        INSERT INTO coefficient_files SELECT 'sha256:3', size_bytes, body, 12 FROM coefficient_files LIMIT 1;
        INSERT INTO coefficient_files SELECT 'sha256:4', size_bytes, body, 12 FROM coefficient_files LIMIT 1;
        INSERT INTO task_versions VALUES
            ('a', 4, 'sha256:1', 14),
            ('c', 1, 'sha256:3', 14), ('c', 2, NULL, 15), ('c', 3, 'sha256:2', 16), ('c', 4, NULL, 17),
            ('d', 1, 'sha256:4', 18), ('d', 2, 'sha256:1', 19)
        """,
    )
    Database(store_url).close()
    with old.connect() as connection:
        files = connection.execute(text("SELECT digest FROM coefficient_files ORDER BY digest")).scalars().all()
        wanted = text("SELECT name, generation, digest FROM task_versions ORDER BY name, generation")
        versions = connection.execute(wanted)
        assert files == ["sha256:1", "sha256:2", "sha256:4"]
        assert [tuple(version) for version in versions] == [
            *(("a", 2, None), ("a", 3, "sha256:2"), ("a", 4, "sha256:1")),
            ("b", 1, "sha256:1"),
            ("c", 4, None),
            *(("d", 1, "sha256:4"), ("d", 2, "sha256:1")),
        ]


def test_a_deleted_file_that_sqlite_can_not_read_stops_no_migration(sqlite_url):
    """A page of its body points to nowhere, as after a fault of the disk."""
    broken = b"broken" * 4000
    database = Database(sqlite_url)
    store.TaskStore(database).put("task", broken, digest_of(broken), now=1)
    store.TaskStore(database).put("whole", b"whole", digest_of(b"whole"), now=1)
    with database.writing() as connection:
        for statement in (
            "INSERT INTO task_versions VALUES ('', 'task', 2, NULL, 1, 3, '{}')",
            "DROP INDEX ix_task_versions_digest",
            "UPDATE alembic_version SET version_num = '0003'",
        ):
            connection.execute(text(statement))
    database.close()
    cut_off_pages(sqlite_url, broken)
    database = Database(sqlite_url)
    assert store.TaskStore(database).content("whole") == (digest_of(b"whole"), b"whole")
    with pytest.raises(TaskNotFound):
        store.TaskStore(database).content("task")
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(old, store_url, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr("onebasis.storage.migrate.command.upgrade", fail)
    with pytest.raises(KeyError):
        Database(store_url)
    assert revision_of(old) is None, "the stamp was undone"


def test_a_database_of_a_newer_program_is_refused_by_name_and_not_touched(database, raw, store_url):
    database.close()
    execute(raw, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidStore, match=r"at revision 9999, which this program, at .* update this program"):
        Database(store_url)
    assert revision_of(raw) == "9999"
