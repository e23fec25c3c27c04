"""Spans of OpenTelemetry, under the names of its HTTP and GenAI conventions. Needs the extra `otel`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onebasis.core.errors import SetupError
from onebasis.core.request import FinishReason

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from onebasis.telemetry.reports import RequestReport

_EXPORT_TIMEOUT_S = 5


class Traces:
    """Makes spans and hands them to the provider, which sends them from a thread of its own. Any thread.

    Args:
        model_name: of the base, for requests without a task.
    """

    def __init__(self, provider: TracerProvider, *, model_name: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("onebasis")
        self._w3c = TraceContextTextMapPropagator()
        self._model_name = model_name

    @contextmanager
    def http_span(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[HttpSpan]:
        """A server's span around a request; the parent is the one that a `traceparent` header names."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        attributes = {"http.request.method": method, "url.path": path}
        span = self._tracer.start_span(
            method, self._w3c.extract(headers), kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        )
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, set_span_in_context(span))
        try:
            yield HttpSpan(span, method, carrier["traceparent"])
        finally:
            span.end()

    def observe_finished(self, report: RequestReport) -> None:
        """The span of one sequence and, below it, those of the phases that it came to."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        model = report.task or self._model_name
        to_unix_ns = time.time_ns() - int(time.monotonic() * 1e9)
        attributes: dict[str, str | int | list[str]] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "onebasis",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": report.max_tokens,
            "gen_ai.response.id": report.request_id,
            "gen_ai.response.finish_reasons": [report.finish.value],
            "gen_ai.usage.input_tokens": report.n_prompt,
            "gen_ai.usage.output_tokens": report.n_output,
        }
        if report.task is not None and report.digest is not None:
            attributes |= {"onebasis.task": report.task, "onebasis.digest": report.digest}
        span = self._tracer.start_span(
            f"text_completion {model}",
            self._parent(report),
            attributes=attributes,
            start_time=to_unix_ns + int(report.arrived_s * 1e9),
        )
        if report.finish is FinishReason.ERROR:
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span)
        for name, start_s, end_s in _phases(report):
            phase = self._tracer.start_span(name, below, start_time=to_unix_ns + int(start_s * 1e9))
            phase.end(to_unix_ns + int(end_s * 1e9))
        span.end(to_unix_ns + int(report.finished_s * 1e9))

    def close(self) -> None:
        """Send what has not been sent, for some seconds at most."""
        self._provider.shutdown()

    def _parent(self, report: RequestReport) -> Context:
        return self._w3c.extract({} if report.traceparent is None else {"traceparent": report.traceparent})


class HttpSpan:
    """The span of an HTTP request that is under way. `traceparent` names it to what happens below it."""

    def __init__(self, span: Span, method: str, traceparent: str) -> None:
        self._span = span
        self._method = method
        self.traceparent = traceparent

    def answered(self, *, route: str, status: int) -> None:
        """The route that matched, as a pattern, and the status that was sent."""
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


def otlp_traces(endpoint: str, *, model_name: str, version: str) -> Traces:
    """Traces that go to a collector by OTLP over HTTP.

    Args:
        endpoint: its base URL, as http://collector:4318.

    Raises:
        SetupError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SetupError(
            f"--otlp-endpoint needs OpenTelemetry ({error}); pip install '.[otel]' in the project, or leave it out"
        ) from error
    resource = Resource.create({"service.name": "onebasis", "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider, model_name=model_name)


def _phases(report: RequestReport) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) of the phases that were begun."""
    yield "queue", report.arrived_s, report.finished_s if report.scheduled_s is None else report.scheduled_s
    if report.scheduled_s is not None:
        yield "prefill", report.scheduled_s, report.finished_s if report.first_token_s is None else report.first_token_s
    if report.first_token_s is not None:
        yield "decode", report.first_token_s, report.finished_s
