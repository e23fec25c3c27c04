import random
import subprocess
import sys
from dataclasses import dataclass

import pytest

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.scheduler import Scheduler
from tests.engine.builders import make_sequence

TOKEN = 7


def make_scheduler(*, n_blocks=100, block_size=4, max_running=4, max_step_tokens=10, max_prefill_tokens=None):
    return Scheduler(
        BlockPool(n_blocks, block_size),
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_prefill_tokens=max_prefill_tokens,
    )


def spans(plan):
    return [(run.sequence.request_id, run.start, run.end) for run in plan.runs]


def ids(sequences):
    return [sequence.request_id for sequence in sequences]


def finish_step(scheduler, plan):
    """Commit and sample; sequences that end leave. Their ids."""
    sampling = [run.sequence for run in plan.runs if run.samples]
    scheduler.commit(plan)
    ended = [sequence for sequence in sampling if sequence.append(TOKEN) is not None]
    for sequence in ended:
        scheduler.remove(sequence)
    scheduler.check_integrity()
    return ids(ended)


def step(scheduler):
    plan = scheduler.plan()
    scheduler.check_integrity()
    finish_step(scheduler, plan)
    return plan


def started(scheduler, *sequences):
    """Add sequences and run until each has its first token."""
    for sequence in sequences:
        scheduler.add(sequence)
    while not all(sequence.output_ids for sequence in sequences):
        assert not step(scheduler).preempted
    return scheduler


def test_nothing_to_do_is_an_empty_plan():
    plan = make_scheduler().plan()
    assert (plan.runs, plan.admitted, plan.preempted, plan.n_tokens) == ((), (), (), 0)


def test_a_step_must_hold_all_decodes():
    with pytest.raises(ValueError, match="max_step_tokens 3 is smaller than max_running 4"):
        make_scheduler(max_running=4, max_step_tokens=3)


def test_a_prompt_is_computed_in_chunks_and_samples_with_its_last():
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", 23))
    plans = [step(scheduler) for _ in range(4)]
    assert [spans(plan) for plan in plans] == [[("a", 0, 10)], [("a", 10, 20)], [("a", 20, 23)], [("a", 23, 24)]]
    assert [ids(plan.admitted) for plan in plans] == [["a"], [], [], []]


def test_only_the_chunk_with_the_last_known_token_samples():
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", 12))
    first = scheduler.plan()
    assert not first.runs[0].samples
    finish_step(scheduler, first)
    assert scheduler.plan().runs[0].samples


def test_decodes_come_first_and_prefills_share_the_rest():
    scheduler = started(make_scheduler(), make_sequence("a", 3), make_sequence("b", 4))
    scheduler.add(make_sequence("c", 30))
    assert spans(step(scheduler)) == [("a", 3, 4), ("b", 4, 5), ("c", 0, 8)]
    assert spans(step(scheduler)) == [("a", 4, 5), ("b", 5, 6), ("c", 8, 16)]


def test_a_young_decode_is_not_put_off_by_an_older_prefill():
    scheduler = make_scheduler(max_step_tokens=10, max_running=2)
    scheduler.add(make_sequence("long", 28))
    scheduler.add(make_sequence("short", 2))
    assert spans(step(scheduler)) == [("long", 0, 10)]
    assert spans(step(scheduler)) == [("long", 10, 20)]
    assert spans(step(scheduler)) == [("long", 20, 28), ("short", 0, 2)]
    scheduler.remove(scheduler.running()[0])
    scheduler.add(make_sequence("next", 25))
    for n_chunk in (9, 9, 7):
        plan = step(scheduler)
        assert [end - start for _, start, end in spans(plan)] == [1, n_chunk]


def test_several_prompts_fill_one_step():
    scheduler = make_scheduler()
    for name, n_prompt in (("a", 4), ("b", 3), ("c", 9), ("d", 1)):
        scheduler.add(make_sequence(name, n_prompt))
    assert spans(step(scheduler)) == [("a", 0, 4), ("b", 0, 3), ("c", 0, 3)]
    assert spans(step(scheduler)) == [("a", 4, 5), ("b", 3, 4), ("c", 3, 9), ("d", 0, 1)]


def test_no_more_run_than_may():
    scheduler = make_scheduler(max_running=2)
    for name in "abc":
        scheduler.add(make_sequence(name, 2))
    step(scheduler)
    assert ids(scheduler.running()) == ["a", "b"]
    assert (scheduler.n_running, scheduler.n_waiting) == (2, 1)
    scheduler.remove(scheduler.running()[0])
    plan = step(scheduler)
    assert ids(plan.admitted) == ["c"]


def test_a_small_request_does_not_overtake_one_that_waits_for_blocks():
    scheduler = make_scheduler(n_blocks=6, max_step_tokens=20)
    started(scheduler, make_sequence("a", 10))
    scheduler.add(make_sequence("big", 16))
    scheduler.add(make_sequence("small", 1))
    plan = step(scheduler)
    assert ids(plan.admitted) == []
    assert ids(scheduler.waiting()) == ["big", "small"]
    scheduler.remove(scheduler.running()[0])
    assert ids(step(scheduler).admitted) == ["big", "small"]


def test_admission_claims_the_blocks_of_all_known_tokens_at_once():
    scheduler = make_scheduler(n_blocks=10, max_step_tokens=5)
    scheduler.add(make_sequence("a", 17))
    step(scheduler)
    assert len(scheduler.running()[0].blocks) == 5
    assert scheduler.kv_usage == 0.5


def test_a_decode_takes_a_block_only_when_it_needs_one():
    scheduler = started(make_scheduler(), make_sequence("a", 3))
    (sequence,) = scheduler.running()
    held = []
    for _ in range(6):
        step(scheduler)
        held.append(len(sequence.blocks))
    assert held == [1, 2, 2, 2, 2, 3]


def test_the_youngest_goes_when_blocks_run_out_and_comes_back_first():
    scheduler = make_scheduler(n_blocks=8, max_step_tokens=30)
    started(scheduler, make_sequence("old", 7), make_sequence("mid", 7), make_sequence("young", 7))
    scheduler.add(make_sequence("new", 1))
    old, mid, young = scheduler.running()
    step(scheduler)  # all at 8 computed tokens, their 6 blocks full, 2 free
    plan = step(scheduler)
    assert ids(plan.preempted) == ["young"]
    assert spans(plan) == [("old", 8, 9), ("mid", 8, 9)]
    assert ids(scheduler.running()) == ["old", "mid"]
    assert ids(scheduler.waiting()) == ["young", "new"]
    assert (young.blocks, young.n_computed, len(young.output_ids)) == ([], 0, 2)
    scheduler.remove(mid)
    plan = step(scheduler)
    assert ids(plan.admitted) == ["young"]
    assert spans(plan) == [("old", 9, 10), ("young", 0, 9)], "its own output is computed again, too"
    assert len(young.output_ids) == 3
    assert old.n_computed == 10


def test_several_go_in_one_step_and_keep_their_order():
    scheduler = make_scheduler(n_blocks=11, max_running=6, block_size=2, max_step_tokens=8)
    started(scheduler, *[make_sequence(name, 1) for name in "abcdef"])
    preempted = [ids(step(scheduler).preempted) for _ in range(4)]
    assert preempted == [[], ["f"], [], ["e", "d"]]
    assert ids(scheduler.running()) == ["a", "b", "c"]
    assert ids(scheduler.waiting()) == ["d", "e", "f"]


def test_the_youngest_gives_way_itself_when_it_is_the_one_in_need():
    scheduler = make_scheduler(n_blocks=5)
    started(scheduler, make_sequence("old", 12), make_sequence("young", 3))
    assert not step(scheduler).preempted
    plan = step(scheduler)
    assert ids(plan.preempted) == ["young"]
    assert ids(run.sequence for run in plan.runs) == ["old"]


def test_nobody_is_admitted_in_a_step_that_preempts():
    scheduler = make_scheduler(n_blocks=5)
    started(scheduler, make_sequence("old", 6), make_sequence("young", 7))
    step(scheduler)
    scheduler.add(make_sequence("new", 1))
    plan = step(scheduler)
    assert ids(plan.preempted) == ["young"]
    assert plan.admitted == (), "although two blocks are free now"
    assert ids(step(scheduler).admitted) == []


def test_a_removed_sequence_gives_its_blocks_back_wherever_it_is():
    scheduler = make_scheduler(max_running=1)
    running, waiting = make_sequence("running", 9), make_sequence("waiting", 2)
    scheduler.add(running)
    scheduler.add(waiting)
    step(scheduler)
    scheduler.remove(waiting)
    scheduler.check_integrity()
    scheduler.remove(running)
    scheduler.check_integrity()
    assert (scheduler.n_running, scheduler.n_waiting, scheduler.kv_usage) == (0, 0, 0.0)
    with pytest.raises(KeyError):
        scheduler.remove(running)


def test_a_prompt_is_held_to_a_share_of_the_step_while_others_decode():
    scheduler = make_scheduler(max_step_tokens=20, max_prefill_tokens=6)
    scheduler.add(make_sequence("a", 25, max_tokens=3))
    assert spans(step(scheduler)) == [("a", 0, 20)], "nobody decodes: the whole step"
    scheduler.add(make_sequence("b", 30))
    assert spans(step(scheduler)) == [("a", 20, 25), ("b", 0, 15)]
    assert spans(step(scheduler)) == [("a", 25, 26), ("b", 15, 21)]
    assert spans(step(scheduler)) == [("a", 26, 27), ("b", 21, 27)]
    assert spans(step(scheduler)) == [("b", 27, 30)]


def test_an_admission_leaves_each_running_sequence_its_next_block():
    scheduler = make_scheduler(n_blocks=8, max_step_tokens=40)
    started(scheduler, make_sequence("a", 4), make_sequence("b", 4))  # 2 blocks, and soon 2 more
    scheduler.add(make_sequence("c", 20))
    assert ids(step(scheduler).admitted) == []
    scheduler.remove(scheduler.running()[0])
    assert ids(step(scheduler).admitted) == ["c"]


def test_the_more_urgent_is_computed_first_even_when_the_other_has_begun():
    scheduler = make_scheduler()
    scheduler.add(make_sequence("later", 25, priority=1))
    step(scheduler)
    scheduler.add(make_sequence("urgent", 8))
    assert spans(step(scheduler)) == [("urgent", 0, 8), ("later", 10, 12)]
    assert ids(scheduler.running()) == ["urgent", "later"]


def test_an_urgent_sequence_takes_the_place_of_the_youngest_of_the_least_urgent():
    scheduler = make_scheduler(max_running=3)
    started(scheduler, *[make_sequence(name, 2, priority=p) for name, p in (("low", 5), ("mid", 1), ("low2", 5))])
    scheduler.add(make_sequence("urgent", 3))
    scheduler.add(make_sequence("mid2", 3, priority=1))
    plan = step(scheduler)
    assert ids(plan.preempted) == ["low2"]
    assert spans(plan) == [("mid", 2, 3), ("low", 2, 3), ("urgent", 0, 3)]
    assert ids(scheduler.waiting()) == ["mid2", "low2"]
    assert ids(step(scheduler).preempted) == ["low"], "in favour of mid2"


def test_an_urgent_sequence_takes_blocks_only_if_that_lets_it_run():
    scheduler = make_scheduler(n_blocks=10, max_step_tokens=50)
    started(scheduler, make_sequence("mine", 16), make_sequence("low", 12, priority=1))
    urgent = make_sequence("urgent", 24)
    scheduler.add(urgent)
    assert not step(scheduler).preempted, "6 blocks and 1 to spare are not to be had while mine runs"
    scheduler.remove(scheduler.running()[0])
    plan = step(scheduler)
    assert (ids(plan.preempted), ids(plan.admitted)) == (["low"], ["urgent"])


def test_a_big_request_holds_back_what_is_behind_it_in_its_class_and_below():
    scheduler = make_scheduler(n_blocks=10, max_step_tokens=60)
    started(scheduler, make_sequence("a", 20))
    for name, n_prompt, priority in (("big", 30, 0), ("small", 1, 0), ("low", 1, 1)):
        scheduler.add(make_sequence(name, n_prompt, priority=priority, tenant=name))
    assert step(scheduler).admitted == ()
    scheduler.add(make_sequence("urgent", 1, priority=-1))
    assert ids(step(scheduler).admitted) == ["urgent"]


def test_the_expired_are_told_wherever_they_are_and_not_computed():
    scheduler = make_scheduler(max_running=1)
    running, waiting, later = [make_sequence(f"r{i}", 2, deadline_s=s) for i, s in enumerate((5.0, 4.0, 9.0))]
    for sequence in (running, waiting, later):
        scheduler.add(sequence)
    step(scheduler)
    assert scheduler.expired(3.9) == ()
    expired = scheduler.expired(5.0)
    assert expired == (waiting, running)
    for sequence in expired:
        scheduler.remove(sequence)
        scheduler.check_integrity()
    assert ids(run.sequence for run in step(scheduler).runs) == ["r2"]
    assert scheduler.expired(5.0) == ()


def test_tenants_share_by_tokens_not_by_requests():
    scheduler = make_scheduler(max_running=1, max_step_tokens=100)
    for i in range(60):
        scheduler.add(make_sequence(f"long-{i}", 6, max_tokens=5, tenant="long"))
        scheduler.add(make_sequence(f"short-{i}", 6, max_tokens=1, tenant="short"))
    order = []
    while len(order) < 60:
        order += [sequence.tenant for sequence in step(scheduler).admitted]
    assert order.count("short") == pytest.approx(60 * 16 / (16 + 8), abs=2), "an output token counts for two"


def test_waiting_sequences_are_counted_by_tenant():
    scheduler = make_scheduler(max_running=1)
    for i, tenant in enumerate(("a", "a", "b", None, "a")):
        scheduler.add(make_sequence(f"r{i}", 2, tenant=tenant))
    step(scheduler)
    assert scheduler.n_waiting_by_tenant() == {"a": 2, "b": 1, None: 1}


def test_damaged_books_are_noticed():
    scheduler = started(make_scheduler(), make_sequence("a", 9))
    (sequence,) = scheduler.running()
    sequence.blocks.pop()
    with pytest.raises(AssertionError, match="lost or doubled"):
        scheduler.check_integrity()


def test_it_needs_no_torch():
    code = "import sys, onebasis.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
