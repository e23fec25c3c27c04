"""How the picker reads a page of metrics, and which replica it takes. Nothing is started here."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from picker import replicas as watched
from picker.load import Load, NotOurs, parse_load
from picker.replicas import Replicas
from picker.scores import affinity, ranked
from picker.service import Picker, task_of

from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig, EngineSnapshot, RegistrySnapshot


@pytest.fixture
def page() -> str:
    """Of the server's own metrics."""
    engine = EngineSnapshot(
        n_waiting=3,
        n_running=2,
        kv_usage=0.25,
        running_tasks={"plural": 16, "sql": 16},
        waiting_tasks=("sql",),
        n_resident_tasks=2,
        max_resident_tasks=64,
    )
    registry = RegistrySnapshot(5, 1, 10)
    metrics = Metrics(
        model_name="base",
        version="1",
        basis="sha256:1",
        base_fingerprint="sha256:2",
        cache=CacheConfig(block_size=16, n_blocks=8, dtype="float32", prefix_caching=True),
        max_model_len=128,
        engine=lambda: engine,
        registry=lambda: registry,
    )
    return metrics.render()[0].decode()


def test_the_server_s_own_page_is_understood(page):
    assert parse_load(page) == Load(3, 2, 0.25, frozenset({"plural", "sql"}), frozenset({"sql"}), 64)


def test_of_several_lists_of_tasks_the_newest_counts(page):
    [line] = [line for line in page.splitlines() if line.startswith("vllm:lora_requests_info{")]
    labels, _, value = line.rpartition(" ")
    older = labels.replace("plural,sql", "gone") + f" {float(value) - 5}"
    assert parse_load(f"{older}\n{page}") == parse_load(f"{page}\n{older}") == parse_load(page)


@pytest.mark.parametrize("name", ["vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:lora_requests_info"])
def test_a_page_without_a_metric_is_not_taken_for_an_idle_replica(page, name):
    with pytest.raises(NotOurs, match=name):
        parse_load("\n".join(line for line in page.splitlines() if not line.startswith(f"{name}{{")))


def test_a_page_with_a_number_that_can_not_be_is_refused(page):
    (line,) = [line for line in page.splitlines() if line.startswith("vllm:num_requests_waiting{")]
    for value in ("+Inf", "NaN", "many"):
        with pytest.raises(NotOurs):
            parse_load(page.replace(line, f"{line.rpartition(' ')[0]} {value}"))


def test_a_task_prefers_where_it_is_at_work_then_where_there_is_room():
    full = Load(running_tasks=frozenset({"a", "b"}), waiting_tasks=frozenset({"c"}), max_tasks=3)
    assert [affinity(full, task) for task in ("a", "c", "d")] == [1.0, 0.6, 0.0]
    assert affinity(Load(max_tasks=4), "d") == 0.8


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Load(n_waiting=1), Load(n_waiting=2)),
        (Load(n_running=1), Load(n_running=2)),
        (Load(kv_usage=0.2), Load(kv_usage=0.3)),
        (Load(running_tasks=frozenset({"sql"}), max_tasks=8), Load(max_tasks=8)),
        (Load(n_running=1, max_tasks=8), Load(n_running=2, running_tasks=frozenset({"sql"}), max_tasks=8)),
        (Load(n_waiting=0, kv_usage=0.9), Load(n_waiting=9, kv_usage=0.0)),
    ],
)
def test_the_better_replica_comes_first(better, worse):
    for loads in ({"x": better, "y": worse}, {"y": worse, "x": better}):
        assert {tuple(ranked(loads, "sql", random.Random(seed))) for seed in range(20)} == {("x", "y")}


def test_equals_share_the_requests():
    loads = {name: Load(max_tasks=8) for name in "xyz"}
    first = [ranked(loads, "sql", random.Random(seed))[0] for seed in range(300)]
    assert all(70 < first.count(name) < 130 for name in "xyz")


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (b'{"model": "sql"}', "sql"),
        (b'{"model": "sql@sha256:12"}', "sql"),
        (b'{"model": 3}', None),
        (b'{"prompt": "x"}', None),
        (b"[1]", None),
        (b"\xff{", None),
        (b"[" * 200_000, None),
        (b"", None),
    ],
)
def test_the_task_is_read_from_the_body(body, task):
    assert task_of(body) == task


class Known:
    """Replicas that were looked at."""

    def __init__(self, loads: dict[str, Load]) -> None:
        self.loads = loads
        self.taken: list[str] = []

    def ready(self) -> dict[str, Load]:
        return self.loads

    def picked(self, endpoint: str) -> None:
        self.taken.append(endpoint)


def exchange(known: Known, *messages: ext_proc.ProcessingRequest) -> list[ext_proc.ProcessingResponse]:
    async def sent():
        for message in messages:
            yield message

    async def answers():
        return [answer async for answer in Picker(known, random.Random(0)).Process(sent(), None)]

    return asyncio.run(answers())


def headers(method: str, path: str, *, is_all: bool = False) -> ext_proc.ProcessingRequest:
    pairs = [HeaderValue(key=":method", raw_value=method.encode()), HeaderValue(key=":path", raw_value=path.encode())]
    return ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=is_all)
    )


def destination(answer: ext_proc.CommonResponse) -> dict[str, str]:
    return {option.header.key: option.header.raw_value.decode() for option in answer.header_mutation.set_headers}


def test_a_generation_is_sent_by_what_its_body_names():
    known = Known({"1:1": Load(max_tasks=8), "2:2": Load(max_tasks=8, running_tasks=frozenset({"sql"}))})
    body = ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(body=json.dumps({"model": "sql@x"}).encode()))
    first, second = exchange(known, headers("POST", "/v1/chat/completions?x=1"), body)
    assert first.mode_override.request_body_mode == ProcessingMode.BUFFERED
    assert not first.request_headers.response.header_mutation.set_headers
    assert destination(second.request_body.response) == {"x-gateway-destination-endpoint": "2:2,1:1"}
    assert known.taken == ["2:2"]


@pytest.mark.parametrize(
    ("method", "path", "is_all"), [("PUT", "/v1/tasks/a", False), ("POST", "/v1/completions", True)]
)
def test_what_has_no_model_to_read_is_sent_by_its_headers(method, path, is_all):
    known = Known({"1:1": Load(n_running=3), "2:2": Load()})
    [answer] = exchange(known, headers(method, path, is_all=is_all))
    assert destination(answer.request_headers.response) == {"x-gateway-destination-endpoint": "2:2,1:1"}
    assert not answer.HasField("mode_override"), "bodies of files go past the picker"


def test_where_nobody_is_ready_the_gateway_decides():
    [answer] = exchange(Known({}), headers("GET", "/v1/models", is_all=True))
    assert answer.HasField("request_headers")
    assert destination(answer.request_headers.response) == {}


@asynccontextmanager
async def watching(names: list[str], answer: Callable, monkeypatch) -> AsyncIterator[Replicas]:
    """The picker's view of replicas that answer so."""
    client = httpx.AsyncClient
    monkeypatch.setattr(
        watched.httpx, "AsyncClient", lambda **_: client(transport=httpx.MockTransport(answer), timeout=1)
    )
    replicas = Replicas(names, interval_s=0.01)
    task = asyncio.create_task(replicas.watch())
    try:
        await asyncio.wait_for(replicas.looked.wait(), 10)
        yield replicas
    finally:
        task.cancel()


def test_a_name_that_does_not_resolve_takes_no_other_with_it(page, monkeypatch):
    def resolve(host: str, port: int, *_: object) -> list:
        if host == "gone":
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    async def ready() -> set[str]:
        async with watching(
            ["10.0.0.1:1", "gone:1"], lambda _: httpx.Response(200, text=page), monkeypatch
        ) as replicas:
            return set(replicas.ready())

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert asyncio.run(ready()) == {"10.0.0.1:1"}


def test_a_replica_that_is_not_ready_is_left_out_however_slow_its_metrics_are(page, monkeypatch):
    is_leaving = False

    def answer(request: httpx.Request) -> httpx.Response:
        if not is_leaving:
            return httpx.Response(200, text=page)
        if request.url.path == "/metrics":
            raise httpx.ReadTimeout("slow")
        return httpx.Response(503)

    async def left() -> set[str]:
        nonlocal is_leaving
        async with watching(["127.0.0.1:1"], answer, monkeypatch) as replicas:
            assert set(replicas.ready()) == {"127.0.0.1:1"}
            is_leaving = True
            await asyncio.sleep(0.5)
            return set(replicas.ready())

    assert asyncio.run(left()) == set()
