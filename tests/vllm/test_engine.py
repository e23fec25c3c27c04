"""What only an engine of several processes can suffer, and what vLLM refuses, seen from HTTP."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from onebasis.core.residual import Residual
from tests.api.server import ok, refused, wait_until
from tests.api.tiny_model import MAX_POSITIONS

LONG = {"prompt": "the cat", "max_tokens": 1900, "ignore_eos": True}


def vllm_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if "VLLM" in child.name()}


@pytest.mark.parametrize("name", ["VLLM::EngineCore", "VLLM::Worker"])
def test_when_a_process_of_vllm_is_killed_everybody_is_answered_and_live_is_red(server, start_server, name):
    before = vllm_processes()
    other = start_server(max_model_len=1999)  # settings that nobody shares
    (victim,) = [process for process in vllm_processes() - before if process.name() == name]
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(other.stream, "/v1/completions", **LONG)
        whole = pool.submit(other.post, "/v1/completions", **LONG)
        wait_until(lambda: other.metric("vllm:num_requests_running") == 2, "the requests did not start")
        victim.kill()
        assert stream.result(timeout=30)[-1]["error"]["code"] == "engine_stopped"
        assert "a process of vLLM has ended" in refused(whole.result(timeout=30), 503, "engine_stopped")
    for path in ("/health", "/health/live", "/health/ready"):
        refused(other.client.get(path), 503, "engine_stopped")
    refused(other.post("/v1/completions", prompt="a"), 503, "engine_stopped")
    assert other.metric("vllm:request_success_total", finished_reason="error") == 2
    assert server.text("alpha"), "another server's vLLM is not affected"


def test_tasks_that_are_copied_into_the_workers_are_counted(start_server, tiny):
    server = start_server(max_model_len=1998)  # settings that nobody shares
    for name in ("a", "b"):
        ok(server.put_task(name, tiny.core_file(0)))
    assert server.metric("vllm:num_gpu_loaded_lora_adapters") == 0
    for name in ("a", "b", "a"):
        server.complete(model=name)
    assert server.metric("vllm:num_gpu_loaded_lora_adapters") == 1, "the same coefficients under two names"
    assert server.metric("onebasis_task_swap_seconds_count") == 1


def test_what_vllm_can_not_honour_is_refused_by_name(server):
    message = refused(
        server.post("/v1/completions", prompt="a", temperature=3), 400, "invalid_parameter", "temperature"
    )
    assert "vLLM engine takes 0, or 0.01 to 2" in message
    grammar = {"choice": ["yes", "no"]}
    response = server.post("/v1/completions", prompt="a", logprobs=1, structured_outputs=grammar)
    refused(response, 400, "unsupported_parameter", "logprobs")


def test_a_seed_and_a_prompt_of_several_steps_give_one_answer(server):
    """The seed is the request's own: neither its prompt's steps nor its neighbours change what it draws."""
    body = {"prompt": [7, 8, 9] * 500, "temperature": 1.0, "seed": 3, "max_tokens": 12}
    alone = server.complete(**body)["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda seed: server.complete(**(body | {"seed": seed}))["choices"][0]["text"], [3, 4, 5, 3])
        first, second, third, fourth = answers
    assert first == fourth == alone
    assert len({first, second, third}) == 3


def test_a_prompt_that_fills_the_context_can_not_be_scored(server):
    """vLLM always makes one token more."""
    body = {"prompt": [7] * MAX_POSITIONS, "max_tokens": 0, "echo": True}
    message = refused(server.post("/v1/completions", **body), 400, "context_length_exceeded", "prompt")
    assert f"you requested {MAX_POSITIONS + 1} tokens" in message
    assert server.complete(**(body | {"prompt": [7] * (MAX_POSITIONS - 1)}))["choices"]


def test_no_more_run_than_the_server_allows(start_server):
    server = start_server(max_running=2, max_waiting=3)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(server.complete, max_tokens=300) for _ in range(5)]
        wait_until(lambda: server.metric("vllm:num_requests_waiting") == 3, "nobody waits")
        assert server.metric("vllm:num_requests_running") == 2
        texts = {answer.result()["choices"][0]["text"] for answer in answers}
    assert len(texts) == 1, "the same prompt, the same answer"
    server.wait_until_idle()


def test_a_task_with_a_residual_is_refused_at_its_registration(server, tiny):
    numbers = np.ones((1, 64), dtype=np.float16)
    residual = {"model.layers.0.mlp.gate_proj": Residual(numbers, np.ones((96, 1), dtype=np.float16))}
    message = refused(server.put_task("private", tiny.core_file(0, residual=residual)), 400, "residual_rank_too_high")
    assert "0" in message
