"""Bodies and headers that lie, never end or stall. The server answers in time, with a 4xx, and keeps its memory."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from pydantic import ValidationError

from onebasis.api.schemas import ChatBody, CompletionBody
from onebasis.core.errors import ServeError
from tests.api.server import RunningServer, ok, refused, wait_until
from tests.api.test_errors import CODES
from tests.api.tiny_model import BASE_NAME
from tests.attacks.raw_http import head, read_answer

GIB = 1024**3
CAP = 1024 * 1024
ROUTES = [("PUT", "/v1/tasks/huge"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_10_gib_announced_are_refused_before_they_are_sent(server, method, path):
    with server.raw() as connection:
        started_s = time.monotonic()
        connection.sendall(head(method, path, f"Content-Length: {10 * GIB}", "Expect: 100-continue"))
        status, data = read_answer(connection)
        assert time.monotonic() - started_s < 2, "it waited for the body"
    assert status == 413, data
    assert b'"code":"body_too_large"' in data
    assert b"100 Continue" not in data
    assert b"connection: close" in data.lower()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_chunked_body_without_end_is_refused_at_the_cap(server, method, path):
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    process = psutil.Process()
    before = process.memory_info().rss
    n_sent = 0
    with server.raw() as connection:
        connection.sendall(head(method, path, "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while n_sent < 64 * CAP:
                connection.sendall(chunk)
                n_sent += 65536
        status, data = read_answer(connection)
    assert n_sent < 64 * CAP, "the server went on reading"
    assert process.memory_info().rss - before < 16 * CAP
    assert status in (413, 0), data  # 0: the reset overtook the answer
    server.wait_until_idle()


def test_a_chunked_body_just_over_the_cap_is_told_so(server):
    with server.raw() as connection:
        connection.sendall(head("PUT", "/v1/tasks/huge", "Transfer-Encoding: chunked"))
        connection.sendall(b"%x\r\n" % (CAP + 1) + b" " * (CAP + 1) + b"\r\n")
        status, data = read_answer(connection)
    assert (status, b'"code":"body_too_large"' in data) == (413, True)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_who_sends_everything_before_reading_is_told_too(server, method, path):
    """As a gateway does, which would otherwise see its connection reset and tell of that."""
    body = b" " * (8 * CAP)
    with server.raw() as connection:
        connection.sendall(head(method, path, f"Content-Length: {len(body)}") + body)
        status, data = read_answer(connection)
    assert (status, b'"code":"body_too_large"' in data) == (413, True)


def test_uploads_that_stall_block_nobody(server, tiny):
    """More of them than the pool has threads."""
    data = tiny.core_file(5)
    stalled = [server.raw() for _ in range(60)]
    try:
        for i, connection in enumerate(stalled):
            connection.sendall(head("PUT", f"/v1/tasks/slow-{i}", f"Content-Length: {len(data)}") + data[:100])
        started_s = time.monotonic()
        ok(server.put_task("quick", data))
        assert server.complete(model="quick")["onebasis"]["task"] == "quick"
        assert server.client.get("/health").status_code == 200
        assert time.monotonic() - started_s < 5
        refused(server.client.get("/v1/tasks/slow-0"), 404, "task_not_found")
        stalled[0].sendall(data[100:])
        stalled[0].settimeout(1)
        assert read_answer(stalled[0])[0] == 201, "patience is rewarded"
    finally:
        for connection in stalled:
            connection.close()
    refused(server.client.get("/v1/tasks/slow-1"), 404, "task_not_found")


def test_a_stream_that_nobody_reads_slows_nobody(server: RunningServer):
    """The reader's window fills; its tokens wait in its own connection."""
    alone = server.text(BASE_NAME, max_tokens=30)
    body = f'{{"model": "{BASE_NAME}", "prompt": "a", "stream": true, "max_tokens": 1900, "ignore_eos": true}}'.encode()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(server.raw())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head("POST", "/v1/completions", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: server.parts.engine.snapshot().n_running == 3, "the streams did not start")
        started_s = time.monotonic()
        assert server.text(BASE_NAME, max_tokens=30) == alone
        assert time.monotonic() - started_s < 5
    server.wait_until_idle()


def filled(item: object) -> list[object]:
    """As many of them as fit a body."""
    return [item] * ((CAP - 200) // (len(json.dumps(item, separators=(",", ":"))) + 1))


NAMES = {f"{i:06}": 1 for i in range((CAP - 200) // 11)}
USER = {"role": "user"}
LARGEST = [
    *({"prompt": filled(item)} for item in (1, -1, "", [], [-1], {}, 1.5)),
    *({"messages": filled(item)} for item in (1, {}, USER, USER | {"content": ""})),
    *({"messages": [USER | {"content": filled(item)}]} for item in (1, {}, {"type": "text", "text": "a"})),
    {"messages": [USER | NAMES]},
    {"prompt": "a" * (CAP - 200)},
    {"prompt": "a", "model": "a" * (CAP - 200)},
    {"prompt": "a", "logit_bias": NAMES},
    {"prompt": "a", "stop": filled("a")},
    {"prompt": "a", "stop_token_ids": filled(-1)},
    {"prompt": "a", "stream": True, "stream_options": NAMES},
    {"prompt": "a"} | NAMES,
]


def test_the_largest_bodies_of_every_kind_are_answered_in_time(server):
    """Meanwhile the server stays alive."""
    bodies = [json.dumps({"model": BASE_NAME} | part, separators=(",", ":")).encode() for part in LARGEST]
    bodies.append(b'{"prompt": ' + b"[" * (CAP - 200))
    assert all(0.9 * CAP < len(body) <= CAP for body in bodies)
    waits_s = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            started_s = time.monotonic()
            assert server.client.get("/health/live").status_code == 200
            waits_s.append(time.monotonic() - started_s)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            for body in bodies:
                path = "/v1/chat/completions" if b'"messages"' in body else "/v1/completions"
                response = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
                error = response.json()["error"]
                refused(response, CODES[error["code"]], error["code"], error["param"])
                assert error["code"] == "model_not_found" or len(error["message"]) < 1000, "all of it is sent back"
        finally:
            done.set()
        watcher.result()
    assert max(waits_s) < 5.0


def test_a_million_mistakes_make_few_complaints():
    """Each costs time and memory on the event loop, and only the first is told."""
    for part in LARGEST:
        schema = ChatBody if "messages" in part else CompletionBody
        try:
            schema.model_validate({"model": BASE_NAME} | part)
        except ValidationError as error:
            assert error.error_count() <= 8, str(part)[:80]
        except ServeError:
            pass
