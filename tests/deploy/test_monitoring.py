"""Alerts and dashboards: they are right by promtool, and ask for nothing that a server does not tell."""

import json
import re
from collections import defaultdict

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.programs import DEPLOY, output_of
from tests.deploy.promql import Selector, selectors
from tests.deploy.rendering import VALUES, chart, one

MONITORING = DEPLOY / "monitoring"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}
RULES = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
ADDED_BY_PROMETHEUS = {"job", "instance", "namespace", "service", "pod"}

# What vLLM's own Grafana board asks for (examples/observability/prometheus_grafana/grafana.json).
VLLM_BOARD = [
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:inter_token_latency_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_count",
    "vllm:time_to_first_token_seconds_sum",
]
# What the endpoint picker of llm-d and the Gateway API inference extension scrapes from engines of type vllm.
ENDPOINT_PICKER = {
    "vllm:num_requests_waiting": set(),
    "vllm:num_requests_running": set(),
    "vllm:kv_cache_usage_perc": set(),
    "vllm:cache_config_info": {"block_size", "num_gpu_blocks"},
    "vllm:lora_requests_info": {"max_lora", "running_lora_adapters", "waiting_lora_adapters"},
    "vllm:num_gpu_loaded_lora_adapters": set(),
    "vllm:num_cpu_loaded_lora_adapters": set(),
    "vllm:max_gpu_lora_adapters": set(),
}


@pytest.fixture(scope="module")
def scrape(running_server):
    """Names of samples and the labels seen with each; a family without samples yet has its name alone."""
    found = defaultdict(set)
    for family in text_string_to_metric_families(running_server.client.get("/metrics").text):
        found[family.name + ("_total" if family.type == "counter" else "")] |= set()
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


def test_rules_are_well_formed():
    output_of("promtool", "check", "rules", "--lint=all", "--lint-fatal", MONITORING / "alerts.yaml")


def test_alerts_fire_when_they_should_and_only_then():
    output_of("promtool", "test", "rules", "alerts_test.yaml", cwd=MONITORING)


def test_every_alert_has_a_test_in_which_it_fires():
    text = (MONITORING / "alerts_test.yaml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', text)) == ALERTS.keys()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_how_bad_it_is_and_where_to_read_on(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "deploy/README.md"
    assert anchor in anchors((DEPLOY / "README.md").read_text())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_a_server_tells(rule, scrape):
    for selector in selectors(rule["expr"]):
        if selector.metric != "up" and selector.metric not in RECORDED:
            assert_told(selector, scrape)


@pytest.mark.parametrize(("board", "panel", "expression"), [
    (name, panel["title"], target["expr"])
    for name, board in DASHBOARDS.items() for panel in board["panels"] for target in panel.get("targets", [])
])  # fmt: skip
def test_dashboards_ask_for_what_a_server_tells(board, panel, expression, scrape):
    found = selectors(expression)
    assert found
    for selector in found:
        assert_told(selector, scrape)
        assert {"namespace", "job"} <= selector.labels, "a board shows the release that is chosen"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_hold_for_each_release_on_its_own(rule):
    """Two namespaces may have a release of the same name, such as staging and production."""
    for grouping in re.findall(r"by \(([^)]*)\)", rule["expr"]):
        assert {"namespace", "job"} <= set(grouping.split(", "))


def test_answers_are_counted_without_probes_and_scrapes():
    targets = [t for board in DASHBOARDS.values() for panel in board["panels"] for t in panel.get("targets", [])]
    expressions = [rule["expr"] for rule in RULES] + [target["expr"] for target in targets]
    counted = [s for expression in expressions for s in selectors(expression) if s.metric.startswith("onebasis_http")]
    assert len(counted) > 15
    assert [selector for selector in counted if "route" not in selector.labels] == []


def test_dashboards_can_be_provisioned():
    assert DASHBOARDS.keys() == {"operators", "tasks"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    for board in DASHBOARDS.values():
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource"
        assert variables["namespace"]["definition"] == "label_values(onebasis_build_info, namespace)"
        of_namespace = 'label_values(onebasis_build_info{namespace=~"$namespace"}, job)'
        assert variables["job"]["definition"] == variables["job"]["query"]["query"] == of_namespace
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(places)) == len(places), "panels lie on each other"


@pytest.mark.parametrize(
    "metric",
    [
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:num_gpu_loaded_lora_adapters",
        "onebasis_http_requests_total",
    ],
)
def test_operators_see_traffic_latency_queue_cache_and_arena(metric):
    assert metric in metrics_of(DASHBOARDS["operators"])


def test_tenants_see_their_tasks():
    assert {"onebasis_task_requests_total", "onebasis_fairness_debt"} <= metrics_of(DASHBOARDS["tasks"])


def test_vllms_own_board_finds_all_its_metrics(scrape):
    assert [name for name in VLLM_BOARD if name not in scrape] == []
    assert {"model_name"} <= scrape["vllm:e2e_request_latency_seconds_bucket"]
    assert {"finished_reason"} <= scrape["vllm:request_success_total"]


@pytest.mark.parametrize(("name", "labels"), ENDPOINT_PICKER.items())
def test_the_endpoint_picker_finds_its_metrics(name, labels, scrape):
    assert name in scrape
    assert labels <= scrape[name]


def test_autoscaling_asks_for_what_a_server_tells(scrape):
    trigger = one(chart(VALUES / "everything.yaml"), "ScaledObject")["spec"]["triggers"][0]
    (selector,) = selectors(trigger["metadata"]["query"])
    assert_told(selector, scrape)


def test_the_chart_brings_rules_and_dashboards():
    manifests = chart(VALUES / "everything.yaml")
    carried = one(manifests, "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in carried for rule in group["rules"]]
    assert [rule["expr"] for rule in rules] == [rule["expr"] for rule in RULES]
    urls = [rule["annotations"]["runbook_url"] for rule in rules if "alert" in rule]
    assert {url.partition("#")[0] for url in urls} == {"https://wiki.example/onebasis"}
    boards = one(manifests, "ConfigMap", "onebasis-dashboards")
    assert {name: json.loads(text) for name, text in boards["data"].items()} == {
        f"{name}.json": board for name, board in DASHBOARDS.items()
    }


def test_the_first_token_objective_is_an_edge_of_the_histogram(running_server):
    """A share can be counted at an edge only."""
    (edge,) = set(re.findall(r'le="([\d.]+)"', (MONITORING / "alerts.yaml").read_text()))
    assert running_server.metric("vllm:time_to_first_token_seconds_bucket", le=edge) >= 0


def assert_told(selector: Selector, scrape):
    assert selector.metric in scrape, f"no server tells {selector.metric}"
    unknown = selector.labels - scrape[selector.metric] - ADDED_BY_PROMETHEUS
    assert not unknown, f"{selector.metric} has no label {unknown}"


def metrics_of(board):
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    return {selector.metric for target in targets for selector in selectors(target["expr"])}


def anchors(markdown):
    """As GitHub makes them from headings."""
    titles = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
