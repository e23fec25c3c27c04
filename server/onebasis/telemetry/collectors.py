"""Families that are read at scrape time, from snapshots, so that no state is kept twice."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nlargest

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from onebasis.telemetry.reports import EngineSnapshot, RegistrySnapshot

NO_TENANT_LABEL = "__none__"  # can't be a tenant: their names begin with a letter or digit
_MAX_TENANTS = 20
_MAX_TASKS_IN_LABEL = 100  # Prometheus limits the length of a label; a queue can hold thousands


class SnapshotCollector(Collector):
    """O(tasks in the running batch) per scrape, whatever is registered. Runs on the thread that renders."""

    def __init__(
        self,
        *,
        model_name: str,
        engine: Callable[[], EngineSnapshot],
        registry: Callable[[], RegistrySnapshot],
        unix_time: Callable[[], float],
    ) -> None:
        self._common = {"model_name": model_name, "engine": "0"}
        self._engine = engine
        self._registry = registry
        self._unix_time = unix_time

    def collect(self) -> Iterator[GaugeMetricFamily]:
        engine, registry = self._engine(), self._registry()
        yield from self._load(engine)
        yield from self._tasks(engine, registry)
        yield from _entries(engine, registry)
        yield _debts(engine)

    def _load(self, engine: EngineSnapshot) -> Iterator[GaugeMetricFamily]:
        yield self._gauge("num_requests_waiting", "Requests waiting to be scheduled.", engine.n_waiting)
        yield self._gauge("num_requests_running", "Requests in the running batch.", engine.n_running)
        yield self._gauge("kv_cache_usage_perc", "KV cache blocks in use, 0 to 1.", engine.kv_usage)
        yield self._gauge("gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc.", engine.kv_usage)
        yield self._gauge("num_requests_swapped", "Always 0: preempted requests are recomputed.", 0)
        yield self._gauge("cpu_cache_usage_perc", "Always 0: the KV cache is not swapped to the host.", 0)

    def _tasks(self, engine: EngineSnapshot, registry: RegistrySnapshot) -> Iterator[GaugeMetricFamily]:
        running = sorted(engine.running_tasks)
        yield self._gauge(
            "lora_requests_info",
            f"Unix time of this scrape; at most {_MAX_TASKS_IN_LABEL} tasks are named in a label.",
            self._unix_time(),
            {
                "max_lora": str(engine.max_resident_tasks),
                "running_lora_adapters": _joined(running),
                "waiting_lora_adapters": _joined(sorted(set(engine.waiting_tasks))),
            },
        )
        on_device = {"level": "gpu", "pinned": "false"}
        yield self._family(
            "lora_adapter_loaded",
            "1 for each task of the running batch.",
            [
                ({"adapter_name": task, **on_device, "rank": str(rank)}, 1)
                for task, rank in sorted(engine.running_tasks.items())
            ],
        )
        yield self._gauge("num_gpu_loaded_lora_adapters", "Tasks in the device arena.", engine.n_resident_tasks)
        yield self._gauge("num_cpu_loaded_lora_adapters", "Tasks registered.", registry.n_registered)
        yield self._gauge("max_gpu_lora_adapters", "Slots of the device arena.", engine.max_resident_tasks)

    def _gauge(self, name: str, text: str, value: float, labels: dict[str, str] | None = None) -> GaugeMetricFamily:
        return self._family(name, text, [(labels or {}, value)])

    def _family(self, name: str, text: str, series: Iterable[tuple[dict[str, str], float]]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text)
        for labels, value in series:
            family.add_sample(family.name, {**self._common, **labels}, value)
        return family


def _entries(engine: EngineSnapshot, registry: RegistrySnapshot) -> Iterator[GaugeMetricFamily]:
    entries = GaugeMetricFamily(
        "onebasis_task_registry_entries",
        "Versions of tasks: registered, replaced or deleted (retired); of the tasks, those in the batch (active).",
        labels=["state"],
    )
    entries.add_metric(["registered"], registry.n_registered)
    entries.add_metric(["active"], len(engine.running_tasks))
    entries.add_metric(["retired"], registry.n_retired)
    yield entries
    yield GaugeMetricFamily(
        "onebasis_task_registry_bytes", "Size of the registered coefficient files.", registry.size_bytes
    )
    yield GaugeMetricFamily(
        "onebasis_residual_resident_bytes",
        "Memory of the resident private updates that tasks have beside the basis.",
        engine.residual_bytes,
    )
    yield GaugeMetricFamily(
        "onebasis_task_registry_age_seconds", "Since the registry was last compared with its store.", registry.age_s
    )


def _debts(engine: EngineSnapshot) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "onebasis_fairness_debt",
        f"Tokens that a waiting tenant is behind the waiting one served most; at most {_MAX_TENANTS}, largest first.",
        labels=["tenant"],
    )
    for tenant, debt in nlargest(_MAX_TENANTS, engine.debts_by_tenant.items(), key=lambda item: item[1]):
        family.add_metric([NO_TENANT_LABEL if tenant is None else tenant], debt)
    return family


def _joined(tasks: Sequence[str]) -> str:
    return ",".join(tasks[:_MAX_TASKS_IN_LABEL])
