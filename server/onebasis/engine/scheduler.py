"""What the next step computes. First come, first served; decodes before prefills; recompute when blocks run out.

Pure bookkeeping: no torch, no clock, no thread.
"""

from collections import deque
from dataclasses import dataclass

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.sequence import EngineSequence


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """Tokens `start` to `end` of one sequence; `end` at the sequence's last token means that it gets a next one."""

    sequence: EngineSequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        return self.end == self.sequence.n_tokens

    @property
    def scored(self) -> range:
        """Positions whose logits give log-probabilities of prompt tokens that are wanted and not yet known."""
        request = self.sequence.request
        if not request.needs_prompt_logits:
            return range(0)
        n_known = len(self.sequence.prompt_logprobs)
        return range(max(self.start, n_known), min(self.end, len(request.prompt_ids) - 1))


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: its runs, and which sequences entered or left the running set for it."""

    runs: tuple[ScheduledRun, ...]
    admitted: tuple[EngineSequence, ...]
    preempted: tuple[EngineSequence, ...]

    @property
    def n_tokens(self) -> int:
        return sum(run.end - run.start for run in self.runs)


class Scheduler:
    """Invariant: a sequence is in exactly one of `_waiting` and `_running`; only running ones own blocks.

    Args:
        pool: every block belongs to it or to a running sequence.
        max_running: most sequences in a step.
        max_step_tokens: most tokens in a step; at least max_running, so that a decode is never put off.

    Raises:
        ValueError: max_step_tokens is smaller than max_running.
    """

    def __init__(self, pool: BlockPool, *, max_running: int, max_step_tokens: int) -> None:
        if max_step_tokens < max_running:
            raise ValueError(f"max_step_tokens {max_step_tokens} is smaller than max_running {max_running}")
        self._pool = pool
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._waiting: deque[EngineSequence] = deque()
        self._running: list[EngineSequence] = []  # in order of admission

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the cache's blocks in use, 0 to 1."""
        return self._pool.usage

    def waiting(self) -> tuple[EngineSequence, ...]:
        return tuple(self._waiting)

    def running(self) -> tuple[EngineSequence, ...]:
        return tuple(self._running)

    def add(self, sequence: EngineSequence) -> None:
        """Queue a sequence. The caller has checked that prompt and output fit the pool when it is empty."""
        self._waiting.append(sequence)

    def remove(self, sequence: EngineSequence) -> None:
        """Forget a sequence that has ended, and free its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting.remove(sequence)

    def plan(self) -> StepPlan:
        """Decide the next step and claim the blocks it writes to. Empty when nothing can run.

        Every running sequence gets its next token or prefill chunk, oldest first, as far as the budget goes; then
        waiting ones are admitted whose known tokens fit the free blocks. When a sequence needs a block and none is
        free, the youngest running one gives its blocks back and waits, at the front, to be computed again.
        """
        budget = self._max_step_tokens
        runs: list[ScheduledRun] = []
        preempted: list[EngineSequence] = []
        for sequence in sorted(self._running, key=_prefill_last):
            if sequence in preempted or budget == 0:
                continue
            end = min(sequence.n_tokens, sequence.n_computed + budget)
            if self._claim(sequence, end, preempted, planned={run.sequence.request_id for run in runs}):
                runs.append(ScheduledRun(sequence, sequence.n_computed, end))
                budget -= end - sequence.n_computed
        admitted = [] if preempted else self._admit(runs, budget)
        return StepPlan(tuple(runs), tuple(admitted), tuple(preempted))

    def commit(self, plan: StepPlan) -> None:
        """Note that the plan's tokens are in the cache now."""
        for run in plan.runs:
            run.sequence.n_computed = run.end

    def check_integrity(self) -> None:
        """Raise AssertionError if an invariant is broken. Tests call it after every operation."""
        self._pool.check_integrity(block for sequence in self._running for block in sequence.blocks)
        if len(self._running) > self._max_running:
            raise AssertionError(f"{len(self._running)} running, at most {self._max_running} may")
        for sequence in self._waiting:
            if sequence.blocks or sequence.n_computed:
                raise AssertionError(f"{sequence.request_id} waits and owns blocks")
        for sequence in self._running:
            if not sequence.n_computed <= len(sequence.blocks) * self._pool.block_size:
                raise AssertionError(f"{sequence.request_id} has tokens outside of its blocks")
            if not sequence.n_computed < sequence.n_tokens:
                raise AssertionError(f"{sequence.request_id} runs with nothing to compute")

    def _claim(self, sequence: EngineSequence, end: int, preempted: list[EngineSequence], planned: set[str]) -> bool:
        """Give `sequence` the blocks for `end` tokens, preempting younger ones; False if it was preempted itself."""
        n_missing = self._pool.n_needed(end) - len(sequence.blocks)
        while n_missing > self._pool.n_free:
            victim = next(candidate for candidate in reversed(self._running) if candidate.request_id not in planned)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        sequence.blocks += self._pool.take(max(0, n_missing))
        return True

    def _admit(self, runs: list[ScheduledRun], budget: int) -> list[EngineSequence]:
        admitted: list[EngineSequence] = []
        while self._waiting and budget > 0 and len(self._running) < self._max_running:
            sequence = self._waiting[0]
            n_needed = self._pool.n_needed(sequence.n_tokens)
            if n_needed > self._pool.n_free:
                break
            self._waiting.popleft()
            sequence.blocks = self._pool.take(n_needed)
            self._running.append(sequence)
            end = min(sequence.n_tokens, budget)
            runs.append(ScheduledRun(sequence, 0, end))
            budget -= end
            admitted.append(sequence)
        return admitted

    def _preempt(self, sequence: EngineSequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        self._waiting.appendleft(sequence)

    def _free(self, sequence: EngineSequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.n_computed = 0


def _prefill_last(sequence: EngineSequence) -> bool:
    """Sort key: sequences that need one token come before those still in their prompt, each by age."""
    return sequence.n_tokens - sequence.n_computed > 1
