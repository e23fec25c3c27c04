"""A step that hangs: liveness turns red, and nobody waits for it for ever."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.api.server import StepGate, refused, wait_until

LONG = {"prompt": "the cat", "max_tokens": 500, "ignore_eos": True}


def test_when_a_step_hangs_everybody_is_answered_and_live_is_red(start_server, gate: StepGate):
    server = start_server(stall_s=1, max_running=2)
    with ThreadPoolExecutor(4) as pool:
        with gate.shut():
            streams = [pool.submit(server.stream, "/v1/completions", **LONG) for _ in range(2)]
            wholes = [pool.submit(server.post, "/v1/completions", **LONG) for _ in range(2)]
            gate.wait_for_a_step()
            gate.let_a_step_pass()
            assert server.client.get("/health/live").status_code == 200
            for stream in streams:
                assert stream.result(timeout=10)[-1]["error"]["code"] == "engine_stopped"
            for whole in wholes:
                assert "no step has ended for 1 s" in refused(whole.result(timeout=10), 503, "engine_stopped")
            for path in ("/health/live", "/health/ready", "/health"):
                refused(server.client.get(path), 503, "engine_stopped")
            refused(server.post("/v1/completions", prompt="a"), 503, "engine_stopped")
            assert server.client.get("/v1/tasks").status_code == 200
            assert server.metric("vllm:request_success_total", finished_reason="error") == 4
        wait_until(server.is_idle, "the step that returned did not tidy up")
        assert server.metric("vllm:request_success_total", finished_reason="error") == 4, "ended twice"
    refused(server.client.get("/health/live"), 503, "engine_stopped")


def test_a_server_without_work_stays_live(start_server):
    server = start_server(stall_s=1)
    time.sleep(1.5)
    assert server.client.get("/health/live").status_code == 200
    assert server.complete()["choices"]
