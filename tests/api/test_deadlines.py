"""`timeout` in the body, and the server's own limit of time."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from onebasis.core.request import FinishReason
from tests.api.server import StepGate, ok, refused

LONG = {"prompt": "the cat", "max_tokens": 2000, "ignore_eos": True}


def test_a_whole_answer_that_is_late_is_504_and_says_not_to_retry(server):
    response = server.post("/v1/completions", timeout=0.05, **LONG)
    message = refused(response, 504, "deadline_exceeded")
    assert "0.05 s" in message
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_a_stream_that_is_late_ends_with_an_error_event(server):
    chunks = server.stream("/v1/completions", timeout=0.1, **LONG)
    assert chunks[-1]["error"]["code"] == "deadline_exceeded"
    assert all("error" not in chunk for chunk in chunks[:-1])


def test_a_request_that_waits_too_long_is_late_as_well(start_server, gate: StepGate):
    server = start_server(max_running=1)
    with ThreadPoolExecutor(2) as pool:
        with gate.shut():
            running = pool.submit(server.complete)
            gate.wait_for_a_step()
            waiting = pool.submit(server.post, "/v1/completions", prompt="a", timeout=0.01)
            while not server.parts.engine.snapshot().n_waiting:
                pass
        assert running.result()["choices"][0]["finish_reason"] == FinishReason.LENGTH
        refused(waiting.result(), 504, "deadline_exceeded")
    server.wait_until_idle()


def test_the_server_s_own_time_holds_where_the_request_names_none(start_server):
    server = start_server(default_timeout_s=0.05, max_timeout_s=30)
    refused(server.post("/v1/completions", **LONG), 504, "deadline_exceeded")
    assert ok(server.post("/v1/completions", prompt="a", timeout=30))["choices"]
    assert "allows 30 s" in refused(
        server.post("/v1/completions", prompt="a", timeout=31), 400, "invalid_parameter", "timeout"
    )


@pytest.mark.parametrize("found", [0, -1, "5", True, float("inf")])
def test_a_time_that_is_none_is_refused(server, found):
    body = json.dumps({"model": "tiny-llama", "prompt": "a", "timeout": found})
    response = server.client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_parameter", "invalid_json")
