"""GET /metrics of a running server: the names that gateways and dashboards ask for, and numbers that move."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.server import StepGate, ok
from tests.api.tiny_model import BASE_NAME, EOS_ID

GAUGES = [
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "vllm:num_gpu_loaded_lora_adapters",
    "vllm:num_cpu_loaded_lora_adapters",
    "vllm:max_gpu_lora_adapters",
    "vllm:num_requests_swapped",
    "vllm:cpu_cache_usage_perc",
    "onebasis_task_registry_entries",
    "onebasis_task_registry_bytes",
    "onebasis_draining",
    "onebasis_build_info",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
]
COUNTERS = [
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:num_preemptions",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:gpu_prefix_cache_queries",
    "vllm:gpu_prefix_cache_hits",
    "vllm:prompt_tokens_cached",
    "onebasis_task_requests",
    "onebasis_task_upload",
    "onebasis_http_requests",
]
HISTOGRAMS = [
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:iteration_tokens_total",
    "vllm:lora_adapter_load_seconds",
    "onebasis_task_upload_seconds",
    "onebasis_task_swap_seconds",
    "onebasis_step_seconds",
    "onebasis_distinct_tasks_per_step",
]


def families(server):
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_every_name_is_there_from_the_start(start_server):
    found = families(start_server())
    kinds = dict.fromkeys(GAUGES, "gauge") | dict.fromkeys(COUNTERS, "counter")
    kinds |= dict.fromkeys(HISTOGRAMS, "histogram")
    assert {name: found[name].type if name in found else None for name in kinds} == kinds
    for name, family in found.items():
        if name.startswith("vllm:"):
            for sample in family.samples:
                assert (sample.labels["model_name"], sample.labels["engine"]) == (BASE_NAME, "0"), name


def test_a_request_moves_the_counters_by_what_it_used(server):
    names = {
        "vllm:prompt_tokens_total": 2 * 3,
        "vllm:generation_tokens_total": 5 * 3,
        "vllm:e2e_request_latency_seconds_count": 3,
        "vllm:time_to_first_token_seconds_count": 3,
        "vllm:inter_token_latency_seconds_count": 4 * 3,
        "vllm:request_params_n_sum": 9,
        "vllm:request_params_max_tokens_sum": 15,
    }
    series = [("vllm:request_success_total", {"finished_reason": "length"}, 3)]
    series += [("onebasis_task_requests_total", {"task": "beta", "outcome": "length"}, 3)]
    route = {"route": "/v1/completions", "method": "POST", "status": "200"}
    series += [("onebasis_http_requests_total", route, 1)]
    before = {name: server.metric(name) for name in names}
    series_before = [server.metric(name, **labels) for name, labels, _ in series]
    server.complete(model="beta", prompt="the cat", n=3, temperature=1.0, max_tokens=5)
    assert {name: server.metric(name) - before[name] for name in names} == names
    found = [server.metric(name, **labels) for name, labels, _ in series]
    assert [b - a for a, b in zip(series_before, found, strict=True)] == [step for *_, step in series]


def test_endings_are_counted_by_reason(server):
    before = server.metric("vllm:request_success_total", finished_reason="stop")
    server.complete(logit_bias={str(EOS_ID): 100}, ignore_eos=False)
    assert server.metric("vllm:request_success_total", finished_reason="stop") == before + 1


def test_uploads_are_counted_by_result(server, tiny):
    results = ("created", "unchanged", "replaced", "not_safetensors", "invalid_task_name", "digest_mismatch")
    before = {result: server.metric("onebasis_task_upload_total", result=result) for result in results}
    server.put_task("counted", tiny.core_file(60))
    server.put_task("counted", tiny.core_file(60))
    server.put_task("counted", tiny.core_file(61))
    server.put_task("counted", b"\x01" * 7 + b"\x00" * 9)
    server.put_task("-", tiny.core_file(60))
    server.put_task("counted", tiny.core_file(60), Content_Digest="sha-256=:" + "A" * 43 + "=:")
    after = {result: server.metric("onebasis_task_upload_total", result=result) for result in results}
    assert {result: after[result] - before[result] for result in results} == dict.fromkeys(results, 1)


@pytest.mark.native_only(
    "servers of the tests share vLLM's table of tasks; tests/vllm/test_engine.py has one of its own"
)
def test_the_registry_is_counted(start_server, tiny):
    server = start_server()
    size = len(tiny.core_file(0))
    for name, seed in (("a", 0), ("b", 1), ("b", 2)):
        ok(server.put_task(name, tiny.core_file(seed)))
    assert server.metric("onebasis_task_registry_entries", state="registered") == 2
    assert server.metric("onebasis_task_registry_entries", state="retired") == 1
    assert server.metric("onebasis_task_registry_bytes") == 2 * size
    assert server.metric("vllm:num_cpu_loaded_lora_adapters") == 2
    assert server.metric("vllm:num_gpu_loaded_lora_adapters") == 0
    server.complete(model="a")
    assert server.metric("vllm:num_gpu_loaded_lora_adapters") == 1
    assert server.metric("onebasis_task_swap_seconds_count") == 1


def test_a_running_and_a_waiting_task_are_named(start_server, tiny, gate: StepGate):
    server = start_server(max_running=1)
    for name in ("busy", "patient"):
        ok(server.put_task(name, tiny.core_file(1)))
    with ThreadPoolExecutor(2) as pool:
        with gate.shut():
            first = pool.submit(server.complete, model="busy")
            gate.wait_for_a_step()
            second = pool.submit(server.complete, model="patient", max_tokens=1)
            gate.let_a_step_pass()
            while not server.parts.engine.snapshot().waiting_tasks:
                gate.wait_for_a_step()
                gate.let_a_step_pass()
            (sample,) = families(server)["vllm:lora_requests_info"].samples
            assert sample.labels["running_lora_adapters"] == "busy"
            assert sample.labels["waiting_lora_adapters"] == "patient"
            assert server.metric("vllm:num_requests_running") == 1
            assert server.metric("vllm:num_requests_waiting") == 1
            assert 0 < server.metric("vllm:kv_cache_usage_perc") < 1
            assert server.metric("vllm:lora_adapter_loaded", adapter_name="busy", level="gpu") == 1
        first.result(), second.result()
    assert families(server)["vllm:lora_requests_info"].samples[0].labels["running_lora_adapters"] == ""


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/v1/tasks/alpha", "/v1/tasks/{name}", 200),
        ("/v1/tasks/alpha/content", "/v1/tasks/{name}/content", 200),
        ("/v1/tasks/nobody", "/v1/tasks/{name}", 404),
        ("/v1/tasks?limit=1", "/v1/tasks", 200),
        ("/v1/tasks?limit=0", "/v1/tasks", 400),
        ("/nope/1", "other", 404),
        ("/health", "/health", 200),
    ],
)
def test_http_is_counted_by_the_pattern_of_the_route(server, path, route, status):
    labels = {"route": route, "method": "GET", "status": str(status)}
    before = server.metric("onebasis_http_requests_total", **labels)
    assert server.client.get(path).status_code == status
    assert server.metric("onebasis_http_requests_total", **labels) == before + 1


def test_labels_do_not_grow_with_what_clients_invent(server):
    for i in range(20):
        server.client.get(f"/invented/{i}")
        server.client.request(f"VERB{i}", "/v1/models")
        server.post("/v1/completions", model=f"invented-{i}", prompt="a")
    text = server.client.get("/metrics").text
    assert "invented" not in text
    assert "VERB" not in text


def test_a_scrape_does_not_grow_with_the_registry(start_server, tiny):
    server = start_server()
    before = len(families(server)), server.client.get("/metrics").text.count("\n")
    for i in range(50):
        ok(server.put_task(f"task-{i}", tiny.core_file(0)))
    after = len(families(server)), server.client.get("/metrics").text.count("\n")
    assert after[0] == before[0]
    assert after[1] - before[1] < 10, "the upload counters' own series"
