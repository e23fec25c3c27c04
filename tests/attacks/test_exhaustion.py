"""A thousand hostile inputs against a server process: each refused, and the process is afterwards as it was."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from onebasis.demo.server_process import ServerProcess
from tests.api.server import ok, refused
from tests.api.test_errors import CODES
from tests.api.tiny_model import BASE_NAME, TinyModel
from tests.attacks.hostile_files import fixed_files, random_files
from tests.attacks.hostile_http import CLOSED, hostile_requests
from tests.attacks.raw_http import error_of, exchange

MIB = 1024 * 1024
N_RANDOM_FILES = 750
N_LEAST = 1000
GROWTH_BYTES = 8 * MIB  # of allocators; the inputs of a round have several times as much
POOL_FDS = 15  # the store opens connections of three files as they are needed, five at most; a leak would be hundreds

BODIES = [
    b"",
    b"[]",
    b"nul",
    b"\xff\xfe",
    b'{"model": ' + b"[" * 100_000,
    b'{"model": "' + b"a" * 500_000 + b'"}',
    *(
        json.dumps({"model": BASE_NAME, "prompt": "a"} | part).encode()
        for part in (
            {"model": "nobody"},
            {"model": f"{BASE_NAME}@sha256:{'0' * 64}"},
            {"model": "\u0430lpha"},
            {"prompt": ""},
            {"prompt": [-1]},
            {"prompt": [10**9]},
            {"prompt": "a" * 300_000},
            {"max_tokens": 10**9},
            {"max_tokens": -1},
            {"n": 10**9},
            {"temperature": -1},
            {"seed": 2**64},
            {"stop": ["a"] * 5000},
            {"logit_bias": {str(i): 1 for i in range(5000)}},
            {"blend": [{"task": "nobody", "weight": 1}]},
            {"blend": [{"task": "alpha", "weight": 1e999}]},
            {"unknown": {"a": [[[]]] * 5000}},
            {"timeout": -1},
        )
    ),
]


@pytest.fixture
def server(tiny: TinyModel, tmp_path: Path) -> Iterator[ServerProcess]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = ["--model", str(tiny.folder), "--basis", str(tiny.basis_path), "--served-model-name", BASE_NAME]
    options += ["--store", f"sqlite:///{tmp_path}/tasks.db", "--dtype", "float32", "--threads", "1"]
    options += ["--kv-cache-mib", "8", "--arena-mib", "1", "--max-body-bytes", str(MIB)]
    with ServerProcess(options, port=port, log=tmp_path / "server.log") as server:
        yield server


def attack(client: httpx.Client, tiny: TinyModel) -> int:
    """All of it once; how many were answered with a 4xx, which is all but the requests broken off."""
    n_refused = 0
    for file in (*fixed_files(tiny), *random_files(tiny, seed=0, n=N_RANDOM_FILES)):
        response = client.put("/v1/tasks/victim", content=file.data)
        error = response.json()["error"]
        assert error["code"] in file.codes, file.name
        refused(response, 400, error["code"])
        n_refused += 1
    for path in ("/v1/completions", "/v1/chat/completions"):
        for body in BODIES:
            response = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert 400 <= response.status_code < 500, (path, body[:100])
            error = response.json()["error"]
            refused(response, CODES[error["code"]], error["code"], error["param"])
            n_refused += 1
    for request in hostile_requests():
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as connection:
            status, data = exchange(connection, request.data)
        found = error_of(data)["code"] if status else CLOSED
        assert found in request.codes, request.name
        n_refused += 400 <= status < 500
    return n_refused


def settled(process: psutil.Process, n_most: int) -> int:
    """Descriptors, once connections that have ended are gone."""
    deadline_s = time.monotonic() + 10
    while process.num_fds() > n_most and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return process.num_fds()


def test_a_thousand_hostile_inputs_are_refused_and_leave_nothing_behind(server, tiny):
    process = psutil.Process(server.process.pid)
    body = {"model": "victim", "prompt": "the cat", "temperature": 0, "max_tokens": 8}
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        ok(client.put("/v1/tasks/victim", content=tiny.core_file(0)))
        before = ok(client.post("/v1/completions", json=body))["choices"]
        attack(client, tiny)  # caches, threads and pools are made once
        n_fds, n_bytes = process.num_fds(), process.memory_info().rss
        assert attack(client, tiny) >= N_LEAST
        assert settled(process, n_fds + POOL_FDS) <= n_fds + POOL_FDS
        assert process.memory_info().rss - n_bytes < GROWTH_BYTES
        assert ok(client.post("/v1/completions", json=body))["choices"] == before
        assert [card["id"] for card in ok(client.get("/v1/tasks"))["data"]] == ["victim"]
