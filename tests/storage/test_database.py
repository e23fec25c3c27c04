"""What a Database promises on SQLite and on PostgreSQL alike."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text

from onebasis.core.errors import InvalidStore, StoreUnavailable
from onebasis.storage.database import Database

ADD = text("UPDATE counters SET n = :n")
READ = text("SELECT n FROM counters")


@pytest.fixture
def counter(database):
    """A database with a table of one number, at 0."""
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE counters (n INTEGER)"))
        connection.execute(text("INSERT INTO counters VALUES (0)"))
    return database


def n_of(database) -> int:
    with database.reading() as connection:
        return connection.execute(READ).scalar_one()


def test_writers_come_one_after_another_and_lose_no_update(counter, store_url):
    """Read, think, write: from two connection pools, as two processes would."""
    other = Database(store_url)

    def add(i: int) -> None:
        with (counter, other)[i % 2].writing() as connection:
            n = connection.execute(READ).scalar_one()
            time.sleep(0.001)
            connection.execute(ADD, {"n": n + 1})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    other.close()
    assert n_of(counter) == 40


def test_a_reader_sees_one_moment_and_waits_for_no_writer(counter):
    with counter.reading() as reader:
        before = reader.execute(READ).scalar_one()
        with counter.writing() as writer:
            writer.execute(ADD, {"n": 7})
            assert n_of(counter) == 0, "not committed yet"
        assert reader.execute(READ).scalar_one() == before
    assert n_of(counter) == 7


def test_a_block_that_raises_leaves_nothing(counter):
    with suppress(KeyError), counter.writing() as connection:
        connection.execute(ADD, {"n": 7})
        raise KeyError
    assert n_of(counter) == 0


def test_a_writer_that_waits_too_long_is_told_and_the_next_one_gets_its_turn(counter, store_url, monkeypatch):
    monkeypatch.setattr("onebasis.storage.database._SQLITE_PRAGMAS", ("PRAGMA busy_timeout = 50",))
    monkeypatch.setattr("onebasis.storage.database._POSTGRES_SETTINGS", ("SET lock_timeout = '50ms'",))
    hasty = Database(store_url)
    with counter.writing() as holder:
        holder.execute(ADD, {"n": 7})
        with pytest.raises(StoreUnavailable, match="does not answer"), hasty.writing():
            raise AssertionError("two writers at once")
    with hasty.writing() as connection:
        connection.execute(ADD, {"n": 8})
    hasty.close()
    assert n_of(counter) == 8


def test_an_error_of_the_database_is_told_in_its_own_words(database):
    for transaction in (database.reading, database.writing):
        with pytest.raises(StoreUnavailable, match=r"does not answer \(.*nonsense") as caught, transaction() as found:
            found.execute(text("SELECT * FROM nonsense WHERE 1 = :secret"), {"secret": 424242})
        assert "424242" not in str(caught.value)


def test_sqlite_runs_with_what_durability_needs(sqlite_url):
    database = Database(sqlite_url)
    with database.reading() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///{}/no/folder/tasks.db", "unable to open"),
        ("sqlite:///{}/text", "not a database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("no url", "parse"),
        ("mysql://me:secret@host/x", "'mysql' is not supported, sqlite and postgresql are"),
        ("postgresql+asyncpg://me:secret@host/x", "is not supported"),
        ("postgresql://me:secret@127.0.0.1:1/x", "127.0.0.1"),
        ("postgresql://127.0.0.1:1/x?user=me&password=secret", "127.0.0.1"),
    ],
)
def test_a_store_that_can_not_be_opened_is_the_operators_error(tmp_path, url, reason):
    (tmp_path / "text").write_text("this is not a database, however long it may be " * 100)
    with pytest.raises(InvalidStore, match=rf"task store .*{reason}.* give a URL such as sqlite:////var") as caught:
        Database(url.format(tmp_path))
    assert "secret" not in str(caught.value)


def test_a_postgres_url_may_name_its_driver(new_postgres_url):
    Database(new_postgres_url().replace("postgresql://", "postgresql+psycopg://")).close()


OPEN = "import sys; from onebasis.storage.database import Database; Database(sys.argv[1]); print('open')"


def test_several_processes_may_start_on_one_empty_database_at_once(store_url):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OPEN, store_url]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    starting = [subprocess.Popen(command, text=True, env=env, **pipes) for _ in range(4)]
    assert [process.communicate() for process in starting] == [("open\n", "")] * 4
