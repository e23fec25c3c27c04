"""The engine over vLLM: fair turns, deadlines and endings are ours, the batch is vLLM's."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError

from onebasis.core.errors import ContextLengthExceeded, EngineStopped, ServeError
from onebasis.core.request import FinishReason, GenerateRequest
from onebasis.engine.answers import Answers, Ending, deadline_exceeded
from onebasis.engine.fairness import INPUT_TOKEN_COST, OUTPUT_TOKEN_COST
from onebasis.engine.interface import EngineLimits
from onebasis.engine.ledger import Ledger, QueueLimits
from onebasis.engine.sequence import EngineSequence
from onebasis.engine.vllm.llm import Llm
from onebasis.engine.vllm.outputs import prompt_logprobs, sampled_tokens
from onebasis.engine.vllm.sampling import refusal, vllm_sampling
from onebasis.engine.vllm.steps import LlmStep
from onebasis.engine.waiting import WaitingQueue
from onebasis.engine.watchdog import Watchdog
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import EngineSnapshot, StepReport
from onebasis.telemetry.traces import Traces
from onebasis.vllm_plugin.control import TaskRow, check_task, request_arguments

_log = logging.getLogger(__name__)
_IDLE_WAIT_S: Final = 0.5
_DEAD: Final = "a process of vLLM has ended"


class VllmEngine:
    """Implements `Engine` and `LlmListener`. vLLM has at most `max_running` requests at a time; the others wait here
    for a fair turn.

    Invariant: a sequence of `_sequences` waits in `_waiting` or is being answered by its task in `_running`. These,
    the timers and `_kv_usage` belong to the loop of `llm`. The ledger, shared with callers and the watchdog, decides
    who gives a request its ending.

    Args:
        max_resident_tasks: rows of the workers' tables, for the metrics.
        stall_s: when requests run and vLLM ends no step for so long, it is given up.
    """

    def __init__(
        self,
        llm: Llm,
        *,
        limits: EngineLimits,
        queue_limits: QueueLimits,
        max_resident_tasks: int,
        stall_s: float,
        metrics: Metrics,
        traces: Traces | None = None,
    ) -> None:
        self._llm = llm
        self._limits = limits
        self._max_running = queue_limits.max_running
        self._max_resident_tasks = max_resident_tasks
        self._metrics = metrics
        self._sequences: dict[str, EngineSequence] = {}
        self._waiting = WaitingQueue()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._kv_usage = 0.0
        self._n_beats = 0
        self._idle_wait_s = min(_IDLE_WAIT_S, stall_s / 4)
        self._ledger = Ledger(queue_limits)
        self._answers = Answers(self._ledger, metrics, traces)
        self._watchdog = Watchdog(
            n_beats=lambda: self._n_beats,
            is_running=lambda: llm.has_thread,
            stall_s=stall_s,
            on_failure=self._give_up,
        )

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @property
    def is_alive(self) -> bool:
        return self._llm.is_running and not self._ledger.is_closed

    def start(self) -> None:
        """Begin to work. Call once."""
        self._llm.listen(self)
        self._llm.call_soon(self._beat)
        self._watchdog.start()

    def stop(self) -> None:
        """End vLLM. Requests still in flight end with EngineStopped."""
        self._watchdog.stop()
        self.end_all(EngineStopped())
        self._llm.forget(self)
        self._llm.close()

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        for request in requests:
            self._check(request)
        now_s = time.monotonic()
        sequences = [EngineSequence(request, arrived_s=now_s) for request in requests]
        self._ledger.accept(sequences)
        for sequence in sequences:
            self._llm.call_soon(self._add, sequence)

    def abort(self, request_id: str) -> None:
        self._llm.call_soon(self._abort, request_id)

    def end_all(self, error: ServeError) -> None:
        self._answers.end_all(error)
        self._llm.call_soon(self._cut_all)

    def snapshot(self) -> EngineSnapshot:
        running = [self._sequences.get(request_id) for request_id in tuple(self._running)]
        tasks = [sequence.request.task for sequence in running if sequence is not None]
        n_open = self._ledger.n_open
        return EngineSnapshot(
            n_waiting=max(0, n_open - len(running)),
            n_running=len(running),
            kv_usage=self._kv_usage if running else 0.0,  # vLLM tells it after steps only
            running_tasks={task.name: task.coefficients.rank for task in tasks if task is not None},
            waiting_tasks=tuple(sorted(self._waiting.task_names())),
            n_resident_tasks=0 if self._llm.tasks is None else self._llm.tasks.n_resident,
            max_resident_tasks=self._max_resident_tasks,
            debts_by_tenant=self._waiting.debts_by_tenant(),
        )

    def on_step(self, step: LlmStep) -> None:
        """As `LlmListener` says."""
        self._n_beats += 1
        self._kv_usage = step.kv_usage
        running = (self._sequences.get(request_id) for request_id in self._running)
        self._metrics.observe_step(
            StepReport(
                n_tokens=step.n_tokens,
                n_distinct_tasks=len({s.task_name for s in running if s is not None} - {None}),
                duration_s=step.duration_s,
                n_preempted=step.n_preempted,
                n_prefix_queries=step.n_prefix_queries,
                n_prefix_hits=step.n_prefix_hits,
            )
        )

    def on_copy(self, seconds: float) -> None:
        """As `LlmListener` says."""
        self._metrics.observe_swap(seconds)

    def _check(self, request: GenerateRequest) -> None:
        """Raises what vLLM would refuse, or do otherwise than asked."""
        vllm_sampling(request, request_arguments(None))
        n_prompt, limit = len(request.prompt_ids), self._limits.max_model_len
        if n_prompt >= limit:  # to be scored alone; vLLM wants room for a token even then
            raise ContextLengthExceeded(n_prompt=n_prompt, max_tokens=1, limit=limit)
        if request.task is not None:
            check_task(request.task.name, request.task.coefficients)

    def _give_up(self, reason: str) -> None:
        if self._ledger.is_closed:
            return
        _log.critical("the engine is given up: %s; restart this process", reason)
        self.end_all(EngineStopped(reason))

    def _beat(self) -> None:
        """Tell the watchdog that all is well while nothing runs, and notice the end of vLLM."""
        if self._ledger.is_closed:
            return
        if not self._llm.is_running:
            self._give_up(_DEAD)
            return
        if not self._running:
            self._n_beats += 1
        asyncio.get_running_loop().call_later(self._idle_wait_s, self._beat)

    def _add(self, sequence: EngineSequence) -> None:
        if self._ledger.is_closed:
            return
        request_id, deadline_s = sequence.request_id, sequence.request.deadline_s
        self._sequences[request_id] = sequence
        self._waiting.add(sequence)
        if deadline_s is not None:
            self._timers[request_id] = asyncio.get_running_loop().call_at(deadline_s, self._expire, sequence)
        self._admit()

    def _admit(self) -> None:
        """Hand those whose turn it is to vLLM, as far as there is room."""
        for priority in self._waiting.priorities():
            while len(self._running) < self._max_running and (head := self._waiting.head(priority)) is not None:
                self._waiting.charge(head, INPUT_TOKEN_COST * head.n_tokens)
                self._waiting.remove(head)
                task = asyncio.get_running_loop().create_task(self._answer(head))
                task.add_done_callback(partial(self._leave, head))
                self._running[head.request_id] = task

    def _abort(self, request_id: str) -> None:
        if request_id in self._sequences:
            self._cut(self._sequences[request_id], Ending(FinishReason.ABORT))

    def _expire(self, sequence: EngineSequence) -> None:
        self._cut(sequence, Ending(FinishReason.ERROR, error=deadline_exceeded(sequence)))

    def _cut_all(self) -> None:
        """What ended requests still hold."""
        for sequence in list(self._sequences.values()):
            self._cut(sequence, Ending(FinishReason.ERROR))

    def _cut(self, sequence: EngineSequence, ending: Ending) -> None:
        """End a request from outside, whether it waits or runs."""
        self._end(sequence, ending)
        if sequence.request_id in self._running:
            self._running[sequence.request_id].cancel()
        else:
            self._waiting.remove(sequence)

    def _end(self, sequence: EngineSequence, ending: Ending) -> None:
        del self._sequences[sequence.request_id]
        timer = self._timers.pop(sequence.request_id, None)
        if timer is not None:
            timer.cancel()
        self._answers.end(sequence, ending)

    def _leave(self, sequence: EngineSequence, _task: asyncio.Task[None]) -> None:
        """A request is out of vLLM; the next one gets its place."""
        del self._running[sequence.request_id]
        self._admit()

    async def _answer(self, sequence: EngineSequence) -> None:
        """All of one request's time in vLLM."""
        row: TaskRow | None = None
        try:
            row = await self._hold_task(sequence)
            await self._generate(sequence, row)
        except EngineDeadError:
            self._give_up(_DEAD)
        except Exception as error:
            if sequence.request_id in self._sequences:
                refused = refusal(error) if isinstance(error, VLLMValidationError) else error
                self._end(sequence, Ending(FinishReason.ERROR, error=refused))
        finally:
            if row is not None and self._llm.tasks is not None:
                self._llm.tasks.release(row)

    async def _hold_task(self, sequence: EngineSequence) -> TaskRow | None:
        """The row of the sequence's task in the workers' tables, pinned."""
        task = sequence.request.task
        if task is None or self._llm.tasks is None:
            return None
        return await self._llm.tasks.acquire(task.coefficients)

    async def _generate(self, sequence: EngineSequence, row: TaskRow | None) -> None:
        """Take what vLLM makes until the answer ends. Raises what vLLM, the constraint or the sink raises."""
        request, arguments = sequence.request, request_arguments(row)
        sampling = vllm_sampling(request, arguments)
        outputs = self._llm.generate(request.request_id, request.prompt_ids, sampling, arguments)
        async with aclosing(outputs):
            async for output in outputs:
                has_ended = self._take(sequence, output)
                if output.finished and not has_ended:
                    raise ServeError(f"vLLM ended the answer early: {output.outputs[0].finish_reason}")
                if has_ended and not output.finished:
                    return

    def _take(self, sequence: EngineSequence, output: RequestOutput) -> bool:
        """Tell the tokens of an output. True once the answer has ended."""
        now_s, params = time.monotonic(), sequence.request.sampling
        if not sequence.output_ids:
            sequence.n_cached_tokens = output.num_cached_tokens or 0
            sequence.scheduled_s = output.metrics.scheduled_ts or now_s
            sequence.prompt_logprobs += prompt_logprobs(output, params)
        for sampled in sampled_tokens(output, params):
            finish = self._answers.add_token(sequence, sampled, now_s)
            self._waiting.charge(sequence, OUTPUT_TOKEN_COST)
            if finish is not None:
                self._end(sequence, Ending(finish, sampled=sampled))
                return True
        return False
