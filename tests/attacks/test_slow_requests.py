"""Slow loris: requests that come a byte at a time, or not at all. None is kept for ever, and none holds up another."""

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.api.server import RunningServer, ok, wait_until
from tests.api.tiny_model import BASE_NAME
from tests.attacks.raw_http import error_of, first_answer, head, read_answer

LIMIT_S = 0.6
JSON = b'{"model": "tiny-llama", "prompt": "a"}'
TIMED_OUT = (408, "request_timeout")


@pytest.fixture(scope="module")
def impatient(tiny) -> Iterator[RunningServer]:
    with RunningServer(tiny, receive_timeout_s=LIMIT_S) as server:
        yield server


def drip(connection: socket.socket, data: bytes) -> tuple[int, bytes, float]:
    """Send a byte now and then until the server answers or closes: (status, what it sent, when, in seconds)."""
    started_s = time.monotonic()
    for i in range(len(data)):
        with contextlib.suppress(OSError):
            connection.sendall(data[i : i + 1])
        if select.select([connection], [], [], 0.05)[0] or time.monotonic() - started_s > 10 * LIMIT_S:
            break
    return *read_answer(connection), time.monotonic() - started_s


SLOW = {
    "a request line": b"GET /" + b"a" * 500,
    "header fields": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 100,
    "a body": None,
    "a chunked body": None,
}


@pytest.mark.parametrize("part", SLOW)
def test_a_request_that_drips_is_ended_with_408(impatient, part):
    with impatient.raw() as connection:
        if part == "a body":
            connection.sendall(head("POST", "/v1/completions", "Content-Length: 500"))
        if part == "a chunked body":
            connection.sendall(head("PUT", "/v1/tasks/drip", "Transfer-Encoding: chunked"))
        status, data, took_s = drip(connection, SLOW[part] or b"1\r\na\r\n" * 100)
    assert (status, error_of(data)["code"]) == TIMED_OUT
    assert b"connection: close" in data.lower()
    assert LIMIT_S * 0.9 < took_s < LIMIT_S + 3


def test_a_connection_that_says_nothing_is_ended(impatient):
    with impatient.raw() as connection:
        status, data = read_answer(connection)
    assert (status, error_of(data)["code"]) == TIMED_OUT


def test_a_body_that_drips_on_after_its_refusal_is_ended_too(impatient):
    """The answer is out before the body is read; what follows must not keep the connection."""
    with impatient.raw() as connection:
        fields = ("Content-Digest: wrong", "Transfer-Encoding: chunked")
        connection.sendall(head("PUT", "/v1/tasks/drip", *fields))
        started_s = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started_s < 10 * LIMIT_S:
                connection.sendall(b"1\r\na\r\n")
                time.sleep(0.05)
    assert LIMIT_S * 0.9 < time.monotonic() - started_s < LIMIT_S + 3


def test_a_second_request_on_a_kept_connection_has_its_own_time(impatient):
    """The limit counts from the first byte of each, not from the start of the connection."""
    request = head("POST", "/v1/completions", f"Content-Length: {len(JSON)}") + JSON
    with impatient.raw() as connection:
        for _ in range(3):
            connection.sendall(request)
            assert first_answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(LIMIT_S * 0.6)
        status, data, _ = drip(connection, request[:60])
    assert (status, error_of(data)["code"]) == TIMED_OUT


def test_an_answer_may_take_longer_than_its_request(impatient):
    body = {"model": BASE_NAME, "prompt": "a", "ignore_eos": True, "max_tokens": 1500, "stream": True}
    started_s = time.monotonic()
    with impatient.client.stream("POST", "/v1/completions", json=body) as response:
        last = list(response.iter_lines())[-2]
    assert time.monotonic() - started_s > LIMIT_S
    assert last == "data: [DONE]"


def test_many_slow_ones_hold_up_nobody_and_leave_nothing(impatient, tiny):
    server = impatient._uvicorn.server_state
    wait_until(lambda: len(server.connections) <= 1, "connections of the tests before")
    slow = [impatient.raw() for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(head("PUT", "/v1/tasks/slow", "Content-Length: 5000")[:-10])
        started_s = time.monotonic()
        with impatient.new_client() as client:
            ok(client.put("/v1/tasks/quick", content=tiny.core_file(5)))
        assert time.monotonic() - started_s < 5
        wait_until(lambda: len(server.connections) <= 1, "slow connections are kept")
    finally:
        for connection in slow:
            connection.close()
