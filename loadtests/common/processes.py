"""CPU time and memory of a server on this machine, what everything else took meanwhile, and ports for servers."""

import os
import socket
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

import psutil

_IDLE = ("idle", "iowait", "guest", "guest_nice")  # guest time is in user time already


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since some fixed moments; only differences mean anything."""

    wall_s: float
    machine_s: float
    server_s: float
    client_s: float


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Cores in use on average. Read a measurement with many `other_cores` as disturbed."""

    server_cores: float | None  # None: no such process on this machine that we may look at
    other_cores: float  # neither the server nor this process


def free_port() -> int:
    """Of loopback, free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_process(url: str) -> psutil.Process | None:
    """The process that listens on the URL's port; None if it can't be seen."""
    port = urlsplit(url).port
    try:
        pids = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        found = min((pid for pid in pids if pid is not None), default=None)
        return None if found is None else psutil.Process(found)
    except psutil.Error:
        return None


def cpu_times(server: psutil.Process | None) -> CpuTimes:
    """Now. A server in this very process is told as the server."""
    own_s = _cpu_s(psutil.Process())
    is_here = server is not None and server.pid == os.getpid()
    machine = psutil.cpu_times()._asdict()
    return CpuTimes(
        wall_s=perf_counter(),
        machine_s=sum(value for name, value in machine.items() if name not in _IDLE),
        server_s=0.0 if server is None else sum(_cpu_s(process) for process in _family(server)),
        client_s=0.0 if is_here else own_s,
    )


def cpu_use(before: CpuTimes, after: CpuTimes, *, has_server: bool) -> CpuUse:
    """Between two moments."""
    wall_s = after.wall_s - before.wall_s
    server_s = after.server_s - before.server_s
    others_s = (after.machine_s - before.machine_s) - server_s - (after.client_s - before.client_s)
    return CpuUse(server_s / wall_s if has_server else None, max(0.0, others_s / wall_s))


def memory_bytes(server: psutil.Process) -> int:
    """Proportional set size of the server's processes: what ending them would free."""
    return sum(int(process.memory_full_info().pss) for process in _family(server))


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has just ended
        return 0.0
    return float(times.user + times.system)
