"""Every log line of a request says whose it is."""

import io
import json
import logging

import pytest

from onebasis.telemetry.logs import JsonFormatter
from onebasis.telemetry.request_context import note, request_context, request_fields
from tests.api.server import refused, replace_step, wait_until


@pytest.fixture
def lines():
    """Calls give the JSON lines that were written since."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("INFO")
    yield lambda: [entry for entry in map(json.loads, text.getvalue().splitlines()) if "httpx" not in entry["logger"]]
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("streamed", [False, True])
def test_all_lines_of_a_generation_name_request_task_and_digest(server, lines, streamed):
    body = {"model": "beta", "prompt": "the cat", "max_tokens": 3, "stream": streamed, "user": "u1"}
    headers = {"X-Request-Id": "r-7", "x-llm-d-inference-fairness-id": "team-a", "x-llm-d-inference-objective": "fast"}
    assert server.client.post("/v1/completions", json=body, headers=headers).is_success
    digest = server.client.get("/v1/tasks/beta").json()["digest"]
    generate, access = [entry for entry in lines() if entry.get("request_id") == "r-7"]
    for entry in (generate, access):
        assert (entry["task"], entry["digest"]) == ("beta", digest)
        assert (entry["fairness_id"], entry["objective"]) == ("team-a", "fast")
        assert entry["generation"].startswith("cmpl-")
    assert (generate["message"], generate["user"]) == ("generate", "u1")
    assert access["message"] == "POST /v1/completions 200"


def test_the_line_of_a_stream_s_error_names_its_request(server, lines, monkeypatch, step):
    def fail(*_):
        raise RuntimeError("out of luck")

    replace_step(monkeypatch, step, fail)
    headers = {"X-Request-Id": "r-8"}
    body = {"model": "alpha", "prompt": "a", "stream": True}
    assert "internal" in server.client.post("/v1/completions", json=body, headers=headers).text
    [warning] = [entry for entry in lines() if entry["level"] == "WARNING"]
    assert (warning["request_id"], warning["task"]) == ("r-8", "alpha")
    assert "out of luck" in warning["exception"]


def test_requests_do_not_inherit_from_each_other_on_one_connection(server, lines):
    server.complete(model="alpha")
    refused(server.client.get("/v1/tasks/nobody"), 404, "task_not_found")

    def of_the_second():
        return [line for line in lines() if line["message"] == "GET /v1/tasks/nobody 404"]

    wait_until(lambda: of_the_second() != [], "the line of the second request did not come")
    assert "task" not in of_the_second()[0]


def test_values_that_would_not_be_plain_are_left_out(server, lines):
    for value in ("x" * 200, "tab\there"):
        server.client.get("/v1/models", headers={"x-llm-d-inference-fairness-id": value})
    wait_until(lambda: len(lines()) == 2, "the lines of the requests did not come")
    assert all("fairness_id" not in entry for entry in lines())


def test_probes_and_scrapes_leave_no_line_as_long_as_all_is_well(server, lines):
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert server.client.get(path).status_code == 200
    server.client.post("/health/ready")
    wait_until(lambda: lines() != [], "the line of what is not well did not come")
    assert [entry["message"] for entry in lines()] == ["POST /health/ready 405"]


def test_outside_of_a_request_nothing_is_known_or_kept():
    note(task="lost")
    assert request_fields() == {}
    with request_context(request_id="r"):
        note(task="t", tenant=None)
        assert request_fields() == {"request_id": "r", "task": "t"}
    assert request_fields() == {}
