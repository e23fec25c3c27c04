"""A real server for tests: built by the wiring, run by uvicorn on a loopback port, spoken to over TCP."""

import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from onebasis.api.http_server import HttpServer
from onebasis.core.config import ServeConfig
from onebasis.wiring import Server, build_server
from tests.api.tiny_model import BASE_NAME, TinyModel

TASKS = ("alpha", "beta", "gamma")
ERROR_TYPES = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
)
Events = list[dict[str, Any]]


class RunningServer:
    """One server with a client that is connected to it. `close` it."""

    def __init__(self, model: TinyModel, **settings: Any) -> None:
        self.model = model
        defaults: dict[str, Any] = {
            "model": model.folder,
            "basis": model.basis_path,
            "store": f"sqlite:///{model.folder / uuid.uuid4().hex}.db",
            "served_model_name": BASE_NAME,
            "dtype": "float32",
            "kv_cache_mib": 8,
            "arena_mib": 1,
            "max_body_bytes": 1024 * 1024,
        }
        self.config = ServeConfig(**(defaults | dict(model.settings) | settings))
        self.parts: Server = build_server(self.config)
        # named TCP, or asyncio leaves Nagle's algorithm on and every first token waits 40 ms for an ACK
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        parts = self.parts
        self._uvicorn = HttpServer(
            parts.app,
            parts.drain,
            parts.engine,
            host="127.0.0.1",
            port=self.port,
            receive_timeout_s=self.config.receive_timeout_s,
            shutdown_delay_s=0,
            drain_s=2,
            max_header_bytes=64 * 1024,
        )
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        self.client = self.new_client()
        wait_until(lambda: self._uvicorn.started, "uvicorn did not start")

    def close(self) -> None:
        self.client.close()
        self._uvicorn.should_exit = True
        self._thread.join(timeout=20)
        self.parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def new_client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def put_task(self, name: str, data: bytes, **headers: str) -> httpx.Response:
        """Upload a file; header names are spelt with underscores."""
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.client.put(f"/v1/tasks/{name}", content=data, headers=fields)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json={"model": BASE_NAME} | body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A completion that must succeed; greedy, and not ended by the end-of-sequence token, unless told."""
        return ok(self.post("/v1/completions", **(_QUIET | {"prompt": "the cat"} | body)))

    def chat(self, **body: Any) -> dict[str, Any]:
        """The same of a chat."""
        messages = [{"role": "user", "content": "the cat"}]
        return ok(self.post("/v1/chat/completions", **(_QUIET | {"messages": messages} | body)))

    def text(self, model: str, **body: Any) -> str:
        """The greedy answer of a task or the base."""
        text: str = self.complete(model=model, **body)["choices"][0]["text"]
        return text

    def stream(self, path: str, **body: Any) -> Events:
        """All events of a stream that must end with [DONE]."""
        with self.open_stream(path, **body) as response:
            return list(events(response))

    @contextmanager
    def open_stream(self, path: str, **body: Any) -> Iterator[httpx.Response]:
        content = {"model": BASE_NAME, "stream": True} | _QUIET | body
        with self.client.stream("POST", path, json=content) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield response

    def raw(self) -> socket.socket:
        """A bare connection, for what httpx would not send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of a scrape; the labels given must match, and name one series."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name} {labels} names {len(found)} series"
        return found[0] if found else 0.0

    def is_idle(self) -> bool:
        """Nothing runs or waits, and the KV cache is empty."""
        state = self.parts.engine.snapshot()
        return state.n_running == state.n_waiting == 0 and state.kv_usage == 0

    def wait_until_idle(self) -> None:
        wait_until(self.is_idle, "requests or blocks of the KV cache were left behind")


class StepGate:
    """Stands before every step of every engine in the process. Open at first; a shut one lets none through."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self._n_permits = 0
        self._n_standing = 0

    def pass_through(self) -> None:
        with self._changed:
            self._n_standing += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_open or self._n_permits > 0)
            self._n_standing -= 1
            if not self._is_open:
                self._n_permits -= 1

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Shut for the block."""
        with self._changed:
            self._is_open, self._n_permits = False, 0
        try:
            yield
        finally:
            with self._changed:
                self._is_open = True
                self._changed.notify_all()

    def wait_for_a_step(self) -> None:
        """Until a planned step stands before the shut gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._n_standing > 0 and self._n_permits == 0, timeout=10)

    def let_a_step_pass(self) -> None:
        with self._changed:
            self._n_permits += 1
            self._changed.notify_all()

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch, step: Callable[..., Any]) -> Self:
        """`step` is the method that every step of the engine goes through."""
        gate = cls()

        def gated(*args: Any) -> Any:
            gate.pass_through()
            return step(*args)

        replace_step(monkeypatch, step, gated)
        return gate


def replace_step(monkeypatch: pytest.MonkeyPatch, step: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Have the engine call something else where it calls its method `step`."""
    owner = getattr(sys.modules[step.__module__], step.__qualname__.partition(".")[0])
    monkeypatch.setattr(owner, step.__name__, replacement)


_QUIET = {"temperature": 0, "ignore_eos": True, "max_tokens": 8}


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event; the stream must end with [DONE] and hold nothing else."""
    lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert line.startswith("data: {")
        yield json.loads(line.removeprefix("data: "))


def ok(response: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer that must be a success."""
    assert response.is_success, response.text
    content: dict[str, Any] = response.json()
    return content


def refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """Check the one envelope that every failure has; its message."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    assert body["error"]["type"] in ERROR_TYPES
    message: str = body["error"]["message"]
    assert message
    assert "Traceback" not in message
    return message


def wait_until(condition: Callable[[], bool], complaint: str, timeout_s: float = 10.0) -> None:
    """Poll for a condition that another thread brings about."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, complaint
        time.sleep(0.005)
