"""The native engine: one thread that plans, computes, samples and reports, step after step."""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from onebasis.core.errors import EngineStopped, InvalidGrammar, QueueFull
from onebasis.core.request import FinishReason, GenerateRequest, TokenEvent
from onebasis.engine.interface import EngineLimits
from onebasis.engine.runner import Runner
from onebasis.engine.sampler import Sampled
from onebasis.engine.scheduler import Scheduler, StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import EngineSnapshot, RequestReport, StepReport

_log = logging.getLogger(__name__)
_IDLE_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerateRequest
    arrived_s: float


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Stop:
    """Ends the thread once the message is read; what is still running gets its ending."""


_Message = _Submit | _Abort | _Stop


class EngineLoop:
    """Implements `Engine`.

    Invariant: `_in_flight` has the ids of all accepted requests that have had no ending yet. It and `_accepting`
    are shared between threads, under `_lock`; everything else belongs to the engine thread.

    Args:
        max_in_flight: bound of running and waiting requests together.
        max_resident_tasks: rows of the arena, for the metrics.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        limits: EngineLimits,
        max_in_flight: int,
        max_resident_tasks: int,
        metrics: Metrics,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._max_resident_tasks = max_resident_tasks
        self._metrics = metrics
        self._sequences: dict[str, EngineSequence] = {}
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._in_flight: set[str] = set()
        self._accepting = True
        self._thread = threading.Thread(target=self._run, name="onebasis-engine", daemon=True)

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @property
    def is_alive(self) -> bool:
        return self._accepting and self._thread.is_alive()

    def start(self) -> None:
        """Begin to work. Call once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step. Requests still in flight end with EngineStopped."""
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        now_s = time.monotonic()
        with self._lock:
            if not self._accepting:
                raise EngineStopped
            if len(self._in_flight) + len(requests) > self._max_in_flight:
                raise QueueFull(self._max_in_flight)
            self._in_flight.update(request.request_id for request in requests)
            for request in requests:
                self._inbox.put(_Submit(request, now_s))

    def abort(self, request_id: str) -> None:
        self._inbox.put(_Abort(request_id))

    def snapshot(self) -> EngineSnapshot:
        running = self._scheduler.running()
        with self._lock:
            n_in_flight = len(self._in_flight)
        return EngineSnapshot(
            n_waiting=max(0, n_in_flight - len(running)),
            n_running=len(running),
            kv_usage=self._scheduler.kv_usage,
            running_tasks=_task_names(running),
            waiting_tasks=_task_names(self._scheduler.waiting()),
            n_resident_tasks=self._runner.n_resident_tasks,
            max_resident_tasks=self._max_resident_tasks,
        )

    def _run(self) -> None:
        try:
            while self._read_inbox():
                plan = self._scheduler.plan()
                if plan.runs:
                    self._step(plan)
        except Exception:
            _log.exception("the engine thread failed and ends")
        finally:
            self._end_all()

    def _read_inbox(self) -> bool:
        """Take all messages, waiting for one when there is nothing to compute. False when told to stop."""
        wait_s = 0.0 if self._sequences else _IDLE_WAIT_S
        while True:
            try:
                message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            except queue.Empty:
                return True
            wait_s = 0.0
            match message:
                case _Stop():
                    return False
                case _Submit():
                    self._accept(message)
                case _Abort(request_id):
                    if request_id in self._sequences:
                        self._end(self._sequences[request_id], FinishReason.ABORT)

    def _accept(self, message: _Submit) -> None:
        sequence = EngineSequence(message.request, arrived_s=message.arrived_s)
        self._sequences[sequence.request_id] = sequence
        self._scheduler.add(sequence)

    def _step(self, plan: StepPlan) -> None:
        started_s = time.monotonic()
        for sequence in plan.preempted:
            self._runner.let_go_of_task(sequence)
        try:
            for sequence in plan.admitted:
                self._admit(sequence, started_s)
            sampled = self._runner.execute(plan)
        except Exception as error:
            _log.exception("a step of %d sequences failed; they end with an error", len(plan.runs))
            for run in plan.runs:
                self._end(run.sequence, FinishReason.ERROR, error=error)
            return
        self._scheduler.commit(plan)
        now_s = time.monotonic()
        for sequence, result in sampled:
            self._report_token(sequence, result, now_s)
        tasks = {run.sequence.task_name for run in plan.runs} - {None}
        self._metrics.observe_step(StepReport(plan.n_tokens, len(tasks), now_s - started_s, len(plan.preempted)))

    def _admit(self, sequence: EngineSequence, now_s: float) -> None:
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now_s
        copy_started_s = time.monotonic()
        if self._runner.hold_task(sequence):
            self._metrics.observe_swap(time.monotonic() - copy_started_s)

    def _report_token(self, sequence: EngineSequence, sampled: Sampled, now_s: float) -> None:
        if sequence.last_token_s is None:
            sequence.first_token_s = now_s
            self._metrics.observe_first_token(now_s - sequence.arrived_s)
        else:
            self._metrics.observe_token_gap(now_s - sequence.last_token_s)
        sequence.last_token_s = now_s
        try:
            finish = sequence.append(sampled.token_id)
        except InvalidGrammar as error:
            self._end(sequence, FinishReason.ERROR, error=error)
            return
        if finish is None:
            sequence.request.sink(_event(sequence, sampled))
        else:
            self._end(sequence, finish, sampled=sampled)

    def _end(
        self,
        sequence: EngineSequence,
        finish: FinishReason,
        *,
        sampled: Sampled | None = None,
        error: Exception | None = None,
    ) -> None:
        """The one ending of a request: everything it holds is freed before its caller hears of it."""
        self._scheduler.remove(sequence)
        self._runner.let_go_of_task(sequence)
        del self._sequences[sequence.request_id]
        with self._lock:
            self._in_flight.discard(sequence.request_id)
        self._metrics.observe_finished(_report(sequence, finish))
        sequence.request.sink(_event(sequence, sampled, finish=finish, error=error))

    def _end_all(self) -> None:
        with self._lock:
            self._accepting = False
        while not self._inbox.empty():
            message = self._inbox.get_nowait()
            if isinstance(message, _Submit):
                self._accept(message)
        for sequence in list(self._sequences.values()):
            self._end(sequence, FinishReason.ERROR, error=EngineStopped())


def _event(
    sequence: EngineSequence,
    sampled: Sampled | None,
    *,
    finish: FinishReason | None = None,
    error: Exception | None = None,
) -> TokenEvent:
    """What the caller hears of a token that has just been appended, or of an ending without one."""
    is_first = sampled is not None and len(sequence.output_ids) == 1
    return TokenEvent(
        sequence.request_id,
        None if sampled is None else sampled.token_id,
        None if sampled is None else sampled.logprobs,
        finish=finish,
        error=error,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if is_first and sequence.request.needs_prompt_logits else None,
    )


def _report(sequence: EngineSequence, finish: FinishReason) -> RequestReport:
    request = sequence.request
    return RequestReport(
        finish=finish,
        n_prompt=len(request.prompt_ids),
        n_output=len(sequence.output_ids),
        max_tokens=request.max_tokens,
        n=request.n_choices,
        task=sequence.task_name,
        arrived_s=sequence.arrived_s,
        scheduled_s=sequence.scheduled_s,
        first_token_s=sequence.first_token_s,
        finished_s=time.monotonic(),
    )


def _task_names(sequences: Sequence[EngineSequence]) -> tuple[str, ...]:
    return tuple(sorted({sequence.task_name for sequence in sequences if sequence.task_name is not None}))
