"""The native engine: one thread that plans, computes, samples and reports, step after step."""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onebasis.core.errors import EngineStopped, ServeError
from onebasis.core.request import FinishReason, GenerateRequest
from onebasis.engine.answers import Answers, Ending, deadline_exceeded
from onebasis.engine.interface import EngineLimits
from onebasis.engine.ledger import Ledger, QueueLimits
from onebasis.engine.runner import Runner
from onebasis.engine.sampler import Sampled
from onebasis.engine.scheduler import Scheduler, StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.engine.watchdog import Watchdog
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import EngineSnapshot, StepReport
from onebasis.telemetry.traces import Traces

_log = logging.getLogger(__name__)
_IDLE_WAIT_S = 0.5
_STOP_WAIT_S = 5.0
_MAX_FAILED_STEPS = 5  # in a row: then the fault is not some request's


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Stop:
    """Ends the thread once the message is read; what is still running gets its ending."""


_Message = EngineSequence | _Abort | _Stop


class EngineLoop:
    """Implements `Engine`.

    Invariant: `_sequences` are the sequences that the scheduler knows. It and `_n_failed_steps` belong to the engine
    thread, which alone changes scheduler and runner. The ledger, shared with callers and the watchdog, decides
    who gives a request its ending.

    Args:
        queue: bounds of what is in flight.
        max_resident_tasks: rows of the arena, for the metrics.
        stall_s: without a step for so long, the engine is given up.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        limits: EngineLimits,
        queue_limits: QueueLimits,
        max_resident_tasks: int,
        stall_s: float,
        metrics: Metrics,
        traces: Traces | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._limits = limits
        self._max_resident_tasks = max_resident_tasks
        self._metrics = metrics
        self._sequences: dict[str, EngineSequence] = {}
        self._n_failed_steps = 0
        self._n_beats = 0
        self._idle_wait_s = min(_IDLE_WAIT_S, stall_s / 4)
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._ledger = Ledger(queue_limits)
        self._answers = Answers(self._ledger, metrics, traces)
        self._thread = threading.Thread(target=self._run, name="onebasis-engine", daemon=True)
        self._watchdog = Watchdog(
            n_beats=lambda: self._n_beats,
            is_running=self._thread.is_alive,
            stall_s=stall_s,
            on_failure=self._give_up,
        )

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._ledger.is_closed

    def start(self) -> None:
        """Begin to work. Call once."""
        self._thread.start()
        self._watchdog.start()

    def stop(self) -> None:
        """End the thread after its current step. Requests still in flight end with EngineStopped.

        A step that takes longer than some seconds is not waited for: its thread ends with the process.
        """
        self._watchdog.stop()
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)
        self.end_all(EngineStopped())

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        now_s = time.monotonic()
        sequences = [EngineSequence(request, arrived_s=now_s) for request in requests]
        self._ledger.accept(sequences)
        for sequence in sequences:
            self._inbox.put(sequence)

    def abort(self, request_id: str) -> None:
        self._inbox.put(_Abort(request_id))

    def end_all(self, error: ServeError) -> None:
        self._answers.end_all(error)

    def snapshot(self) -> EngineSnapshot:
        running = self._scheduler.running()
        tasks = (sequence.request.task for sequence in running)
        return EngineSnapshot(
            n_waiting=max(0, self._ledger.n_open - len(running)),
            n_running=len(running),
            kv_usage=self._scheduler.kv_usage,
            running_tasks={task.name: task.coefficients.rank for task in tasks if task is not None},
            waiting_tasks=tuple(sorted(self._scheduler.waiting_tasks)),
            n_resident_tasks=self._runner.n_resident_tasks,
            max_resident_tasks=self._max_resident_tasks,
            debts_by_tenant=self._scheduler.debts_by_tenant(),
            residual_bytes=self._runner.residual_bytes,
        )

    def _give_up(self, reason: str) -> None:
        _log.critical("the engine is given up: %s; restart this process", reason)
        self.end_all(EngineStopped(reason))

    def _run(self) -> None:
        reason = "it was stopped"
        try:
            while self._read_inbox() and not self._ledger.is_closed:
                self._end_expired(time.monotonic())
                plan = self._scheduler.plan()
                if plan.runs:
                    self._step(plan)
        except Exception as error:
            reason = f"{type(error).__name__} in its thread"
            _log.critical("the engine thread failed and ends; restart this process", exc_info=error)
        finally:
            self.end_all(EngineStopped(reason))
            self._free_all()

    def _read_inbox(self) -> bool:
        """Take all messages, waiting for one when there is nothing to compute. False when told to stop."""
        self._n_beats += 1
        wait_s = 0.0 if self._sequences else self._idle_wait_s
        while True:
            try:
                message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            except queue.Empty:
                return True
            wait_s = 0.0
            match message:
                case _Stop():
                    return False
                case EngineSequence():
                    self._sequences[message.request_id] = message
                    self._scheduler.add(message)
                case _Abort(request_id):
                    if request_id in self._sequences:
                        self._end(self._sequences[request_id], Ending(FinishReason.ABORT))

    def _end_expired(self, now_s: float) -> None:
        for sequence in self._scheduler.expired(now_s):
            self._end(sequence, Ending(FinishReason.ERROR, error=deadline_exceeded(sequence)))

    def _step(self, plan: StepPlan) -> None:
        started_s = time.monotonic()
        for sequence in plan.preempted:
            self._runner.let_go_of_task(sequence)
        failed = {s.request_id for s in plan.admitted if not self._admit(s, started_s)}
        if failed:
            plan = replace(plan, runs=tuple(run for run in plan.runs if run.sequence.request_id not in failed))
        if not plan.runs:
            return
        try:
            results = self._runner.execute(plan)
        except Exception as error:
            self._fail_step(plan, error)
            return
        self._n_failed_steps = 0
        self._scheduler.commit(plan)
        now_s = time.monotonic()
        tasks = {run.sequence.task_name for run in plan.runs} - {None}
        self._metrics.observe_step(
            StepReport(
                n_tokens=plan.n_tokens,
                n_distinct_tasks=len(tasks),
                duration_s=now_s - started_s,
                n_preempted=len(plan.preempted),
                n_prefix_queries=plan.n_prefix_queries,
                n_prefix_hits=plan.n_prefix_hits,
            )
        )
        for sequence, result in results:
            if isinstance(result, Exception):
                self._end(sequence, Ending(FinishReason.ERROR, error=result))
            else:
                self._report_token(sequence, result, now_s)

    def _fail_step(self, plan: StepPlan, error: Exception) -> None:
        """The computation that all of a step share failed: whose fault it is can't be told, so all of them end."""
        _log.error("a step of %d sequences failed; they end with an error", len(plan.runs), exc_info=error)
        for run in plan.runs:
            self._end(run.sequence, Ending(FinishReason.ERROR, error=error))
        self._n_failed_steps += 1
        if self._n_failed_steps == _MAX_FAILED_STEPS:
            raise RuntimeError(f"{_MAX_FAILED_STEPS} steps in a row failed") from error

    def _admit(self, sequence: EngineSequence, now_s: float) -> bool:
        """Make the sequence's task resident. False when that failed: the sequence has ended then."""
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now_s
        copy_started_s = time.monotonic()
        try:
            was_copied = self._runner.hold_task(sequence)
        except Exception as error:
            self._end(sequence, Ending(FinishReason.ERROR, error=error))
            return False
        if was_copied:
            self._metrics.observe_swap(time.monotonic() - copy_started_s)
        return True

    def _report_token(self, sequence: EngineSequence, sampled: Sampled, now_s: float) -> None:
        try:
            finish = self._answers.add_token(sequence, sampled, now_s)
        except Exception as error:  # its constraint can't go on, or its sink takes no more
            self._end(sequence, Ending(FinishReason.ERROR, error=error))
            return
        if finish is not None:
            self._end(sequence, Ending(finish, sampled=sampled))

    def _end(self, sequence: EngineSequence, ending: Ending) -> None:
        """Free everything a request holds, then give it its ending, unless it has had it."""
        self._scheduler.remove(sequence)
        self._runner.forget_task(sequence)
        del self._sequences[sequence.request_id]
        self._answers.end(sequence, ending)

    def _free_all(self) -> None:
        """What ended requests still hold, so that the parts of a stopped engine are whole."""
        for sequence in list(self._sequences.values()):
            self._end(sequence, Ending(FinishReason.ERROR))
