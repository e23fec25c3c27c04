"""What the rest of the server tells the metrics. Frozen values only; times are monotonic seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from onebasis.core.request import FinishReason


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache as configured at start."""

    block_size: int  # tokens
    n_blocks: int
    dtype: str
    prefix_caching: bool = False


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The engine between two steps. Sizes follow the batch and the queue, never the registry."""

    n_waiting: int
    n_running: int
    kv_usage: float  # 0..1
    running_tasks: Mapping[str, int]  # name -> rank
    waiting_tasks: tuple[str, ...]
    n_resident_tasks: int
    max_resident_tasks: int
    debts_by_tenant: Mapping[str | None, int] = field(default_factory=dict)  # tokens; None: requests without a tenant
    residual_bytes: int = 0  # on the device, beside the basis


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """The task registry: counts that it keeps, so reading them is O(1)."""

    n_registered: int = 0
    n_retired: int = 0  # versions that have been replaced or deleted, and tombstones, ever
    size_bytes: int = 0  # of the current versions' files
    age_s: float = field(default=0.0, compare=False)  # since it was last compared with the store


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of the engine."""

    n_tokens: int
    n_distinct_tasks: int
    duration_s: float
    n_preempted: int
    n_prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    n_prefix_hits: int = 0  # and found


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One ended request. A time is None where the request ended before it came to that."""

    finish: FinishReason
    n_prompt: int
    n_output: int
    max_tokens: int
    n: int  # choices the client asked for
    task: str | None
    arrived_s: float
    scheduled_s: float | None
    first_token_s: float | None
    finished_s: float
    n_cached: int = 0  # prompt tokens that came from the prefix cache
    request_id: str = ""
    digest: str | None = None  # of the task's coefficients
    traceparent: str | None = None
