"""Many clients at once: bounded queue, answers that do not depend on the neighbours, an event loop that stays free."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api.server import TASKS, StepGate, ok, refused, wait_until
from tests.api.tiny_model import BASE_NAME, N_VOCAB

MODELS = (BASE_NAME, *TASKS)


def test_a_full_queue_is_429_with_retry_after(start_server, gate: StepGate):
    server = start_server(max_running=1, max_waiting=2)
    alone = server.text(BASE_NAME)
    with ThreadPoolExecutor(3) as pool:
        with gate.shut():
            accepted = [pool.submit(server.complete) for _ in range(3)]
            wait_until(lambda: _n_in_flight(server) == 3, "three requests were not accepted")
            for path, body in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": _USER})):
                for stream in (False, True):
                    response = server.post(f"/v1/{path}", stream=stream, **body)
                    refused(response, 429, "queue_full")
                    assert response.json()["error"]["type"] == "rate_limit_error"
                    assert int(response.headers["retry-after"]) >= 1
            assert server.client.get("/health/ready").status_code == 200
            assert server.client.get("/v1/models").status_code == 200
        assert [future.result()["choices"][0]["text"] for future in accepted] == [alone] * 3
    assert server.text(BASE_NAME) == alone, "there is room again"


_USER = [{"role": "user", "content": "the cat"}]


def _n_in_flight(server):
    state = server.parts.engine.snapshot()
    return state.n_waiting + state.n_running


def test_all_choices_of_a_request_are_taken_or_none(start_server, gate: StepGate):
    server = start_server(max_running=1, max_waiting=2)
    with ThreadPoolExecutor(1) as pool:
        with gate.shut():
            running = pool.submit(server.complete)
            gate.wait_for_a_step()
            refused(server.post("/v1/completions", prompt="a", n=3), 429, "queue_full")
            state = server.parts.engine.snapshot()
            assert (state.n_running, state.n_waiting) == (1, 0)
        running.result()


def mixed_requests(n: int) -> list[tuple[bool, str, dict]]:
    """(streamed, path, body): every model, both routes, prompts of many lengths, greedy and sampled."""
    rng = random.Random(0)
    requests = []
    for i in range(n):
        body = {"model": MODELS[i % len(MODELS)], "max_tokens": rng.randint(40, 96), "temperature": 0}
        if i % 3 == 1:
            body |= {"temperature": 0.7, "seed": i, "top_p": 0.9}
        if i % 5 == 4:
            body |= {"messages": [{"role": "user", "content": "the cat sat " * rng.randint(1, 30)}]}
        else:
            body |= {"prompt": [rng.randrange(5, N_VOCAB) for _ in range(rng.randint(1, 60))]}
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        requests.append((i % 2 == 0, path, body))
    return requests


def n_in_flight(server):
    state = server.parts.engine.snapshot()
    return state.n_running + state.n_waiting


def answer(server, streamed, path, body):
    """(text, finish reason, digest) however the answer comes."""
    if not streamed:
        content = ok(server.post(path, **({"ignore_eos": True} | body)))
        (choice,) = content["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        return text, choice["finish_reason"], content["onebasis"]["digest"]
    chunks = server.stream(path, **body)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices)
    return text, choices[-1]["finish_reason"], chunks[0]["onebasis"]["digest"]


def test_60_mixed_requests_at_once_are_answered_as_each_alone(server, start_server, gate: StepGate, tiny):
    """On a second server whose cache and batch are too small for them, so that they queue and preempt each other."""
    tight = start_server(kv_cache_mib=1, max_running=60)
    for seed, name in enumerate(TASKS):
        ok(tight.put_task(name, tiny.core_file(seed)))
    requests = mixed_requests(60)
    alone = [answer(server, *request) for request in requests]
    with ThreadPoolExecutor(60) as pool:
        with gate.shut():
            futures = [pool.submit(answer, tight, *request) for request in requests]
            wait_until(lambda: n_in_flight(tight) == 60, "they did not all arrive")
        together = [future.result() for future in futures]
    assert together == alone
    assert len({digest for _, _, digest in together}) == 4
    assert tight.metric("vllm:num_preemptions_total") > 0, "the cache was to be too small"
    tight.wait_until_idle()


def test_registering_while_serving_disturbs_nobody(server, tiny):
    alone = {model: server.text(model, max_tokens=40) for model in MODELS}
    stop = threading.Event()

    def register() -> int:
        n = 0
        while not stop.is_set():
            ok(server.put_task(f"noise-{n % 5}", tiny.core_file(100 + n)))
            n += 1
        return n

    with ThreadPoolExecutor(9) as pool:
        writer = pool.submit(register)
        together = list(pool.map(lambda i: (MODELS[i % 4], server.text(MODELS[i % 4], max_tokens=40)), range(40)))
        stop.set()
        assert writer.result() > 5
    assert together == [(model, alone[model]) for model, _ in together]


def test_health_and_lists_answer_while_a_step_is_under_way(server, gate: StepGate):
    with ThreadPoolExecutor(1) as pool:
        with gate.shut():
            running = pool.submit(server.complete)
            gate.wait_for_a_step()
            for path in ("/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/tasks"):
                assert server.client.get(path).status_code == 200
        running.result()


def test_health_answers_quickly_while_long_prompts_are_processed(server):
    prompts = [[7 + i] * 2000 for i in range(6)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.complete, prompt=prompts, max_tokens=1)
        waits_s = []
        while not running.done():
            started_s = time.monotonic()
            assert server.client.get("/health/live").status_code == 200
            waits_s.append(time.monotonic() - started_s)
        running.result()
    assert len(waits_s) >= 5
    assert max(waits_s) < 1.0


def test_liveness_does_not_wait_for_threads_that_are_stuck(server, tiny, monkeypatch):
    """Uploads that hang in the store take every thread of the pool; the process must still not be killed for it."""
    unstick = threading.Event()
    registry = server.parts.app.state.services.registry
    register = registry.register

    def stuck(*args, **kwargs):
        unstick.wait(timeout=30)
        return register(*args, **kwargs)

    monkeypatch.setattr(registry, "register", stuck)
    with ThreadPoolExecutor(45) as pool:
        uploads = [pool.submit(server.put_task, "stuck", tiny.core_file(0)) for _ in range(45)]
        try:
            time.sleep(0.3)
            with server.new_client() as client:
                for path in ("/health/live", "/health/ready", "/health"):
                    assert client.get(path, timeout=5).status_code == 200
        finally:
            unstick.set()
        assert {upload.result().status_code for upload in uploads} <= {200, 201}


@pytest.mark.parametrize("streamed", [False, True])
def test_when_the_engine_stops_every_request_gets_its_ending(start_server, gate: StepGate, streamed):
    server = start_server()
    body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True}
    stopper = threading.Thread(target=server.parts.engine.stop)
    with ThreadPoolExecutor(1) as pool:
        with gate.shut():
            send = server.stream if streamed else server.post
            running = pool.submit(send, "/v1/completions", **body)
            gate.wait_for_a_step()
            stopper.start()
        stopper.join()
        if streamed:
            assert running.result()[-1]["error"]["code"] == "engine_stopped"
        else:
            refused(running.result(), 503, "engine_stopped")
    for path in ("/health", "/health/live", "/health/ready"):
        response = server.client.get(path, timeout=5)
        refused(response, 503, "engine_stopped")
        assert int(response.headers["retry-after"]) >= 1
    refused(server.post("/v1/completions", prompt="a"), 503, "engine_stopped")
    assert server.client.get("/metrics").status_code == 200
