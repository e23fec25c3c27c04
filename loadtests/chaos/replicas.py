"""Two server processes on one store, one of which is killed and started again."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, select

from loadtests.common.subject import Subject, running
from onebasis.coefficients.tables import VERSIONS
from onebasis.demo.server_process import ServerProcess


class Replicas:
    """Both are up after `open`. Invariant: `downs[i]` are the times without replica i, the last perhaps open-ended."""

    def __init__(self, servers: tuple[ServerProcess, ServerProcess]) -> None:
        self._servers = servers
        self.urls = tuple(server.url for server in servers)
        self.downs: tuple[list[tuple[float, float]], ...] = ([], [])

    @classmethod
    @contextmanager
    def open(cls, subject: Subject, folder: Path, store: str) -> Iterator["Replicas"]:
        for name in ("one", "two"):
            (folder / name).mkdir()
        servers = (subject.server(folder / "one", store=store), subject.server(folder / "two", store=store))
        with running(servers):
            yield cls(servers)

    def is_up(self, replica: int) -> bool:
        return not self.downs[replica] or self.downs[replica][-1][1] < float("inf")

    def was_down(self, replica: int, since_s: float, until_s: float) -> bool:
        """At some moment of these."""
        return any(start_s <= until_s and end_s >= since_s for start_s, end_s in self.downs[replica])

    async def kill_and_restart(self, replica: int, *, down_s: float) -> None:
        """SIGKILL, and a new process on the same port after a while."""
        start_s = time.monotonic()
        self.downs[replica].append((start_s, float("inf")))
        process = self._servers[replica].process
        process.kill()
        process.wait()
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self._servers[replica].__enter__)
        self.downs[replica][-1] = (start_s, time.monotonic())


def stored_versions(store: str) -> dict[str, list[tuple[int, str | None]]]:
    """Every version that the store holds, by name: (generation, digest), read without any server."""
    engine = create_engine(make_url(store).set(drivername="postgresql+psycopg"))
    found: dict[str, list[tuple[int, str | None]]] = {}
    with engine.connect() as connection:
        wanted = select(VERSIONS.c.name, VERSIONS.c.generation, VERSIONS.c.digest)
        for name, generation, digest in connection.execute(wanted.order_by(VERSIONS.c.name, VERSIONS.c.generation)):
            found.setdefault(name, []).append((generation, digest))
    engine.dispose()
    return found
