"""What a replica says of itself on /metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_WAITING: Final = "vllm:num_requests_waiting"
_RUNNING: Final = "vllm:num_requests_running"
_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
_TASKS: Final = "vllm:lora_requests_info"
_READ: Final = (_WAITING, _RUNNING, _KV_USAGE, _TASKS)


@dataclass(frozen=True, slots=True)
class Load:
    """Of one moment. `max_tasks` is the number of tasks that the replica can hold on its device."""

    n_waiting: int = 0
    n_running: int = 0
    kv_usage: float = 0.0
    running_tasks: frozenset[str] = frozenset()
    waiting_tasks: frozenset[str] = frozenset()
    max_tasks: int = 0


class NotOurs(Exception):
    """The page lacks a metric that the choice needs, or spells it otherwise."""


def parse_load(page: str) -> Load:
    """Read the four metrics; the other lines, a thousand of them, are not parsed.

    Raises:
        NotOurs: one is missing or unlike the server's.
    """
    try:
        return _load(_newest(page))
    except (LookupError, ValueError, OverflowError) as error:
        raise NotOurs(f"{error!r} on its page of metrics") from None


def _newest(page: str) -> dict[str, Sample]:
    """By name; of lora_requests_info, whose value is a time, there may be several."""
    lines = "\n".join(line for line in page.splitlines() if line.startswith(_READ))
    samples: dict[str, Sample] = {}
    for family in text_string_to_metric_families(f"{lines}\n"):
        for sample in family.samples:
            newest = samples.get(sample.name)
            if newest is None or sample.value > newest.value:
                samples[sample.name] = sample
    return samples


def _load(samples: Mapping[str, Sample]) -> Load:
    tasks = samples[_TASKS].labels
    return Load(
        n_waiting=int(samples[_WAITING].value),
        n_running=int(samples[_RUNNING].value),
        kv_usage=samples[_KV_USAGE].value,
        running_tasks=_names(tasks["running_lora_adapters"]),
        waiting_tasks=_names(tasks["waiting_lora_adapters"]),
        max_tasks=int(tasks["max_lora"]),
    )


def _names(joined: str) -> frozenset[str]:
    return frozenset(filter(None, joined.split(",")))
