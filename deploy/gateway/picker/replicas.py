"""The replicas there are, which of them are ready, and how much each has to do."""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import httpx

from picker.load import Load, NotOurs, parse_load

_log: Final = logging.getLogger(__name__)
_RESOLVE_S: Final = 1.0
_TIMEOUT_S: Final = 2.0
_FRESH_S: Final = 5.0
"""A replica that has not answered for this long is not picked: it is busier than it last said, or gone."""


class Replicas:
    """Asks every address behind some names, again and again, whether it is ready and what it has to do.

    Invariant: `_loads` are the replicas whose last answer was "ready"; `_n_picked` is what was sent to each since.
    Event loop only.

    Args:
        names: "host:port"; every address of a host is a replica.
        interval_s: between two questions to a replica.
    """

    def __init__(self, names: Sequence[str], *, interval_s: float) -> None:
        self._names = [(host, int(port)) for host, _, port in (name.rpartition(":") for name in names)]
        self._interval_s = interval_s
        self._resolved: dict[tuple[str, int], set[str]] = {}  # endpoints by name
        self._loads: dict[str, Load] = {}
        self._asked_s: dict[str, float] = {}
        self._n_picked: Counter[str] = Counter()
        self.looked = asyncio.Event()
        """Set once every replica of the beginning has been asked."""

    def ready(self) -> Mapping[str, Load]:
        """By endpoint, "address:port", with what has been sent there since it was asked."""
        oldest_s = time.monotonic() - _FRESH_S
        return {
            endpoint: replace(load, n_running=load.n_running + self._n_picked[endpoint])
            for endpoint, load in self._loads.items()
            if self._asked_s[endpoint] >= oldest_s
        }

    def picked(self, endpoint: str) -> None:
        """A request goes there, which its metrics will tell of only later."""
        self._n_picked[endpoint] += 1

    async def watch(self) -> None:
        """Until it is cancelled."""
        watchers: dict[str, asyncio.Task[None]] = {}
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client, asyncio.TaskGroup() as group:
            await asyncio.gather(*(self._ask(client, endpoint) for endpoint in await self._endpoints()))
            self.looked.set()
            while True:
                endpoints = await self._endpoints()
                for endpoint in watchers.keys() - endpoints:
                    watchers.pop(endpoint).cancel()
                    self._loads.pop(endpoint, None)
                for endpoint in endpoints - watchers.keys():
                    watchers[endpoint] = group.create_task(self._watch_one(client, endpoint))
                await asyncio.sleep(_RESOLVE_S)

    async def _endpoints(self) -> set[str]:
        """Of all names; of one that can't be resolved just now, what it stood for before."""
        loop = asyncio.get_running_loop()
        for host, port in self._names:
            try:
                answers = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
            except OSError as error:
                _log.warning("%s can't be resolved: %s", host, error)
                continue
            self._resolved[host, port] = {f"{address}:{port}" for *_, (address, *_) in answers}
        return set[str]().union(*self._resolved.values())

    async def _watch_one(self, client: httpx.AsyncClient, endpoint: str) -> None:
        while True:
            await self._ask(client, endpoint)
            await asyncio.sleep(self._interval_s)

    async def _ask(self, client: httpx.AsyncClient, endpoint: str) -> None:
        try:
            ready = await client.get(f"http://{endpoint}/health/ready")
            n_picked = self._n_picked[endpoint]
            load = await _load_of(client, endpoint) if ready.is_success else None
        except httpx.TimeoutException:
            return  # slow is not gone; `ready` forgets it after _FRESH_S
        except (httpx.HTTPError, NotOurs) as error:
            _log.debug("%s: %s", endpoint, error)
            load = None
        if (load is None) != (endpoint not in self._loads):
            _log.info("%s is %s", endpoint, "ready" if load else "not ready")
        if load is None:
            self._loads.pop(endpoint, None)
            return
        self._loads[endpoint] = load
        self._asked_s[endpoint] = time.monotonic()
        self._n_picked[endpoint] -= n_picked


async def _load_of(client: httpx.AsyncClient, endpoint: str) -> Load:
    page = await client.get(f"http://{endpoint}/metrics")
    return parse_load(page.text)
