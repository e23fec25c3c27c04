"""All metrics of one server, in one object with its own registry."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from onebasis.telemetry import buckets
from onebasis.telemetry.collectors import SnapshotCollector
from onebasis.telemetry.exposition import TextExposition
from onebasis.telemetry.reports import CacheConfig, EngineSnapshot, RegistrySnapshot, RequestReport, StepReport
from onebasis.telemetry.task_requests import TaskRequests
from onebasis.telemetry.vllm_families import VllmFamilies

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_TASK_LABELS = 100
_TASK_HALF_LIFE = 10_000  # requests
_STORED = frozenset({"created", "replaced"})


class Metrics:
    """observe_* is for the engine thread, except upload, http and draining; render is for any thread.

    Args:
        model_name: of the base, as clients name it.
        version: of this server.
        basis: digest of the loaded basis, empty where there is none.
        base_fingerprint: digest of the base weights.
        max_model_len: tokens of the context.
        engine, registry: asked once per scrape, on the scraping thread; must be quick and must not block.
    """

    def __init__(
        self,
        *,
        model_name: str,
        version: str,
        basis: str,
        base_fingerprint: str,
        cache: CacheConfig,
        max_model_len: int,
        engine: Callable[[], EngineSnapshot],
        registry: Callable[[], RegistrySnapshot],
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._families = families = CollectorRegistry()
        self._exposition = TextExposition()
        families.register(
            SnapshotCollector(model_name=model_name, engine=engine, registry=registry, unix_time=unix_time)
        )
        self._vllm = VllmFamilies(families, model_name=model_name, cache=cache, max_model_len=max_model_len)
        self._task_requests = TaskRequests(n_shown=_MAX_TASK_LABELS, half_life=_TASK_HALF_LIFE)
        families.register(self._task_requests)
        self._make_own(families)
        ProcessCollector(registry=families)
        build = Gauge(
            "onebasis_build_info",
            "What runs here: server, basis and base weights.",
            ["version", "basis_sha256", "base_sha256"],
            registry=families,
        )
        build.labels(version, basis.removeprefix("sha256:"), base_fingerprint.removeprefix("sha256:")).set(1)

    def render(self) -> tuple[bytes, str]:
        """Exposition text and its content type. Does not grow with the number of registered tasks."""
        return self._exposition.render(self._families.collect()), CONTENT_TYPE

    def observe_step(self, report: StepReport) -> None:
        self._vllm.observe_step(report)
        self._step_s.observe(report.duration_s)
        self._distinct_tasks.observe(report.n_distinct_tasks)

    def observe_reconstruct_apply(self, path: str, seconds: float) -> None:
        """One forward pass that held a task; `path` is the decoder's."""
        self._reconstruct_apply_s.labels(path).observe(seconds)

    def observe_first_token(self, seconds: float) -> None:
        """From arrival to the first token of a request."""
        self._vllm.observe_first_token(seconds)

    def observe_token_gap(self, seconds: float) -> None:
        """Between two tokens of a request."""
        self._vllm.observe_token_gap(seconds)

    def observe_finished(self, report: RequestReport) -> None:
        """Once for each request, whatever its ending."""
        self._vllm.observe_finished(report)
        self._task_requests.observe(report.task, report.finish.value)

    def observe_upload(self, result: str, seconds: float) -> None:
        """`result`: created, replaced, unchanged, or the `code` of the error that refused the file."""
        self._uploads.labels(result).inc()
        self._upload_s.observe(seconds)
        if result in _STORED:
            self._vllm.observe_load(seconds)

    def observe_swap(self, seconds: float) -> None:
        """One copy of a task's coefficients into the device arena."""
        self._swap_s.observe(seconds)
        self._vllm.observe_activate(seconds)

    def observe_http(self, *, route: str, method: str, status: int) -> None:
        """`route` is the pattern, as /v1/tasks/{name}, never the path: its values must stay few."""
        self._http_requests.labels(route, method, str(status)).inc()

    def set_draining(self, draining: bool) -> None:
        self._draining.set(draining)

    def _make_own(self, families: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"onebasis_{name}", text, labels, registry=families)

        def histogram(name: str, text: str, edges: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"onebasis_{name}", text, labels, buckets=edges, registry=families)

        self._uploads = counter("task_upload_total", "Uploads of coefficient files.", "result")
        self._http_requests = counter("http_requests_total", "HTTP responses.", "route", "method", "status")
        self._upload_s = histogram("task_upload_seconds", "Upload of a coefficient file.", buckets.UPLOAD_S)
        self._swap_s = histogram("task_swap_seconds", "Copy of coefficients into the arena.", buckets.SWAP_S)
        self._step_s = histogram("step_seconds", "One step of the engine.", buckets.STEP_S)
        self._reconstruct_apply_s = histogram(
            "reconstruct_apply_seconds",
            "Forward pass of a step that holds a task: the base's layers with the update, computed together.",
            buckets.STEP_S,
            "path",
        )
        self._distinct_tasks = histogram(
            "distinct_tasks_per_step", "Different tasks in one step.", buckets.DISTINCT_TASKS
        )
        self._draining = Gauge("onebasis_draining", "1 from the signal that ends the server on.", registry=families)
