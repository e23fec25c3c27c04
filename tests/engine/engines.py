"""Whole engines around a tiny model, and sinks that remember what they were told."""

import copy
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from onebasis.coefficients.arena import Arena
from onebasis.coefficients.residual_cache import ResidualCache
from onebasis.core.ids import Digest, digest_of
from onebasis.core.request import FinishReason, GenerateRequest, SamplingParams, TokenEvent
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.interface import EngineLimits
from onebasis.engine.ledger import QueueLimits
from onebasis.engine.loop import EngineLoop
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.runner import Runner
from onebasis.engine.scheduler import Scheduler
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.decoder import Decoder
from onebasis.model.factors import Basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import CacheConfig, RegistrySnapshot
from tests.engine.builders import make_request
from tests.model.families import CPU, N_VOCAB, prompt
from tests.model.tasks import RandomTask

WAIT_S = 60.0
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11)


@dataclass
class Answer:
    """A sink. Every event is kept, those after the ending too."""

    events: list[TokenEvent] = field(default_factory=list)
    on_event: Callable[[TokenEvent], None] | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)
        if event.finish is not None:
            self._ended.set()

    def wait(self) -> TokenEvent:
        """The ending."""
        assert self._ended.wait(WAIT_S), "no ending came"
        return next(event for event in self.events if event.finish is not None)

    @property
    def token_ids(self) -> list[int]:
        return [event.token_id for event in self.events if event.token_id is not None]

    def check(self) -> None:
        """Exactly one ending, and nothing after it."""
        assert self._ended.is_set(), "no ending"
        assert [event.finish is not None for event in self.events] == [False] * (len(self.events) - 1) + [True]
        ending = self.events[-1]
        assert (ending.error is not None) == (ending.finish is FinishReason.ERROR)


@dataclass
class Parts:
    """An engine that is not started yet, and what it is made of."""

    engine: EngineLoop
    scheduler: Scheduler
    arena: Arena | None
    residuals: ResidualCache
    metrics: Metrics

    def count(self, metric: str) -> float:
        """Sum of a counter over its labels."""
        text = self.metrics.render()[0].decode()
        return sum(float(number) for number in re.findall(rf"^{re.escape(metric)}(?:{{.*}})? (\S+)$", text, re.M))

    def check_all_is_free(self) -> None:
        """Nobody runs, waits, owns a block or pins a task."""
        self.scheduler.check_integrity()
        assert (self.scheduler.n_running, self.scheduler.n_waiting, self.scheduler.kv_usage) == (0, 0, 0.0)
        snapshot = self.engine.snapshot()
        assert (snapshot.n_running, snapshot.n_waiting) == (0, 0)
        self.residuals.check_integrity()
        assert not self.residuals._n_pins
        if self.arena is not None:
            self.arena.slots.check_integrity()
            for i in range(self.arena.n_slots):  # a pinned row could not be given to another
                self.arena.slots.acquire(_stranger(i))
            for i in range(self.arena.n_slots):
                self.arena.slots.release(_stranger(i))


def build_engine(
    base: LoadedBase,
    basis: Basis | None = None,
    *,
    runner_type: type[Runner] = Runner,
    n_blocks: int = 100,
    block_size: int = 4,
    max_running: int = 4,
    max_step_tokens: int = 12,
    n_slots: int | None = None,
    max_waiting: int = 1000,
    max_waiting_per_tenant: int = 1000,
    max_prefill_tokens: int | None = None,
    prefix_cache: bool = True,
    stall_s: float = 60.0,
    residual_bytes: int = 1_000_000,
) -> Parts:
    """The engine that wiring builds, small. `base` is changed by it."""
    arena = None if basis is None else Arena(basis.spec, n_slots=n_slots or max_running, device=CPU)
    residuals = ResidualCache(limit_bytes=residual_bytes, dtype=base.model.dtype, device=CPU)
    step = StepTasks(0 if arena is None else arena.base_row)
    adapt_model(base.model, basis, {} if arena is None else arena.site_cores, step)
    cache = KVCache(base.text_config, n_blocks=n_blocks, block_size=block_size, dtype=base.model.dtype, device=CPU)
    pool = BlockPool(n_blocks, block_size)
    scheduler = Scheduler(
        pool,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_prefill_tokens=max_prefill_tokens,
        prefix_cache=PrefixCache(pool, base="", basis=None) if prefix_cache else None,
    )
    metrics = Metrics(
        model_name=base.name,
        version="0",
        basis="",
        base_fingerprint="",
        cache=CacheConfig(block_size, n_blocks, "float32"),
        max_model_len=n_blocks * block_size,
        engine=lambda: engine.snapshot(),
        registry=RegistrySnapshot,
    )
    runner = runner_type(
        Decoder(base, cache, step),
        arena,
        residuals,
        block_size=block_size,
        device=CPU,
        on_apply=partial(metrics.observe_reconstruct_apply, "torch"),
    )
    engine = EngineLoop(
        scheduler=scheduler,
        runner=runner,
        limits=EngineLimits(n_blocks * block_size, N_VOCAB, max_running + max_waiting, max_running + max_waiting),
        queue_limits=QueueLimits(max_running, max_waiting, max_waiting_per_tenant),
        stall_s=stall_s,
        max_resident_tasks=0 if arena is None else arena.n_slots,
        metrics=metrics,
    )
    return Parts(engine, scheduler, arena, residuals, metrics)


@dataclass(frozen=True)
class World:
    """A bare model, a basis for it, and tasks."""

    base: LoadedBase
    basis: Basis
    tasks: list[RandomTask]

    def engine(self, **options: Any) -> Parts:
        return build_engine(copy.deepcopy(self.base), self.basis, **options)


@contextmanager
def running(parts: Parts) -> Iterator[EngineLoop]:
    """Started, and stopped at the end whatever happens."""
    parts.engine.start()
    try:
        yield parts.engine
    finally:
        parts.engine.stop()


def ask(request_id: str, n_prompt: int = 6, **fields: Any) -> tuple[GenerateRequest, Answer]:
    """(request, answer) with the prompt of a seed that follows from the id."""
    answer = fields.pop("answer", None) or Answer()
    seed = fields.pop("seed", sum(request_id.encode()))
    return make_request(request_id, prompt(n_prompt, seed=seed), sink=answer, **fields), answer


def answers_of(parts: Parts, asked: list[tuple[GenerateRequest, Answer]]) -> list[list[int]]:
    """Answer all of them, submitted before the engine starts so that steps are the same every time."""
    parts.engine.submit([request for request, _ in asked])
    with running(parts):
        for _, answer in asked:
            answer.wait()
    for _, answer in asked:
        answer.check()
    parts.check_all_is_free()
    return [answer.token_ids for _, answer in asked]


def _stranger(i: int) -> Digest:
    return digest_of(f"stranger {i}".encode())
