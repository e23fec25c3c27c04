"""What the next step computes. server/docs/scheduling.md has the whole policy.

Order: lower priority numbers first, strictly. In a class, decodes before prefills, running before waiting, and waiting
ones by fair turns (engine/waiting.py). Admission and preemption are by blocks of the KV cache.

Pure bookkeeping: no torch, no clock, no thread.
"""

from bisect import insort
from dataclasses import dataclass

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.deadlines import Deadlines
from onebasis.engine.fairness import INPUT_TOKEN_COST, OUTPUT_TOKEN_COST
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.sequence import EngineSequence
from onebasis.engine.waiting import WaitingQueue


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
    """One step: its runs, and which sequences entered or left the running set for it, in the order left, entered.

    Prompt tokens that were looked up in the prefix cache for the first time, and how many of them it had:
    `n_prefix_queries`, `n_prefix_hits`.
    """

    runs: tuple[ScheduledRun, ...]
    admitted: tuple[EngineSequence, ...]
    preempted: tuple[EngineSequence, ...]
    n_prefix_queries: int = 0
    n_prefix_hits: int = 0

    @property
    def n_tokens(self) -> int:
        return sum(run.end - run.start for run in self.runs)


class _Step:
    """A plan in the making."""

    def __init__(self, budget: int) -> None:
        self.budget = budget  # tokens that may still be added
        self.runs: dict[str, ScheduledRun] = {}
        self.admitted: list[EngineSequence] = []
        self.preempted: list[EngineSequence] = []
        self.n_prefix_queries = 0
        self.n_prefix_hits = 0

    def add(self, sequence: EngineSequence) -> None:
        """As many of the sequence's next tokens as the budget holds."""
        end = min(sequence.n_tokens, sequence.n_computed + self.budget)
        self.runs[sequence.request_id] = ScheduledRun(sequence, sequence.n_computed, end)
        self.budget -= end - sequence.n_computed

    def plan(self) -> StepPlan:
        return StepPlan(
            tuple(self.runs.values()),
            tuple(self.admitted),
            tuple(self.preempted),
            self.n_prefix_queries,
            self.n_prefix_hits,
        )


class Scheduler:
    """Invariant: a sequence is in exactly one of `_waiting` and `_running`; only running ones use blocks, and those of
    all their known tokens but the newest; `_running` is sorted by priority and ticket, so its last gives way first.

    Args:
        pool: every block belongs to it or to running sequences.
        max_running: most sequences in a step.
        max_step_tokens: most tokens in a step; at least max_running, so that a decode is never put off.
        max_prefill_tokens: most prefill tokens in a step that has decodes, so that a long prompt does not make them
            wait for all of it; by default as many as the step holds.
        prefix_cache: over the same pool; None to compute every prompt.

    Raises:
        ValueError: max_step_tokens is smaller than max_running.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_running: int,
        max_step_tokens: int,
        max_prefill_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        if max_step_tokens < max_running:
            raise ValueError(f"max_step_tokens {max_step_tokens} is smaller than max_running {max_running}")
        self._pool = pool
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._max_prefill_tokens = max_prefill_tokens or max_step_tokens
        self._prefix_cache = prefix_cache
        self._waiting = WaitingQueue()
        self._running: list[EngineSequence] = []
        self._deadlines = Deadlines()
        self._n_tickets = 0

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

    @property
    def waiting_tasks(self) -> tuple[str, ...]:
        """Tasks that sequences wait for. From any thread."""
        return self._waiting.task_names()

    def debts_by_tenant(self) -> dict[str | None, int]:
        """Of every waiting tenant, the tokens it is behind the most served of its class. From any thread."""
        return self._waiting.debts_by_tenant()

    def waiting(self) -> tuple[EngineSequence, ...]:
        """By class; each task's in order of arrival."""
        return tuple(self._waiting)

    def running(self) -> tuple[EngineSequence, ...]:
        """By priority, then age. From any thread."""
        return tuple(self._running)

    def add(self, sequence: EngineSequence) -> None:
        """Queue a sequence. The caller has checked that prompt and output fit the pool when it is empty."""
        self._waiting.add(sequence)
        self._deadlines.add(sequence)

    def remove(self, sequence: EngineSequence) -> None:
        """Forget a sequence that has ended, and free its blocks. Raises KeyError if it is not here."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting.remove(sequence)
        self._deadlines.remove(sequence)

    def expired(self, now_s: float) -> tuple[EngineSequence, ...]:
        """Sequences, waiting or running, whose deadline is not after `now_s`. Each is told once: remove it before the
        next plan, so that nothing more is computed for it.
        """
        return self._deadlines.passed(now_s)

    def plan(self) -> StepPlan:
        """Decide the next step and claim the blocks it writes to. Empty when nothing can run.

        Decodes first; then class by class the running prefills and new admissions, as far as the budget goes. A
        sequence that does not fit holds back those behind it and all less urgent classes, so that it can't starve.
        After a preemption nobody but the urgent sequence that caused it is admitted.
        """
        step = _Step(self._max_step_tokens)
        self._plan_decodes(step)
        if step.runs:
            step.budget = min(step.budget, self._max_prefill_tokens)
        may_admit = not step.preempted
        for priority in sorted({*(sequence.priority for sequence in self._running), *self._waiting.priorities()}):
            self._plan_prefills(step, priority)
            may_admit = may_admit and self._admit_class(step, priority) and not step.preempted
        return step.plan()

    def commit(self, plan: StepPlan) -> None:
        """Note that the plan's tokens are in the cache now."""
        for run in plan.runs:
            run.sequence.n_computed = run.end
            if self._prefix_cache is not None:
                self._prefix_cache.record(run.sequence, run.start, run.end)
            if run.samples:
                self._waiting.charge(run.sequence, OUTPUT_TOKEN_COST)

    def check_integrity(self) -> None:
        """Raise AssertionError if an invariant is broken. Tests call it after every operation. O(waiting + blocks)."""
        self._pool.check_integrity(block for sequence in self._running for block in sequence.blocks)
        self._waiting.check_integrity()
        if len(self._running) > self._max_running:
            raise AssertionError(f"{len(self._running)} running, at most {self._max_running} may")
        if self._running != sorted(self._running, key=_rank):
            raise AssertionError("the running sequences are out of order")
        for sequence in self._waiting:
            if sequence.blocks or sequence.n_computed or sequence in self._running:
                raise AssertionError(f"{sequence.request_id} waits and owns blocks or runs")
        for sequence in self._running:
            if not sequence.n_computed <= len(sequence.blocks) * self._pool.block_size:
                raise AssertionError(f"{sequence.request_id} has tokens outside of its blocks")
            if not sequence.n_computed < sequence.n_tokens:
                raise AssertionError(f"{sequence.request_id} runs with nothing to compute")

    def _plan_decodes(self, step: _Step) -> None:
        for sequence in self.running():
            if _is_decode(sequence) and sequence not in step.preempted and self._claim_next(step, sequence):
                step.add(sequence)

    def _claim_next(self, step: _Step, sequence: EngineSequence) -> bool:
        """Give `sequence` the block for its newest token, preempting from the end; False if it went itself."""
        n_missing = self._pool.n_needed(sequence.n_tokens) - len(sequence.blocks)
        while n_missing > self._pool.n_free:
            victim = self._running[-1]
            self._preempt(step, victim)
            if victim is sequence:
                return False
        sequence.blocks += self._pool.take(max(0, n_missing))
        return True

    def _plan_prefills(self, step: _Step, priority: int) -> None:
        for sequence in self._running:
            if sequence.priority == priority and step.budget > 0 and not _is_decode(sequence):
                step.add(sequence)

    def _admit_class(self, step: _Step, priority: int) -> bool:
        """Admit from one class until the budget is used up. False if one did not fit."""
        while step.budget > 0 and (sequence := self._waiting.head(priority)) is not None:
            known = [] if self._prefix_cache is None else self._prefix_cache.find(sequence)
            if not self._make_room(step, sequence, known):
                return False
            self._admit(step, sequence, known)
        return True

    def _make_room(self, step: _Step, sequence: EngineSequence, known: list[int]) -> bool:
        """Preempt less urgent ones until `sequence` fits; none if that would not be enough."""
        victims = [other for other in self._running if other.priority > sequence.priority]
        n_gained = self._pool.n_freed((victim.blocks for victim in victims), beside=frozenset(known))
        if not self._fits(sequence, known, len(self._running) - len(victims), n_gained):
            return False
        while not self._fits(sequence, known, len(self._running)):
            self._preempt(step, victims.pop())
        return True

    def _fits(self, sequence: EngineSequence, known: list[int], n_running: int, n_gained: int = 0) -> bool:
        """Whether it may join `n_running` others when `n_gained` more blocks are free. One block for each of those
        stays free: none of them has to preempt for the next block it fills.
        """
        n_new = self._pool.n_needed(sequence.n_tokens) - len(known)
        return n_running < self._max_running and n_new + n_running <= self._pool.n_free_beside(known) + n_gained

    def _admit(self, step: _Step, sequence: EngineSequence, known: list[int]) -> None:
        n_known = len(known) * self._pool.block_size
        self._pool.share(known)
        sequence.blocks = known + self._pool.take(self._pool.n_needed(sequence.n_tokens) - len(known))
        sequence.n_computed = n_known
        if sequence.ticket == 0:
            self._n_tickets += 1
            sequence.ticket = self._n_tickets
            self._waiting.charge(sequence, INPUT_TOKEN_COST * (sequence.n_tokens - n_known))
            sequence.n_cached_tokens = n_known
            if self._prefix_cache is not None and not sequence.request.needs_prompt_logits:
                step.n_prefix_queries += sequence.n_tokens
                step.n_prefix_hits += n_known
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_rank)
        step.admitted.append(sequence)
        step.add(sequence)

    def _preempt(self, step: _Step, sequence: EngineSequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        self._waiting.put_back(sequence)
        step.runs.pop(sequence.request_id, None)
        step.preempted.append(sequence)

    def _free(self, sequence: EngineSequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.n_computed = 0


def _is_decode(sequence: EngineSequence) -> bool:
    """Whether one token is all that it needs."""
    return sequence.n_tokens - sequence.n_computed == 1


def _rank(sequence: EngineSequence) -> tuple[int, int]:
    return sequence.priority, sequence.ticket
