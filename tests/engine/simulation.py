"""A crowd of random requests against a scheduler, with a pretended KV cache that knows what was written where."""

import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import chain

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.scheduler import ScheduledRun, Scheduler, StepPlan
from onebasis.engine.sequence import EngineSequence
from tests.engine.builders import GREEDY, SCORED, make_sequence, make_task

BLOCK_SIZE = 4
N_BLOCKS = 64
MAX_RUNNING = 12
MAX_STEP_TOKENS = 40
MAX_PREFILL_TOKENS = 24
N_TASKS = 4
MAX_OPEN = 150
FULL_CHECK_EVERY = 20


@dataclass
class Tally:
    """What happened to whom."""

    endings: Counter[str] = field(default_factory=Counter)  # by request id
    kinds: Counter[str] = field(default_factory=Counter)
    n_steps: int = 0
    n_preempted: int = 0
    n_urgent_preemptions: int = 0
    n_cached_tokens: int = 0
    n_replaced: int = 0
    longest_wait: Counter[int] = field(default_factory=Counter)  # by priority, steps from arrival to first admission


class Simulation:
    """Arrivals in bursts, shared prefixes, replaced tasks, aborts, deadlines and failed steps; time counts steps.

    Every step is checked: budget, order and progress of its runs, and that all rows that they read hold the tokens
    they should, of the right version of the task. `check_integrity`, which looks at all that waits, runs on every
    20th step, and on every step in which somebody was preempted, aborted, expired or failed.
    """

    def __init__(self, n_requests: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._n_requests = n_requests
        pool = BlockPool(N_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(
            pool,
            max_running=MAX_RUNNING,
            max_step_tokens=MAX_STEP_TOKENS,
            max_prefill_tokens=MAX_PREFILL_TOKENS,
            prefix_cache=PrefixCache(pool, base="base", basis="basis"),
        )
        self.tally = Tally()
        self._open: dict[str, EngineSequence] = {}
        self._arrived: dict[str, int] = {}
        self._lines: dict[tuple[object, ...], deque[str]] = {}  # requests that were never admitted, in order of arrival
        self._memory: list[list[int | None]] = [[None] * BLOCK_SIZE for _ in range(N_BLOCKS)]
        self._history: dict[str, list[int]] = {}
        self._versions = [1] * N_TASKS
        self._prefixes = [tuple(self._random.choices(range(50), k=24)) for _ in range(3)]

    def run(self) -> Tally:
        """Until every request has ended."""
        while len(self._arrived) < self._n_requests or self._open:
            self._arrive()
            disturbed = self._replace_abort_expire()
            plan = self.scheduler.plan()
            self._check(plan)
            disturbed |= self._finish(plan)
            if disturbed or plan.preempted or self.tally.n_steps % FULL_CHECK_EVERY == 0:
                self.scheduler.check_integrity()
            self.tally.n_steps += 1
        self.scheduler.check_integrity()
        assert (self.scheduler.n_waiting, self.scheduler.n_running, self.scheduler.kv_usage) == (0, 0, 0.0)
        return self.tally

    def _arrive(self) -> None:
        is_burst = self.tally.n_steps // 400 % 2 == 0
        n_new = self._random.choice((0, 1, 2, 4) if is_burst else (0,) * 9 + (1,))
        for _ in range(n_new):
            if len(self._arrived) < self._n_requests and len(self._open) < MAX_OPEN:
                self._add(f"r{len(self._arrived)}")

    def _add(self, request_id: str) -> None:
        rng = self._random
        n_tail = rng.choice((1, 3, 7, 12, 50))
        prompt = rng.choice(self._prefixes)[: rng.choice((0, 8, 16, 24))] + tuple(rng.choices(range(50), k=n_tail))
        task = rng.randrange(-1, N_TASKS)
        sequence = make_sequence(
            request_id,
            prompt,
            max_tokens=rng.choice((1, 2, 6, 12, 40)),
            task=None if task < 0 else make_task(f"task-{task}", self._versions[task]),
            tenant=rng.choices(("heavy", "light", "rare", None), weights=(20, 4, 1, 2))[0],
            priority=rng.choices((-1, 0, 5), weights=(1, 16, 3))[0],
            deadline_s=self.tally.n_steps + rng.randint(0, 200) if rng.random() < 0.1 else None,
            sampling=SCORED if rng.random() < 0.05 else GREEDY,
        )
        self._open[request_id] = sequence
        self._arrived[request_id] = self.tally.n_steps
        self._line(sequence).append(request_id)
        self._history[request_id] = []
        self.scheduler.add(sequence)

    def _replace_abort_expire(self) -> bool:
        rng = self._random
        if rng.random() < 0.02:
            self._versions[rng.randrange(N_TASKS)] += 1
            self.tally.n_replaced += 1
        expired = self.scheduler.expired(float(self.tally.n_steps))
        for sequence in expired:
            self._end(sequence, "expired")
        if self._open and rng.random() < 0.03:
            self._end(rng.choice(list(self._open.values())), "aborted")
            return True
        return bool(expired)

    def _finish(self, plan: StepPlan) -> bool:
        """Compute, or fail: then the step's sequences end and nothing is committed."""
        if self._random.random() < 0.001 and plan.runs:
            for run in plan.runs:
                self._end(run.sequence, "failed")
            return True
        for run in plan.runs:
            known = self._known(run.sequence)
            for position in range(run.start, run.end):
                self._memory[run.sequence.blocks[position // BLOCK_SIZE]][position % BLOCK_SIZE] = known[position]
        self.scheduler.commit(plan)
        for run in plan.runs:
            if run.samples and run.sequence.append(self._random.randrange(50)) is not None:
                self._end(run.sequence, "finished")
        return False

    def _end(self, sequence: EngineSequence, kind: str) -> None:
        self.scheduler.remove(sequence)
        del self._open[sequence.request_id], self._history[sequence.request_id]
        if not sequence.ticket:
            self._line(sequence).remove(sequence.request_id)
        self.tally.endings[sequence.request_id] += 1
        self.tally.kinds[kind] += 1

    def _check(self, plan: StepPlan) -> None:
        running = self.scheduler.running()
        in_step = {run.sequence.request_id for run in plan.runs}
        decodes = [run for run in plan.runs if run.end - run.start == 1 and run.sequence not in plan.admitted]
        assert len(in_step) == len(plan.runs) <= MAX_RUNNING
        assert plan.n_tokens <= MAX_STEP_TOKENS
        assert not decodes or plan.n_tokens - len(decodes) <= MAX_PREFILL_TOKENS
        assert bool(plan.runs) == bool(self._open), "a step with work must do some"
        assert in_step <= {sequence.request_id for sequence in running}
        for sequence in running:
            assert sequence.request_id in in_step or sequence.n_tokens - sequence.n_computed > 1, "a decode was put off"
        for run in plan.runs:
            assert (run.sequence.request.deadline_s or math.inf) > self.tally.n_steps, "computed past its deadline"
            self._check_run(run)
        self._check_order(plan, running)

    def _check_run(self, run: ScheduledRun) -> None:
        sequence = run.sequence
        assert run.start == sequence.n_computed < run.end <= sequence.n_tokens
        assert len(sequence.blocks) * BLOCK_SIZE >= run.end
        read = list(chain.from_iterable(map(self._memory.__getitem__, sequence.blocks)))[: run.start]
        assert read == self._known(sequence)[: run.start], "rows were lost, overwritten or are of another task"

    def _check_order(self, plan: StepPlan, running: tuple[EngineSequence, ...]) -> None:
        tally = self.tally
        tally.n_preempted += len(plan.preempted)
        for victim in plan.preempted:
            ranks = [(s.priority, s.ticket) for s in running if s not in plan.admitted]
            assert all((victim.priority, victim.ticket) > rank for rank in ranks), "a younger one could have given way"
        if plan.preempted and plan.admitted:
            tally.n_urgent_preemptions += 1
            most_urgent = min(victim.priority for victim in plan.preempted)
            assert all(sequence.priority < most_urgent for sequence in plan.admitted)
        most_urgent_left = min((s.priority for s in self.scheduler.waiting()), default=9) if plan.admitted else 9
        for sequence in plan.admitted:
            assert sequence.priority <= most_urgent_left, "overtaken by a less urgent one"
            line = self._line(sequence)
            if line and line[0] == sequence.request_id:
                line.popleft()
                wait = tally.n_steps - self._arrived[sequence.request_id]
                tally.longest_wait[sequence.priority] = max(wait, tally.longest_wait[sequence.priority])
                tally.n_cached_tokens += sequence.n_cached_tokens
                assert not (sequence.request.needs_prompt_logits and sequence.n_cached_tokens)
            else:
                assert sequence.request_id not in line, "somebody was overtaken in the line of a task"

    def _line(self, sequence: EngineSequence) -> deque[str]:
        key = (sequence.priority, sequence.tenant, sequence.task_name)
        return self._lines.setdefault(key, deque())

    def _known(self, sequence: EngineSequence) -> list[int]:
        """By position, a number that stands for the task's version and all tokens up to there."""
        history = self._history[sequence.request_id]
        task = sequence.request.task
        digest = None if task is None else task.coefficients.digest
        for token_id in sequence.tokens(len(history), sequence.n_tokens):
            history.append(hash((history[-1] if history else digest, token_id)))
        return history
