"""A completions server small enough to read, with the faults a load test must notice."""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # loadtests is a folder, not an installed package

from loadtests.common import limits
from loadtests.common.subject import Subject
from onebasis.coefficients.basis_file import BasisSpec
from tests.api.server import RunningServer
from tests.api.tiny_model import TinyModel, save_tiny_model

TASKS = [f"task-{number:03}" for number in range(250)]


@dataclass
class FakeServer:
    """fault: "", or what it does wrong."""

    fault: str = ""
    first_s: float = 0.0
    gap_s: float = 0.0
    one_at_a_time: bool = False
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()
        lock = asyncio.Lock()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "sql", "parent": "tiny"}, {"id": "tiny"}]}

        @app.get("/v1/tasks")
        async def tasks(limit: int, after: str | None = None) -> dict[str, Any]:
            start = TASKS.index(after) + 1 if after else 0
            page = TASKS[start : start + limit]
            data = [{"id": name} for name in page]
            return {"object": "list", "data": data, "has_more": page[-1] != TASKS[-1], "last_id": page[-1]}

        @app.put("/v1/tasks/{name}")
        async def put_task(name: str) -> Response:
            return Response("no coefficients", status_code=400)

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.seen.append(body)
            if self.fault == "status":
                return Response("no room", status_code=503)
            return StreamingResponse(guarded(body), media_type="text/event-stream")

        async def guarded(body: dict[str, Any]) -> AsyncIterator[str]:
            if self.one_at_a_time:
                await lock.acquire()
            try:
                async for event in self._events(body):
                    yield event
            finally:
                if self.one_at_a_time:
                    lock.release()

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        n_tokens = body["max_tokens"] - (self.fault == "a token short")
        n_prompt = len(body["prompt"]) + (self.fault == "a prompt token more")
        await asyncio.sleep(self.first_s)
        for i in range(n_tokens):
            if i:
                await asyncio.sleep(self.gap_s)
            text = "" if i % 3 == 2 else "né"
            choice = {"index": 0, "text": text, "finish_reason": "length" if i == n_tokens - 1 else None}
            yield _event({"choices": [choice], "usage": None})
        if self.fault == "error event":
            yield _event({"error": {"message": "out of blocks"}})
        if self.fault == "not a chunk":
            yield "data: [1, 2\n\n"
        if self.fault != "no usage":
            yield _event({"choices": [], "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_tokens}})
        if self.fault != "cut":
            yield "data: [DONE]\n\n"


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload)}\r\n\r\n"


class RunsAlready:
    """Any server of this process in the place of a ServerProcess."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.process = psutil.Process()
        self.is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_stopped = True


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Starts a fake server of the given kind on a free loopback port; all are stopped after the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**kind: Any) -> FakeServer:
        fake = FakeServer(**kind)
        # named TCP, or asyncio leaves Nagle's algorithm on and every first token waits 40 ms for an ACK
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline_s = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline_s, "the fake server did not start"
            time.sleep(0.01)
        return fake

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(timeout=10)


@pytest.fixture
def servers_here(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What benchmarks start are servers of this process; one of its own takes ten seconds, and other tests start it."""
    with ExitStack() as stack:

        def server(_subject: Subject, _folder: Path, *, more: tuple[str, ...] = ()) -> RunsAlready:
            assert not more, "options are for a process"
            here = stack.enter_context(RunningServer(tiny_model, served_model_name="base"))
            return RunsAlready(f"http://127.0.0.1:{here.port}")

        monkeypatch.setattr(Subject, "server", server)
        yield


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limit is measured with products that take no time: the number is worth nothing, the rest stands."""
    monkeypatch.setattr(limits, "_SIZE", 64)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_subject(tiny_model: TinyModel) -> tuple[Subject, BasisSpec]:
    """A tiny model, its basis and two tasks, as files; and what the basis holds."""
    folder = tiny_model.folder
    files = [folder / f"{seed}.coef.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(files):
        path.write_bytes(tiny_model.core_file(seed, scale=0.3))
    return Subject(folder, tiny_model.basis_path, tuple(files)), tiny_model.basis


def subject_options(subject: Subject) -> list[str]:
    """The command line that names it."""
    files = map(str, subject.coefficients)
    return ["--model", str(subject.model), "--basis", str(subject.basis), "--coefficients", *files]
