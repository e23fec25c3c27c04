"""A client that goes away: its sequences end within one step, and nothing of them stays behind."""

import json

import pytest

from onebasis.engine.interface import Engine
from tests.api.server import RunningServer, StepGate, wait_until
from tests.api.tiny_model import BASE_NAME

LONG = {"max_tokens": 2000, "ignore_eos": True, "temperature": 0}
KINDS = {
    "completion": ("/v1/completions", {"prompt": "the cat"}, 499),
    "completion stream": ("/v1/completions", {"prompt": "the cat", "stream": True}, 200),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 499),
    "chat stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}, 200),
    "batch of choices": ("/v1/completions", {"prompt": ["the cat", "a"], "n": 3, "temperature": 1.0}, 499),
    "batch streamed": ("/v1/completions", {"prompt": ["the cat", "a"], "n": 3, "stream": True}, 200),
}


def send(server: RunningServer, path: str, body: dict):
    """A bare connection on which a request has been sent whole."""
    content = json.dumps({"model": BASE_NAME} | LONG | body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection = server.raw()
    connection.sendall(head.encode() + content)
    return connection


def n_answers(server: RunningServer, path: str, status: int) -> float:
    return server.metric("onebasis_http_requests_total", route=path, method="POST", status=str(status))


def snapshot(server: RunningServer):
    engine: Engine = server.parts.engine
    return engine.snapshot()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=pytest.mark.native_only("the gate holds vLLM's answers one by one") if "batch" in kind else ()
        )
        for kind in KINDS
    ],
)
def test_a_running_request_ends_within_a_step(server, gate: StepGate, kind):
    path, body, status = KINDS[kind]
    answers, aborts = (
        n_answers(server, path, status),
        server.metric("vllm:request_success_total", finished_reason="abort"),
    )
    n_sequences = 6 if "batch" in kind else 1
    with gate.shut():
        connection = send(server, path, body)
        for _ in range(3):
            gate.wait_for_a_step()
            gate.let_a_step_pass()
        gate.wait_for_a_step()
        assert snapshot(server).n_running == n_sequences
        assert snapshot(server).kv_usage > 0
        connection.close()
        wait_until(lambda: n_answers(server, path, status) == answers + 1, "the server did not notice")
        gate.let_a_step_pass()
        wait_until(server.is_idle, "the step under way was not the last")
    assert server.metric("vllm:request_success_total", finished_reason="abort") == aborts + n_sequences


@pytest.mark.parametrize("kind", ["completion", "completion stream"])
def test_a_request_that_still_waits_leaves_the_queue(start_server, gate: StepGate, kind):
    server = start_server(max_running=1, max_waiting=3)
    path, body, status = KINDS[kind]
    with gate.shut():
        running = send(server, path, body)
        gate.wait_for_a_step()
        waiting = send(server, path, body)
        wait_until(lambda: snapshot(server).n_waiting == 1, "the second request did not arrive")
        waiting.close()
        wait_until(lambda: n_answers(server, path, status) == 1, "the server did not notice")
        gate.let_a_step_pass()
        wait_until(lambda: snapshot(server).n_waiting == 0, "the request stayed in the queue")
        assert snapshot(server).n_running == 1
        running.close()
    server.wait_until_idle()
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 2


def test_a_stream_that_is_not_read_is_ended_when_the_client_goes(server):
    connection = send(server, "/v1/completions", {"prompt": "the cat", "stream": True, "n": 4})
    wait_until(lambda: snapshot(server).n_running == 4, "the request did not start")
    connection.close()
    server.wait_until_idle()


def test_a_client_that_leaves_in_mid_upload_is_no_bug(server, caplog):
    uploads = ("PUT", "/v1/tasks/half", "/v1/tasks/{name}"), ("POST", "/v1/completions", "/v1/completions")
    for method, path, route in uploads:
        failed = {"route": route, "method": method, "status": "500"}
        bugs = server.metric("onebasis_http_requests_total", **failed)
        n_before = sum(_http_counts(server))
        with server.raw() as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        wait_until(lambda n=n_before: sum(_http_counts(server)) > n, "the server did not notice")
        assert server.metric("onebasis_http_requests_total", **failed) == bugs
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _http_counts(server):
    lines = server.client.get("/metrics").text.splitlines()
    ours = [line for line in lines if line.startswith("onebasis_http_requests_total{") and "/metrics" not in line]
    return [float(line.rpartition(" ")[2]) for line in ours]


def test_a_stop_string_ends_the_sequence_in_the_engine_too(server):
    whole = server.text("beta", max_tokens=24)
    before = server.metric("vllm:generation_tokens_total")
    answer = server.complete(model="beta", max_tokens=1500, stop=whole[5:8])
    assert answer["choices"][0]["text"] == whole[:5]
    server.wait_until_idle()
    assert server.metric("vllm:generation_tokens_total") - before < 200


@pytest.mark.native_only("it counts on the order of our own scheduler's steps")
def test_a_burst_that_leaves_in_every_phase_leaves_no_block_behind(start_server, gate: StepGate):
    """Waiting, between two chunks of a prompt, decoding; streams and whole answers: all at once, all gone."""
    server = start_server(max_running=8, max_step_tokens=16, max_waiting=100)
    long_prompt = {"prompt": [7] * 40}
    bodies = [body for _, body, _ in KINDS.values() if "n" not in body]
    paths = [path for path, body, _ in KINDS.values() if "n" not in body]
    with gate.shut():
        decoding = [send(server, path, body) for path, body in zip(paths, bodies, strict=True)]
        wait_until(lambda: server.parts.engine._ledger.n_open == 4, "the first requests did not arrive")
        for _ in range(4):
            gate.wait_for_a_step()
            gate.let_a_step_pass()
        gate.wait_for_a_step()  # it is planned before the others come
        prefilling = [send(server, "/v1/completions", {**long_prompt, "stream": bool(i % 2)}) for i in range(4)]
        wait_until(lambda: server.parts.engine._ledger.n_open == 8, "the long prompts did not arrive")
        waiting = [send(server, path, body) for path, body in zip(paths * 4, bodies * 4, strict=True)]
        wait_until(lambda: server.parts.engine._ledger.n_open == 24, "the rest did not arrive")
        for _ in range(3):
            gate.wait_for_a_step()
            gate.let_a_step_pass()
        gate.wait_for_a_step()
        state = snapshot(server)
        assert (state.n_running, state.n_waiting) == (5, 19), "four decode, one has begun its prompt, others wait"
        assert server.metric("vllm:kv_cache_usage_perc") > 0
        for connection in (*decoding, *prefilling, *waiting):
            connection.close()
        wait_until(
            lambda: n_answers(server, "/v1/completions", 200) + n_answers(server, "/v1/completions", 499) == 14,
            "the server did not notice",
        )
        wait_until(lambda: sum(_chat_answers(server)) == 10, "the server did not notice")
        gate.let_a_step_pass()
        wait_until(server.is_idle, "the step under way was not the last")
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 24


def _chat_answers(server):
    return [n_answers(server, "/v1/chat/completions", status) for status in (200, 499)]
