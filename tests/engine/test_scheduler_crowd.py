"""Every request of a random crowd ends, and every promise of the scheduler holds in every step."""

import random
from dataclasses import dataclass

import pytest

from tests.engine.builders import make_sequence
from tests.engine.scheduling import finish_step, ids, make_scheduler


@dataclass(frozen=True)
class Setting:
    n_blocks: int
    block_size: int
    max_running: int
    max_step_tokens: int
    n_requests: int = 300

    @property
    def capacity(self):
        return self.n_blocks * self.block_size


SETTINGS = [
    Setting(n_blocks=12, block_size=4, max_running=5, max_step_tokens=5),
    Setting(n_blocks=7, block_size=3, max_running=8, max_step_tokens=11),
    Setting(n_blocks=30, block_size=1, max_running=6, max_step_tokens=9),
    Setting(n_blocks=60, block_size=4, max_running=16, max_step_tokens=40),
    Setting(n_blocks=4, block_size=16, max_running=3, max_step_tokens=7),
    Setting(n_blocks=1, block_size=20, max_running=1, max_step_tokens=1, n_requests=100),
]


class Simulation:
    """Random arrivals, answers and aborts; every promise of the scheduler is checked in every step."""

    def __init__(self, setting, seed):
        self._random = random.Random(seed)
        self._setting = setting
        self._scheduler = make_scheduler(
            n_blocks=setting.n_blocks,
            block_size=setting.block_size,
            max_running=setting.max_running,
            max_step_tokens=setting.max_step_tokens,
        )
        self._arrival = {}
        self._open = {}
        self.n_ended = 0
        self.n_aborted = 0
        self.n_preempted = 0

    def run(self):
        while self.n_ended + self.n_aborted < self._setting.n_requests:
            self._arrive()
            self._abort_some()
            plan = self._scheduler.plan()
            self._scheduler.check_integrity()
            self._check(plan)
            for request_id in finish_step(self._scheduler, plan):
                del self._open[request_id]
                self.n_ended += 1
        assert not self._open
        assert self._scheduler.kv_usage == 0.0

    def _arrive(self):
        while len(self._arrival) < self._setting.n_requests and self._random.random() < 0.4:
            n_prompt = self._random.randint(1, self._setting.capacity - 1)
            if self._random.random() < 0.7:
                n_prompt = 1 + n_prompt // 6
            max_tokens = self._random.randint(1, min(25, self._setting.capacity - n_prompt))
            sequence = make_sequence(f"r{len(self._arrival)}", n_prompt, max_tokens=max_tokens)
            self._arrival[sequence.request_id] = len(self._arrival)
            self._open[sequence.request_id] = sequence
            self._scheduler.add(sequence)

    def _abort_some(self):
        if self._open and self._random.random() < 0.05:
            request_id = self._random.choice(list(self._open))
            self._scheduler.remove(self._open.pop(request_id))
            self._scheduler.check_integrity()
            self.n_aborted += 1

    def _check(self, plan):
        self.n_preempted += len(plan.preempted)
        assert plan.n_tokens <= self._setting.max_step_tokens
        assert bool(plan.runs) == bool(self._open), "a step with work must do some"
        if self._open:
            assert next(iter(self._open)) in ids(run.sequence for run in plan.runs), "the oldest did not get on"
        running = self._scheduler.running()
        in_step = ids(run.sequence for run in plan.runs)
        assert len(set(in_step)) == len(in_step)
        assert set(in_step) <= set(ids(running))
        assert not set(in_step) & set(ids(plan.preempted))
        assert set(ids(plan.admitted)) <= set(in_step)
        for run in plan.runs:
            assert run.start == run.sequence.n_computed < run.end <= run.sequence.n_tokens
            assert run.end <= len(run.sequence.blocks) * self._setting.block_size
        for sequence in running:
            put_off = sequence.n_tokens - sequence.n_computed == 1 and sequence.request_id not in in_step
            assert not put_off, f"a decode was put off: {sequence.request_id}"
        order = [self._arrival[request_id] for request_id in ids((*running, *self._scheduler.waiting()))]
        assert order == sorted(order), "somebody was overtaken"


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_request_of_a_random_crowd_ends(setting):
    simulation = Simulation(setting, seed=setting.n_blocks)
    simulation.run()
    assert simulation.n_ended > simulation.n_aborted > 0
    assert simulation.n_preempted > 0 or setting.max_running == 1, "too roomy to mean much"
