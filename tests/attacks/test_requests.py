"""Hostile HTTP on a bare socket: each is refused with the envelope, or closed where it is no HTTP."""

import json
import re

import pytest

from tests.api.server import ok, refused
from tests.api.tiny_model import BASE_NAME
from tests.attacks.hostile_http import CLOSED, hostile_requests
from tests.attacks.raw_http import error_of, exchange, head, read_answer


@pytest.fixture(autouse=True)
def untouched(server, caplog):
    """Nothing was stored, the tasks answer as before, and nobody has to read of a bug in the log."""
    before = server.text("alpha")
    yield
    refused(server.client.get("/v1/tasks/liar"), 404, "task_not_found")
    assert server.text("alpha") == before
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("request_", list(hostile_requests()), ids=str)
def test_a_hostile_request_is_refused_by_its_code(server, request_):
    with server.raw() as connection:
        connection.settimeout(5)
        status, data = exchange(connection, request_.data)
    found = error_of(data)["code"] if status else CLOSED
    assert found in request_.codes, data[:500]
    assert b"owned" not in data.partition(b"\r\n\r\n")[0], "a header of the attacker's"


LOOK_ALIKES = ("\u0430lpha", "\uff41lpha", "alpha\u0301", "alp\u200bha", "ALPHA", " alpha", "alpha\x00", "alpha\r\n")


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_model_that_looks_like_another_is_not_that_one(server, name):
    """Names are compared as they are: no normal form makes two of them one."""
    refused(server.post("/v1/completions", model=name, prompt="a"), 404, "model_not_found", "model")
    blend = [{"task": name, "weight": 1.0}]
    refused(server.post("/v1/completions", model=BASE_NAME, prompt="a", blend=blend), 404, "model_not_found", "blend")


def test_metadata_with_line_breaks_stays_in_the_body(server, tiny):
    """JSON can say them, headers can't: what is stored comes back in JSON alone."""
    note = {"a\r\nSet-Cookie: owned=1": "\r\n\r\n<script>\x00"}
    header = json.dumps(note)
    response = server.put_task("noted", tiny.core_file(9), OneBasis_Metadata=header)
    try:
        assert ok(response)["metadata"] == note
        assert "owned" not in str(response.headers)
        shown = server.client.get("/v1/tasks/noted")
        assert ok(shown)["metadata"] == note
        assert shown.headers["content-type"] == "application/json"
    finally:
        server.client.delete("/v1/tasks/noted")


def test_an_echoed_id_never_makes_a_header(server):
    with server.raw() as connection:
        request = head("GET", "/health", "X-Request-Id: a%0d%0aSet-Cookie: owned=1")
        _, data = exchange(connection, request)
    assert re.findall(rb"(?im)^x-request-id: (.*)\r$", data) == [b"a%0d%0aSet-Cookie: owned=1"]
    assert not re.search(rb"(?im)^set-cookie:", data)


def test_pipelined_requests_are_answered_each_and_in_order(server):
    """A refused one between good ones neither swallows its neighbours nor takes their answers."""
    paths = ["/health", "/v1/tasks/nobody", "/v1/tasks/alpha", "/nowhere"] * 10
    requests = [head("GET", path, f"X-Request-Id: {i}") for i, path in enumerate(paths)]
    with server.raw() as connection:
        connection.sendall(b"".join(requests[:-1]) + head("GET", paths[-1], "X-Request-Id: 39", "Connection: close"))
        _, data = read_answer(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"404", b"200", b"404"] * 10
    assert re.findall(rb"(?i)x-request-id: (\d+)", data) == [b"%d" % i for i in range(40)]


def test_a_body_can_not_smuggle_a_second_request(server):
    """Whatever follows an ambiguous length is not taken for a request of its own."""
    inner = head("DELETE", "/v1/tasks/alpha")
    for fields in (
        ("Content-Length: 0", f"Content-Length: {len(inner)}"),
        (f"Content-Length: {len(inner)}", "Transfer-Encoding: xchunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    ):
        with server.raw() as connection:
            connection.sendall(head("PUT", "/v1/tasks/liar", *fields) + inner)
            status, data = read_answer(connection)
        assert (status, len(re.findall(rb"HTTP/1.1 \d", data))) == (400, 1), data
    assert server.client.get("/v1/tasks/alpha").status_code == 200
