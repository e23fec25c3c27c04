"""What requests hear of their tokens and endings, told and counted in one place for every engine."""

import logging
import time
from dataclasses import dataclass

from onebasis.core.errors import DeadlineExceeded, ServeError
from onebasis.core.request import FinishReason, TokenEvent
from onebasis.engine.ledger import Ledger
from onebasis.engine.sampler import Sampled
from onebasis.engine.sequence import EngineSequence
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.reports import RequestReport
from onebasis.telemetry.traces import Traces

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ends: why, with the last token where one ended it, with the error where one did."""

    finish: FinishReason
    sampled: Sampled | None = None
    error: Exception | None = None


class Answers:
    """Tells requests what becomes of them; metrics and traces hear of it here and nowhere else.

    `add_token` is for the engine's thread. An ending comes from whoever takes it from the ledger, on any thread.
    """

    def __init__(self, ledger: Ledger, metrics: Metrics, traces: Traces | None) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._traces = traces

    def add_token(self, sequence: EngineSequence, sampled: Sampled, now_s: float) -> FinishReason | None:
        """Append a token to its sequence and tell it; the last one is left to `end`, with the reason returned.

        Raises:
            Exception: what the request's constraint or sink raises; the sequence should end with it.
        """
        if sequence.last_token_s is None:
            sequence.first_token_s = now_s
            self._metrics.observe_first_token(now_s - sequence.arrived_s)
        else:
            self._metrics.observe_token_gap(now_s - sequence.last_token_s)
        sequence.last_token_s = now_s
        finish = sequence.append(sampled.token_id)
        if finish is None:
            self._ledger.tell(sequence, _event(sequence, sampled))
        return finish

    def end(self, sequence: EngineSequence, ending: Ending) -> None:
        """Give a request its ending, unless it has had it."""
        if self._ledger.take(sequence):
            self._give_ending(sequence, ending)

    def end_all(self, error: ServeError) -> None:
        """Accept no more, and end everything in flight with this error."""
        ending = Ending(FinishReason.ERROR, error=error)
        for sequence in self._ledger.close(error):
            self._give_ending(sequence, ending)

    def _give_ending(self, sequence: EngineSequence, ending: Ending) -> None:
        """Count the ending and tell it. For the one thread that took it from the ledger."""
        report = _report(sequence, ending.finish)
        self._metrics.observe_finished(report)
        if self._traces is not None:
            self._traces.observe_finished(report)
        try:
            sequence.request.sink(_event(sequence, ending.sampled, finish=ending.finish, error=ending.error))
        except Exception as sink_error:
            _log.error("nobody could be told how %s ended", sequence.request_id, exc_info=sink_error)


def deadline_exceeded(sequence: EngineSequence) -> DeadlineExceeded:
    """What a request ends with whose time is up."""
    request = sequence.request
    allowed_s = (request.deadline_s or sequence.arrived_s) - sequence.arrived_s
    return DeadlineExceeded(allowed_s=allowed_s, n_output=len(sequence.output_ids), max_tokens=request.max_tokens)


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
        n_cached_tokens=sequence.n_cached_tokens,
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
        n_cached=sequence.n_cached_tokens,
        request_id=request.request_id,
        digest=None if request.task is None else request.task.coefficients.digest,
        traceparent=request.traceparent,
    )
