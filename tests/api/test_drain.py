"""SIGTERM to a real server process with open streams: no stream is truncated without a word, and it exits with 0."""

import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from onebasis.demo.server_process import ServerProcess
from tests.api.server import refused, wait_until
from tests.api.tiny_model import BASE_NAME, TinyModel

pytestmark = pytest.mark.native_only(
    "processes of their own, which take half a minute to start; tests/vllm/test_serve.py has one"
)

LONG = {"model": BASE_NAME, "prompt": "the cat", "max_tokens": 1900, "ignore_eos": True, "temperature": 0}
StartProcess = Callable[..., ServerProcess]


@pytest.fixture
def start_process(tiny: TinyModel, tmp_path):
    """Starts `onebasis serve` with options; what still runs after the test is stopped."""
    running: list[ServerProcess] = []

    def start(**options: object) -> ServerProcess:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = {
            "model": tiny.folder,
            "served-model-name": BASE_NAME,
            "store": f"sqlite:///{tmp_path}/tasks.db",
            "dtype": "float32",
            "threads": 1,
            "kv-cache-mib": 8,
        } | options
        flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        running.append(ServerProcess(flags, port=port, log=tmp_path / "log").__enter__())
        return running[-1]

    yield start
    for process in running:
        process.stop()


def read_stream(url: str) -> list[str]:
    """The data of all events; raises if the connection ends before the answer does."""
    with (
        httpx.Client(timeout=60, trust_env=False) as client,
        client.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}) as response,
    ):
        assert response.status_code == 200
        return [line.removeprefix("data: ") for line in response.iter_lines() if line]


def read_whole(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=LONG, timeout=60, trust_env=False)


def get(url: str, path: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", timeout=5, trust_env=False)


def start_requests(pool: ThreadPoolExecutor, url: str, n: int) -> tuple[list[Future[Any]], list[Future[Any]]]:
    """n streams and n whole answers, all running in the engine."""
    streams = [pool.submit(read_stream, url) for _ in range(n)]
    wholes = [pool.submit(read_whole, url) for _ in range(n)]
    running = f'vllm:num_requests_running{{engine="0",model_name="{BASE_NAME}"}} {2 * n}.0'
    wait_until(lambda: running in get(url, "/metrics").text, "the requests did not start")
    return streams, wholes


def test_what_runs_is_finished_and_what_comes_is_refused(start_process: StartProcess):
    server = start_process(**{"drain-s": 60})
    url = server.url
    with ThreadPoolExecutor(6) as pool, httpx.Client(trust_env=False) as kept_alive:
        streams, wholes = start_requests(pool, url, 3)
        assert kept_alive.get(f"{url}/health/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: get(url, "/health/ready").status_code == 503, "still ready")
        response = get(url, "/health/ready")
        refused(response, 503, "draining")
        assert int(response.headers["retry-after"]) >= 1
        assert get(url, "/health/live").status_code == 200
        assert "onebasis_draining 1.0" in get(url, "/metrics").text
        assert get(url, "/v1/models").status_code == 200
        for client in (httpx, kept_alive):
            for method, path in (("POST", "/v1/completions"), ("PUT", "/v1/tasks/a"), ("DELETE", "/v1/tasks/a")):
                response = client.request(method, f"{url}{path}", content=b"{}")
                refused(response, 503, "draining")
                assert int(response.headers["retry-after"]) >= 1
                assert response.headers["connection"] == "close"
                assert response.headers["x-request-id"]
        assert not any(future.done() for future in [*streams, *wholes]), "too short to show anything"
        for stream in streams:
            *_, last, done = stream.result()
            assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        for whole in wholes:
            assert whole.result().json()["usage"]["completion_tokens"] == 1900
        assert server.process.wait(timeout=10) == 0, "with a connection that idles"


def test_what_takes_too_long_is_cut_with_an_error(start_process: StartProcess):
    server = start_process(**{"drain-s": 1})
    with ThreadPoolExecutor(12) as pool:
        streams, wholes = start_requests(pool, server.url, 6)
        server.process.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        for stream in streams:
            events = stream.result()
            assert len(events) > 2
            assert json.loads(events[-2])["error"]["code"] == "draining"
            assert events[-1] == "[DONE]"
        for whole in wholes:
            refused(whole.result(), 503, "draining")
            assert whole.result().headers["retry-after"]
    assert server.process.wait(timeout=10) == 0
    assert 0.9 < time.monotonic() - started_s < 8


def test_a_second_signal_ends_at_once(start_process: StartProcess):
    server = start_process(**{"drain-s": 60})
    with ThreadPoolExecutor(4) as pool:
        streams, _ = start_requests(pool, server.url, 2)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: get(server.url, "/health/ready").status_code == 503, "still ready")
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert [json.loads(stream.result()[-2])["error"]["code"] for stream in streams] == ["draining"] * 2
    assert server.process.wait(timeout=10) == 1
    assert time.monotonic() - started_s < 5


def test_for_the_shutdown_delay_it_is_not_ready_and_serves_on(start_process: StartProcess):
    server = start_process(**{"shutdown-delay-s": 2, "drain-s": 60})
    url, short = server.url, {"model": BASE_NAME, "prompt": "the cat", "max_tokens": 2}
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as kept_alive:
        assert "connection" not in kept_alive.post("/v1/completions", json=short).headers
        server.process.send_signal(signal.SIGTERM)
        signalled_s = time.monotonic()
        wait_until(lambda: get(url, "/health/ready").status_code == 503, "still ready")
        assert time.monotonic() - signalled_s < 1, "it says so at once"
        n_served = 0
        while (response := kept_alive.post("/v1/completions", json=short)).status_code == 200:
            assert response.headers["connection"] == "close", "the client shall go elsewhere"
            n_served += 1
            time.sleep(0.05)
            if time.monotonic() - signalled_s > 1.5:
                break
        assert n_served > 3
    assert server.process.wait(timeout=10) == 0
    assert time.monotonic() - signalled_s > 2


def test_bytes_that_are_no_http_get_the_envelope(server):
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET / HTTX/1.1", b"GET / HTTP/1.1\r\nHost x"):
        with server.raw() as connection:
            connection.sendall(garbage + b"\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"application/json" in head
        assert json.loads(body)["error"]["code"] == "invalid_request"
