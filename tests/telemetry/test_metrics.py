import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from onebasis.core.request import FinishReason
from onebasis.telemetry.buckets import one_two_five
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig, EngineSnapshot, RegistrySnapshot, RequestReport, StepReport


def names(table):
    return table.split()


GAUGES = names("""
vllm:num_requests_waiting vllm:num_requests_running vllm:kv_cache_usage_perc vllm:gpu_cache_usage_perc
vllm:cache_config_info vllm:lora_requests_info vllm:num_gpu_loaded_lora_adapters
vllm:num_cpu_loaded_lora_adapters vllm:max_gpu_lora_adapters vllm:num_requests_swapped vllm:cpu_cache_usage_perc
onebasis_task_registry_entries onebasis_task_registry_bytes onebasis_task_registry_age_seconds onebasis_draining
onebasis_residual_resident_bytes onebasis_build_info
""")
COUNTERS = names("""
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:request_success_total vllm:num_preemptions_total
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:gpu_prefix_cache_queries_total
vllm:gpu_prefix_cache_hits_total vllm:prompt_tokens_cached_total
""")
HISTOGRAMS = names("""
vllm:lora_adapter_load_seconds vllm:time_to_first_token_seconds vllm:inter_token_latency_seconds
vllm:time_per_output_token_seconds vllm:request_time_per_output_token_seconds vllm:e2e_request_latency_seconds
vllm:request_queue_time_seconds vllm:request_prefill_time_seconds vllm:request_decode_time_seconds
vllm:request_inference_time_seconds vllm:request_prompt_tokens vllm:request_generation_tokens
vllm:request_max_num_generation_tokens vllm:request_params_n vllm:request_params_max_tokens
vllm:iteration_tokens_total onebasis_task_upload_seconds onebasis_task_swap_seconds onebasis_step_seconds
onebasis_distinct_tasks_per_step
""")
EMPTY_UNTIL_SEEN = names("""
vllm:lora_adapter_loaded onebasis_task_requests_total onebasis_task_upload_total onebasis_http_requests_total
onebasis_fairness_debt onebasis_reconstruct_apply_seconds
""")
OF_THE_PROCESS = names("""
process_start_time_seconds process_cpu_seconds_total process_resident_memory_bytes process_virtual_memory_bytes
process_open_fds process_max_fds
""")
PHASES = ("queue", "prefill", "decode", "inference")
COMMON = {"model_name": "tiny", "engine": "0"}
REPORT = RequestReport(
    finish=FinishReason.STOP,
    n_prompt=30,
    n_output=5,
    max_tokens=64,
    n=2,
    task="sql",
    arrived_s=100.0,
    scheduled_s=101.0,
    first_token_s=103.0,
    finished_s=107.0,
)


class Server:
    """The two snapshots, to be changed between scrapes, and the metrics that read them."""

    def __init__(self):
        self.engine = EngineSnapshot(0, 0, 0.0, {}, (), 0, 8)
        self.registry = RegistrySnapshot(0, 0, 0)
        self.now = 1_790_000_000.5
        self.metrics = Metrics(
            model_name="tiny",
            version="1.2.3",
            basis="sha256:" + "ab" * 32,
            base_fingerprint="sha256:" + "cd" * 32,
            cache=CacheConfig(block_size=16, n_blocks=77, dtype="bfloat16"),
            max_model_len=4096,
            engine=lambda: self.engine,
            registry=lambda: self.registry,
            unix_time=lambda: self.now,
        )

    def text(self):
        return self.metrics.render()[0].decode()

    def samples(self, name):
        """[(labels, value)] of the series of that exact name."""
        families = text_string_to_metric_families(self.text())
        return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]

    def value(self, name, **labels):
        """The one value whose labels include these."""
        [found] = [v for have, v in self.samples(name) if labels.items() <= have.items()]
        return found


@pytest.fixture
def server():
    return Server()


def test_exactly_these_names_are_there_from_the_start_and_zero_where_they_count(server):
    declared = [line.split()[2] for line in server.text().splitlines() if line.startswith("# TYPE")]
    assert sorted(declared) == sorted([*GAUGES, *COUNTERS, *HISTOGRAMS, *EMPTY_UNTIL_SEEN, *OF_THE_PROCESS])
    for name in OF_THE_PROCESS:
        assert server.value(name) > 0, name
    for name in GAUGES:
        assert server.samples(name), name
    for name in [*COUNTERS, *(f"{name}_count" for name in HISTOGRAMS)]:
        assert {v for _, v in server.samples(name)} == {0}, name


TTFT_S = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
GAP_S = "0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
LATENCY_S = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
TOKENS = "1 2 5 10 20 50 100 200 500 1000 2000"  # of max_model_len 4096
EDGES = {
    "vllm:time_to_first_token_seconds": TTFT_S,
    "vllm:inter_token_latency_seconds": GAP_S,
    "vllm:time_per_output_token_seconds": GAP_S,
    "vllm:request_time_per_output_token_seconds": GAP_S,
    **dict.fromkeys((f"vllm:request_{phase}_time_seconds" for phase in PHASES), LATENCY_S),
    "vllm:e2e_request_latency_seconds": LATENCY_S,
    "vllm:request_prompt_tokens": TOKENS,
    "vllm:request_generation_tokens": TOKENS,
    "vllm:request_max_num_generation_tokens": TOKENS,
    "vllm:request_params_max_tokens": TOKENS,
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
}
"""What stock dashboards and recording rules expect. Edges may be added, as the first three of GAP_S were."""
LABELS = {
    "vllm:cache_config_info": "block_size num_gpu_blocks cache_dtype enable_prefix_caching",
    "vllm:lora_requests_info": "max_lora running_lora_adapters waiting_lora_adapters",
    "vllm:lora_adapter_loaded": "adapter_name level pinned rank",
    "vllm:lora_adapter_load_seconds_count": "transition",
    "vllm:request_success_total": "finished_reason",
    "onebasis_task_requests_total": "task outcome",
    "onebasis_task_registry_entries": "state",
    "onebasis_fairness_debt": "tenant",
    "onebasis_reconstruct_apply_seconds_count": "path",
    "onebasis_task_upload_total": "result",
    "onebasis_http_requests_total": "route method status",
    "onebasis_build_info": "version basis_sha256 base_sha256",
}


def used(server):
    """Something of everything that comes with use only."""
    server.engine = EngineSnapshot(1, 1, 0.1, {"sql": 16}, (), 1, 8, debts_by_tenant={"acme": 3})
    server.metrics.observe_finished(REPORT)
    server.metrics.observe_upload("created", 0.1)
    server.metrics.observe_http(route="/health", method="GET", status=200)
    server.metrics.observe_reconstruct_apply("native", 0.01)
    return server


def test_each_name_has_its_type(server):
    types = dict.fromkeys(GAUGES, "gauge") | dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(HISTOGRAMS, "histogram")
    declared = dict(line.split()[2:] for line in server.text().splitlines() if line.startswith("# TYPE"))
    assert {name: declared.get(name) for name in types} == types


@pytest.mark.parametrize("name", EDGES)
def test_each_histogram_has_its_edges(server, name):
    found = [float(labels["le"]) for labels, _ in server.samples(f"{name}_bucket")]
    expected = [float(edge) for edge in EDGES[name].split()]
    assert found == [*expected, float("inf")]


def test_labels_are_those_of_the_table_and_no_others(server):
    for family in text_string_to_metric_families(used(server).text()):
        for sample in family.samples:
            common = COMMON.keys() if sample.name.startswith("vllm:") else set()
            base = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            expected = LABELS.get(sample.name) or LABELS.get(f"{base}_count") or ""
            assert sample.labels.keys() - {"le"} == common | set(expected.split()), sample.name


def test_the_content_type_is_that_of_the_text_format(server):
    assert server.metrics.render()[1].startswith("text/plain; version=")


def test_every_vllm_series_says_model_and_engine_and_ours_do_not(server):
    server.engine = EngineSnapshot(1, 1, 0.1, {"sql": 16}, (), 1, 8)
    server.metrics.observe_finished(REPORT)
    for family in text_string_to_metric_families(server.text()):
        for s in family.samples:
            assert (COMMON.items() <= s.labels.items()) == s.name.startswith("vllm:"), s


def test_the_constant_infos(server):
    config = {"block_size": "16", "num_gpu_blocks": "77", "cache_dtype": "bfloat16"}
    expected = {**COMMON, **config, "enable_prefix_caching": "False"}
    assert server.samples("vllm:cache_config_info") == [(expected, 1)]
    assert server.samples("onebasis_build_info") == [
        ({"version": "1.2.3", "basis_sha256": "ab" * 32, "base_sha256": "cd" * 32}, 1)
    ]


def test_gauges_follow_the_snapshots_of_the_moment(server):
    server.text()
    server.engine = EngineSnapshot(3, 2, 0.25, {"b": 16, "a": 8}, ("c",), 5, 8, residual_bytes=300)
    server.registry = RegistrySnapshot(40, 2, 4096)
    expected = {
        "vllm:num_requests_waiting": 3,
        "vllm:num_requests_running": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:gpu_cache_usage_perc": 0.25,
        "vllm:num_gpu_loaded_lora_adapters": 5,
        "vllm:num_cpu_loaded_lora_adapters": 40,
        "vllm:max_gpu_lora_adapters": 8,
        "onebasis_task_registry_bytes": 4096,
        "onebasis_residual_resident_bytes": 300,
    }
    assert {name: server.value(name) for name in expected} == expected
    assert server.value("onebasis_task_registry_entries", state="registered") == 40
    assert server.value("onebasis_task_registry_entries", state="retired") == 2
    assert server.value("onebasis_task_registry_entries", state="active") == 2


def test_one_live_series_tells_which_tasks_run_and_wait(server):
    for running, waiting in [({}, ()), ({"b": 16, "a": 8}, ("c",)), ({"d": 4}, ("a", "a"))]:
        server.engine = EngineSnapshot(0, 0, 0.0, running, waiting, 0, 8)
        server.now += 1
        [(labels, value)] = server.samples("vllm:lora_requests_info")
        assert value == server.now
        assert labels == {
            **COMMON,
            "max_lora": "8",
            "running_lora_adapters": ",".join(sorted(running)),
            "waiting_lora_adapters": ",".join(sorted(set(waiting))),
        }
        loaded = server.samples("vllm:lora_adapter_loaded")
        assert [(have["adapter_name"], have["level"], have["rank"], v) for have, v in loaded] == [
            (task, "gpu", str(rank), 1) for task, rank in sorted(running.items())
        ]


def test_debts_are_those_of_the_tenants_furthest_behind(server):
    server.engine = EngineSnapshot(9, 0, 0.0, {}, (), 0, 8, debts_by_tenant={None: 40, "acme": 7, "initech": 0})
    assert server.samples("onebasis_fairness_debt") == [
        ({"tenant": "__none__"}, 40),
        ({"tenant": "acme"}, 7),
        ({"tenant": "initech"}, 0),
    ]
    server.engine = dataclasses.replace(server.engine, debts_by_tenant={f"tenant-{i}": i for i in range(1000)})
    assert [value for _, value in server.samples("onebasis_fairness_debt")] == list(range(999, 979, -1))


def test_a_forward_pass_with_tasks_counts_under_its_path(server):
    for path, seconds in (("native", 0.004), ("native", 0.012), ("torch", 0.5)):
        server.metrics.observe_reconstruct_apply(path, seconds)
    assert server.value("onebasis_reconstruct_apply_seconds_count", path="native") == 2
    assert server.value("onebasis_reconstruct_apply_seconds_sum", path="native") == pytest.approx(0.016)
    assert server.value("onebasis_reconstruct_apply_seconds_bucket", path="native", le="0.005") == 1
    assert server.value("onebasis_reconstruct_apply_seconds_count", path="torch") == 1


def test_a_long_queue_does_not_make_a_long_label(server):
    server.engine = EngineSnapshot(5000, 0, 0.0, {}, tuple(f"t{i}" for i in range(5000)), 0, 8)
    [(labels, _)] = server.samples("vllm:lora_requests_info")
    assert len(labels["waiting_lora_adapters"].split(",")) == 100


def test_a_step_is_counted(server):
    server.metrics.observe_step(StepReport(n_tokens=100, n_distinct_tasks=3, duration_s=0.02, n_preempted=2))
    server.metrics.observe_step(StepReport(n_tokens=7, n_distinct_tasks=1, duration_s=0.01, n_preempted=0))
    assert server.value("vllm:iteration_tokens_total_sum") == 107
    assert server.value("vllm:num_preemptions_total") == 2
    assert server.value("onebasis_step_seconds_sum") == pytest.approx(0.03)
    assert server.value("onebasis_distinct_tasks_per_step_sum") == 4
    assert server.value("onebasis_distinct_tasks_per_step_bucket", le="1.0") == 1


def test_a_finished_request_is_counted_with_all_its_phases(server):
    server.metrics.observe_finished(REPORT)
    sums = {
        "vllm:e2e_request_latency_seconds": 7,
        "vllm:request_queue_time_seconds": 1,
        "vllm:request_prefill_time_seconds": 2,
        "vllm:request_decode_time_seconds": 4,
        "vllm:request_inference_time_seconds": 6,
        "vllm:request_time_per_output_token_seconds": 1,
        "vllm:request_prompt_tokens": 30,
        "vllm:request_generation_tokens": 5,
        "vllm:request_max_num_generation_tokens": 5,
        "vllm:request_params_max_tokens": 64,
        "vllm:request_params_n": 2,
    }
    assert {name: server.value(f"{name}_sum") for name in sums} == sums
    assert {server.value(f"{name}_count") for name in sums} == {1}
    assert server.value("vllm:prompt_tokens_total") == 30
    assert server.value("vllm:generation_tokens_total") == 5
    success = {have["finished_reason"]: v for have, v in server.samples("vllm:request_success_total")}
    assert success == {"stop": 1, "length": 0, "abort": 0, "error": 0}
    assert server.samples("onebasis_task_requests_total") == [({"task": "sql", "outcome": "stop"}, 1)]


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ({"scheduled_s": None, "first_token_s": None, "n_output": 0}, {"e2e_request_latency"}),
        (
            {"first_token_s": None, "n_output": 0},
            {"e2e_request_latency", "request_queue_time", "request_inference_time"},
        ),
        (
            {"n_output": 1},
            {
                *("e2e_request_latency", "request_queue_time", "request_inference_time"),
                *("request_prefill_time", "request_decode_time"),
            },
        ),
    ],
)
def test_a_phase_that_was_not_reached_is_not_observed(server, change, reached):
    server.metrics.observe_finished(dataclasses.replace(REPORT, finish=FinishReason.ABORT, **change))
    phases = {"e2e_request_latency", "request_time_per_output_token"}
    phases |= {f"request_{p}_time" for p in ("queue", "prefill", "decode", "inference")}
    assert {p for p in phases if server.value(f"vllm:{p}_seconds_count")} == reached
    assert server.value("vllm:request_success_total", finished_reason="abort") == 1


def test_tokens_uploads_swaps_http_and_draining(server):
    metrics = server.metrics
    metrics.observe_first_token(0.3)
    metrics.observe_token_gap(0.002)
    for result in ("created", "unchanged", "wrong_basis", "replaced"):
        metrics.observe_upload(result, 0.01)
    metrics.observe_swap(0.0002)
    metrics.observe_http(route="/v1/tasks/{name}", method="PUT", status=201)
    metrics.set_draining(True)
    assert server.value("vllm:time_to_first_token_seconds_sum") == 0.3
    for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        assert server.value(f"{name}_sum") == 0.002
        assert server.value(f"{name}_bucket", le="0.001") == 0
        assert server.value(f"{name}_bucket", le="0.0025") == 1
    assert server.value("onebasis_task_upload_total", result="wrong_basis") == 1
    assert server.value("onebasis_task_upload_seconds_count") == 4
    assert server.value("onebasis_task_swap_seconds_sum") == 0.0002
    assert server.value("vllm:lora_adapter_load_seconds_count", transition="load") == 2
    assert server.value("vllm:lora_adapter_load_seconds_count", transition="activate") == 1
    labels = {"route": "/v1/tasks/{name}", "method": "PUT", "status": "201"}
    assert server.samples("onebasis_http_requests_total") == [(labels, 1)]
    assert server.value("onebasis_draining") == 1
    metrics.set_draining(False)
    assert server.value("onebasis_draining") == 0


def test_the_task_label_is_bounded_and_loses_no_request(server):
    for i in range(130):
        for _ in range(2):
            server.metrics.observe_finished(dataclasses.replace(REPORT, task=f"t{i}"))
    for _ in range(5):
        server.metrics.observe_finished(dataclasses.replace(REPORT, task=None))
    found = {have["task"]: v for have, v in server.samples("onebasis_task_requests_total")}
    assert found == {**{f"t{i}": 2 for i in range(100)}, "__other__": 60, "__base__": 5}


def test_a_scrape_does_not_grow_with_the_registry(server):
    n_lines = set()
    for n_registered in (10, 10_000):
        server.registry = RegistrySnapshot(n_registered, 1, 4096 * n_registered)
        n_lines.add(server.text().count("\n"))
    assert len(n_lines) == 1


def test_two_servers_in_one_process_share_nothing():
    one, other = Server(), Server()
    one.metrics.observe_first_token(1.0)
    assert other.value("vllm:time_to_first_token_seconds_count") == 0
    assert not [f.name for f in REGISTRY.collect() if f.name.startswith(("vllm:", "onebasis"))]


def test_observing_while_others_render_loses_nothing(server):
    with ThreadPoolExecutor(2) as pool:
        scrapes = [pool.submit(server.text) for _ in range(30)]
        for i in range(300):
            server.metrics.observe_finished(dataclasses.replace(REPORT, task=f"t{i % 20}"))
    assert all(scrape.result() for scrape in scrapes)
    assert sum(v for _, v in server.samples("onebasis_task_requests_total")) == 300


@pytest.mark.parametrize(
    ("largest", "edges"),
    [(0, (1,)), (1, (1,)), (7, (1, 2, 5)), (100, (1, 2, 5, 10, 20, 50, 100)), (499, (1, 2, 5, 10, 20, 50, 100, 200))],
)
def test_the_edges_of_counts(largest, edges):
    assert one_two_five(largest) == edges


def test_the_page_on_operations_explains_every_metric_of_our_own():
    page = (Path(__file__).parents[2] / "server" / "docs" / "operations.md").read_text()
    explained = re.findall(r"^\| `(onebasis_\w+)(?:\{[\w,]+\})?` \|", page, flags=re.MULTILINE)
    registered = re.findall(r"^# TYPE (onebasis_\w+)", Server().text(), flags=re.MULTILINE)
    assert len(registered) > 10
    assert sorted(explained) == sorted(registered)
