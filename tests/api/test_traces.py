"""Spans as a collector gets them: a real server, a real OTLP receiver on loopback."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from onebasis.core.errors import SetupError
from onebasis.telemetry.traces import otlp_traces
from tests.api.server import ok, refused

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Keeps every span that is sent to /v1/traces."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans, self.resources, self.paths = [], [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(group.resource))
            for scope in group.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def attributes(holder):
    def plain(value):
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {entry.key: plain(entry.value) for entry in holder.attributes}


@pytest.fixture
def collector():
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def test_a_request_is_one_trace_from_http_to_the_phases(start_server, tiny, collector):
    server = start_server(otlp_endpoint=collector.url)
    digest = ok(server.put_task("sql", tiny.core_file(1)))["digest"]
    body = {"model": "sql", "prompt": "the cat", "max_tokens": 4, "ignore_eos": True, "n": 2}
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    answer = ok(server.client.post("/v1/completions", json=body, headers=headers))
    refused(server.post("/v1/completions", model="nobody", prompt="a"), 404, "model_not_found", "model")
    server.client.get("/health"), server.client.get("/metrics")
    server.parts.close()

    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "onebasis"
    assert {s.name for s in collector.spans} == {
        *("PUT /v1/tasks/{name}", "POST /v1/completions", "text_completion sql", "queue", "prefill", "decode"),
    }
    spans = [s for s in collector.spans if s.trace_id.hex() == TRACE_ID]
    [http] = [s for s in spans if s.parent_span_id.hex() == PARENT_ID]
    assert (http.name, http.kind) == ("POST /v1/completions", http.SPAN_KIND_SERVER)
    expected = {"http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200}
    assert expected.items() <= attributes(http).items()
    sequences = [s for s in spans if s.parent_span_id == http.span_id]
    assert [s.name for s in sequences] == ["text_completion sql"] * 2
    for sequence in sequences:
        found = attributes(sequence)
        assert found.pop("gen_ai.response.id").startswith(answer["id"])
        assert found == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "onebasis",
            "gen_ai.request.model": "sql",
            "gen_ai.request.max_tokens": 4,
            "gen_ai.response.finish_reasons": ["length"],
            "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
            "gen_ai.usage.output_tokens": 4,
            "onebasis.task": "sql",
            "onebasis.digest": digest,
        }
        phases = [s for s in spans if s.parent_span_id == sequence.span_id]
        assert [s.name for s in phases] == ["queue", "prefill", "decode"]
        times = [http.start_time_unix_nano, sequence.start_time_unix_nano]
        times += [t for s in phases for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
        assert times[1:] == sorted(times[1:]), "one phase follows the other"
        assert phases[-1].end_time_unix_nano == sequence.end_time_unix_nano
    [lost] = [s for s in collector.spans if attributes(s).get("http.response.status_code") == 404]
    assert lost.trace_id.hex() != TRACE_ID


def test_what_was_cut_short_says_so(start_server, collector):
    server = start_server(otlp_endpoint=collector.url)
    late = server.post("/v1/completions", prompt="a", max_tokens=2000, ignore_eos=True, timeout=0.05)
    refused(late, 504, "deadline_exceeded")
    server.parts.close()
    failed = {s.name for s in collector.spans if s.status.code == s.status.STATUS_CODE_ERROR}
    assert failed == {"POST /v1/completions", "text_completion tiny-llama"}


def test_a_trace_that_its_caller_does_not_sample_is_not_sent(start_server, collector):
    server = start_server(otlp_endpoint=collector.url)
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    ok(server.client.post("/v1/completions", json={"model": "tiny-llama", "prompt": "a"}, headers=headers))
    server.parts.close()
    assert collector.spans == []


def test_without_the_extra_the_operator_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SetupError, match=r"pip install '\.\[otel\]'"):
        otlp_traces("http://127.0.0.1:1", model_name="m", version="0")


def test_without_an_endpoint_nothing_of_it_runs(server):
    assert server.parts.traces is None
    assert "Traced" not in {middleware.cls.__name__ for middleware in server.parts.app.user_middleware}
