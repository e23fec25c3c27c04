"""All metrics of one server, in one object with its own registry."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from onebasis.telemetry import buckets
from onebasis.telemetry.collectors import SnapshotCollector
from onebasis.telemetry.reports import CacheConfig, EngineSnapshot, RegistrySnapshot, RequestReport, StepReport
from onebasis.telemetry.vllm_families import VllmFamilies

BASE_LABEL = "__base__"  # these two can't be task names: a name begins with a letter or digit
OTHER_LABEL = "__other__"
_MAX_TASK_LABELS = 100
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
        families = CollectorRegistry()
        self._families = _WithoutCreated(families)
        families.register(
            SnapshotCollector(model_name=model_name, engine=engine, registry=registry, unix_time=unix_time)
        )
        self._vllm = VllmFamilies(families, model_name=model_name, cache=cache, max_model_len=max_model_len)
        self._task_labels: set[str] = set()
        self._make_own(families)
        build = Gauge(
            "onebasis_build_info",
            "What runs here: server, basis and base weights.",
            ["version", "basis_sha256", "base_sha256"],
            registry=families,
        )
        build.labels(version, basis.removeprefix("sha256:"), base_fingerprint.removeprefix("sha256:")).set(1)

    def render(self) -> tuple[bytes, str]:
        """Exposition text and its content type. Does not grow with the number of registered tasks."""
        return generate_latest(self._families), CONTENT_TYPE_LATEST

    def observe_step(self, report: StepReport) -> None:
        self._vllm.observe_step(report)
        self._step_s.observe(report.duration_s)
        self._distinct_tasks.observe(report.n_distinct_tasks)

    def observe_first_token(self, seconds: float) -> None:
        """From arrival to the first token of a request."""
        self._vllm.observe_first_token(seconds)

    def observe_token_gap(self, seconds: float) -> None:
        """Between two tokens of a request."""
        self._vllm.observe_token_gap(seconds)

    def observe_finished(self, report: RequestReport) -> None:
        """Once for each request, whatever its ending."""
        self._vllm.observe_finished(report)
        self._task_requests.labels(self._task_label(report.task), report.finish.value).inc()

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

    def _task_label(self, task: str | None) -> str:
        if task is None:
            return BASE_LABEL
        if task not in self._task_labels:
            if len(self._task_labels) >= _MAX_TASK_LABELS:
                return OTHER_LABEL
            self._task_labels.add(task)
        return task

    def _make_own(self, families: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"onebasis_{name}", text, labels, registry=families)

        def histogram(name: str, text: str, edges: tuple[float, ...]) -> Histogram:
            return Histogram(f"onebasis_{name}", text, buckets=edges, registry=families)

        self._task_requests = counter(
            "task_requests_total",
            f"Ended requests; the first {_MAX_TASK_LABELS} tasks seen by name, later ones as {OTHER_LABEL}.",
            "task",
            "outcome",
        )
        self._uploads = counter("task_upload_total", "Uploads of coefficient files.", "result")
        self._http_requests = counter("http_requests_total", "HTTP responses.", "route", "method", "status")
        self._upload_s = histogram("task_upload_seconds", "Upload of a coefficient file.", buckets.UPLOAD_S)
        self._swap_s = histogram("task_swap_seconds", "Copy of coefficients into the arena.", buckets.SWAP_S)
        self._step_s = histogram("step_seconds", "One step of the engine.", buckets.STEP_S)
        self._distinct_tasks = histogram(
            "distinct_tasks_per_step", "Different tasks in one step.", buckets.DISTINCT_TASKS
        )
        self._draining = Gauge("onebasis_draining", "1 while the server drains.", registry=families)


class _WithoutCreated(Collector):
    """Leaves out the `_created` series of the client library: no dashboard reads them, each counter has one."""

    def __init__(self, families: CollectorRegistry) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families.collect():
            family.samples = [s for s in family.samples if s.name != f"{family.name}_created"]
            yield family
