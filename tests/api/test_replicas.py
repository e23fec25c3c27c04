"""Two server processes on one store, one of them killed: nothing acknowledged is lost, both agree within 2 s."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from onebasis.core.ids import digest_of
from onebasis.demo.server_process import ServerProcess
from tests.api.server import ok, refused
from tests.api.tiny_model import TinyModel

pytestmark = pytest.mark.native_only(
    "processes of their own, which take half a minute to start; tests/vllm/test_serve.py has one"
)

CONVERGENCE_S = 2.0


class Replica:
    """A server process on a port of its own that can be killed and started again."""

    def __init__(self, tiny: TinyModel, store_url: str, log: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        options = ["--model", str(tiny.folder), "--basis", str(tiny.basis_path), "--store", store_url]
        options += ["--dtype", "float32", "--threads", "1", "--kv-cache-mib", "8", "--arena-mib", "1"]
        self.server = ServerProcess(options, port=port, log=log)
        self.client = httpx.Client(base_url=self.server.url, timeout=30, trust_env=False)

    def start(self) -> None:
        self.server.__enter__()

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    def close(self) -> None:
        self.client.close()
        self.server.stop()

    def put(self, name: str, data: bytes) -> httpx.Response:
        return self.client.put(f"/v1/tasks/{name}", content=data)

    def state(self) -> dict[str, tuple[str, int]]:
        cards = ok(self.client.get("/v1/tasks"))["data"]
        return {card["id"]: (card["digest"], card["generation"]) for card in cards}


@pytest.fixture
def replicas(tiny: TinyModel, store_url: str, tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    with ExitStack() as stack:
        one, two = (Replica(tiny, store_url, tmp_path / f"{name}.log") for name in ("one", "two"))
        for replica in (one, two):
            replica.start()
            stack.callback(replica.close)
        yield one, two


def seconds_until_alike(one: Replica, two: Replica) -> float:
    """Since the change just made; reading the list does not make a replica look into the store."""
    changed_s = time.monotonic()
    wanted = one.state()
    while two.state() != wanted:
        assert time.monotonic() - changed_s < CONVERGENCE_S, f"{two.state()} is not {wanted}"
        time.sleep(0.01)
    return time.monotonic() - changed_s


def test_replicas_agree_within_two_seconds_and_a_kill_9_loses_nothing(replicas, tiny):
    one, two = replicas
    for change in (
        lambda: one.put("a", tiny.core_file(1)),
        lambda: one.put("a", tiny.core_file(2)),
        lambda: one.client.post("/v1/tasks/a/rollback", json={"digest": digest_of(tiny.core_file(1))}),
        lambda: one.put("b", tiny.core_file(3)),
        lambda: one.client.delete("/v1/tasks/b"),
    ):
        ok(change())
        seconds_until_alike(one, two)
    fresh = two.put("fresh", tiny.core_file(4))
    answer = ok(one.client.post("/v1/completions", json={"model": "fresh", "prompt": "a", "max_tokens": 2}))
    assert answer["onebasis"]["digest"] == fresh.json()["digest"], "it looked into the store"
    refused(one.client.get("/v1/tasks/unknown"), 404, "task_not_found")

    assert one.put("last", tiny.core_file(5)).status_code == 201
    one.kill()
    assert ok(two.client.get("/v1/tasks/last"))["digest"] == digest_of(tiny.core_file(5))
    assert two.client.get("/v1/tasks/last/content").content == tiny.core_file(5)
    ok(two.put("meanwhile", tiny.core_file(6)))
    one.start()
    assert (
        one.state()
        == two.state()
        == {
            "a": (digest_of(tiny.core_file(1)), 3),
            "fresh": (digest_of(tiny.core_file(4)), 1),
            "last": (digest_of(tiny.core_file(5)), 1),
            "meanwhile": (digest_of(tiny.core_file(6)), 1),
        }
    )
