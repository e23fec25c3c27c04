"""The whole of it: a PostgreSQL, replicas on it, the gateway before them."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from loadtests.common.subject import Subject, running
from loadtests.rollout.gateway import Gateway
from onebasis.demo.server_process import ServerProcess


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One replica taken away and brought back. Times are time.perf_counter() seconds.

    Attributes:
        gone_s: its process had ended.
        back_s: the gateway sent requests to it again.
    """

    kind: Literal["restart", "kill"]
    replica: str
    began_s: float
    gone_s: float
    back_s: float
    exit_code: int


class Stack:
    """Invariant between calls: all replicas are up and the gateway knows it. One call at a time."""

    def __init__(self, servers: Sequence[ServerProcess], gateway: Gateway) -> None:
        self._servers = servers
        self.gateway = gateway
        self.replicas = [address_of(server) for server in servers]

    @classmethod
    @contextmanager
    def open(
        cls, subject: Subject, folder: Path, store: str, options: Sequence[str], n_replicas: int = 2
    ) -> Iterator["Stack"]:
        """Replicas with these options of `onebasis serve`."""
        servers = []
        for number in range(n_replicas):
            own = folder / f"replica-{number}"
            own.mkdir()
            servers.append(subject.server(own, store=store, more=options))
        with running(servers), Gateway(folder, [address_of(server) for server in servers]) as gateway:
            yield cls(servers, gateway)

    async def restart(self, number: int) -> Disturbance:
        """As a rolling update does: SIGTERM, wait for the end, a new process, wait until it is ready."""
        return await self._disturb("restart", number)

    async def kill(self, number: int) -> Disturbance:
        """SIGKILL, and a new process."""
        return await self._disturb("kill", number)

    async def _disturb(self, kind: Literal["restart", "kill"], number: int) -> Disturbance:
        server = self._servers[number]
        process = server.process
        began_s = time.perf_counter()
        (process.terminate if kind == "restart" else process.kill)()
        await asyncio.to_thread(process.wait)
        gone_s = time.perf_counter()
        await asyncio.to_thread(server.__enter__)
        everybody = set(self.replicas)
        await asyncio.to_thread(
            self.gateway.wait_for, lambda: self.gateway.healthy() == everybody, "the new replica is healthy"
        )
        back_s = time.perf_counter()
        return Disturbance(kind, self.replicas[number], began_s, gone_s, back_s, process.returncode)


def address_of(server: ServerProcess) -> str:
    """ "127.0.0.1:port"."""
    return urlsplit(server.url).netloc
