import pytest

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.prefix_cache import PrefixCache
from onebasis.engine.scheduler import Scheduler
from tests.engine.builders import SCORED, make_sequence, make_task

TOKEN = 7


def make_scheduler(*, n_blocks=40, max_running=4, max_step_tokens=64, base="base", basis="basis"):
    pool = BlockPool(n_blocks, 4)
    return Scheduler(
        pool,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        prefix_cache=PrefixCache(pool, base=base, basis=basis),
    )


def step(scheduler):
    plan = scheduler.plan()
    scheduler.check_integrity()
    sampling = [run.sequence for run in plan.runs if run.samples]
    scheduler.commit(plan)
    for sequence in sampling:
        if sequence.append(TOKEN) is not None:
            scheduler.remove(sequence)
    scheduler.check_integrity()
    return plan


def answer(scheduler, request_id, prompt, **fields):
    """Run one request to its end; the sequence."""
    sequence = make_sequence(request_id, prompt, **fields)
    scheduler.add(sequence)
    while scheduler.n_running or scheduler.n_waiting:
        step(scheduler)
    return sequence


def test_a_prompt_that_begins_like_another_starts_behind_what_they_share():
    scheduler = make_scheduler()
    assert answer(scheduler, "a", (1, 2, 3, 4, 5, 6, 7, 8, 9)).n_cached_tokens == 0
    scheduler.add(make_sequence("b", (1, 2, 3, 4, 5, 6, 7, 8, 50, 51)))
    (run,) = step(scheduler).runs
    assert (run.start, run.end, run.sequence.n_cached_tokens) == (8, 10, 8)
    assert answer(scheduler, "c", (1, 2, 3, 4, 9, 9, 9, 9, 9)).n_cached_tokens == 4
    assert answer(scheduler, "d", (9, 1, 2, 3, 4, 5, 6, 7, 8)).n_cached_tokens == 0, "the same tokens elsewhere"


@pytest.mark.parametrize(("n_prompt", "n_cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_the_last_token_is_always_computed(n_prompt, n_cached):
    scheduler = make_scheduler()
    answer(scheduler, "a", n_prompt, max_tokens=1)
    assert answer(scheduler, "b", n_prompt, max_tokens=1).n_cached_tokens == n_cached


def test_an_answer_is_found_by_the_next_turn_of_the_talk():
    scheduler = make_scheduler()
    first = answer(scheduler, "a", (1, 2, 3), max_tokens=7)
    talk = (*first.request.prompt_ids, *first.output_ids, 4, 5)
    assert answer(scheduler, "b", talk).n_cached_tokens == 8, "of 12, the last sampled token was never computed"


def test_tokens_are_found_only_when_they_are_computed():
    scheduler = make_scheduler(max_step_tokens=8)
    first, second = make_sequence("a", 16), make_sequence("b", 16)
    scheduler.add(first)
    plan = scheduler.plan()
    scheduler.add(second)
    scheduler.remove(first)  # the step failed: it is not committed
    assert [(run.start, run.end) for run in scheduler.plan().runs] == [(0, 8)]
    assert plan.runs[0].end == 8


def test_two_that_run_at_once_share_blocks():
    scheduler = make_scheduler()
    first = make_sequence("a", 16, max_tokens=30)
    scheduler.add(first)
    step(scheduler)
    second = make_sequence("b", 18, max_tokens=30)
    scheduler.add(second)
    plan = step(scheduler)
    assert (plan.n_prefix_queries, plan.n_prefix_hits) == (18, 16)
    assert second.blocks[:4] == first.blocks[:4]
    assert second.blocks[4] not in first.blocks
    assert scheduler.kv_usage == pytest.approx(6 / 40)
    scheduler.remove(first)
    scheduler.check_integrity()
    assert scheduler.kv_usage == pytest.approx(5 / 40)


def test_each_identity_has_its_own_blocks():
    scheduler = make_scheduler()
    old, new, other = make_task("t", 1), make_task("t", 2), make_task("other")
    for i, task in enumerate((None, old, other)):
        assert answer(scheduler, f"cold-{i}", 12, task=task).n_cached_tokens == 0
    assert answer(scheduler, "replaced", 12, task=new).n_cached_tokens == 0
    for i, task in enumerate((None, old, new, other)):
        assert answer(scheduler, f"warm-{i}", 12, task=task).n_cached_tokens == 8
    rolled_back = make_task("t", 1)
    assert answer(scheduler, "rolled-back", 12, task=rolled_back).n_cached_tokens == 8
    alias = make_task("t", 1)
    renamed = type(alias)("another-name", alias.coefficients)
    assert answer(scheduler, "renamed", 12, task=renamed).n_cached_tokens == 8, "the digest counts, not the name"


def test_who_needs_the_logits_of_the_prompt_computes_it_and_fills_the_cache():
    scheduler = make_scheduler()
    answer(scheduler, "a", 8)
    scheduler.add(make_sequence("b", 16, sampling=SCORED))
    plan = step(scheduler)
    assert [(run.start, run.end) for run in plan.runs] == [(0, 16)]
    assert plan.n_prefix_queries == 0
    assert answer(scheduler, "c", 16).n_cached_tokens == 12


def test_a_preempted_sequence_finds_what_it_had():
    scheduler = make_scheduler(n_blocks=12, max_running=2)
    scheduler.add(make_sequence("old", 8, max_tokens=9))
    scheduler.add(make_sequence("young", tuple(range(500, 509)), max_tokens=4))
    urgent = make_sequence("urgent", tuple(range(20)), max_tokens=1, priority=-1)
    step(scheduler)
    scheduler.add(urgent)
    plan = step(scheduler)
    assert [s.request_id for s in plan.preempted] == ["young"]
    starts = {}
    while scheduler.n_running or scheduler.n_waiting:
        for run in step(scheduler).runs:
            starts.setdefault(run.sequence.request_id, run.start)
    assert starts["young"] == 8


def test_under_pressure_the_longest_unused_prefix_goes():
    scheduler = make_scheduler(n_blocks=7)
    for name, first in (("a", 100), ("b", 200), ("c", 300)):
        answer(scheduler, name, tuple(range(first, first + 9)), max_tokens=3)
    answer(scheduler, "a again", tuple(range(100, 109)), max_tokens=1)
    answer(scheduler, "d", tuple(range(400, 409)), max_tokens=3)
    found = [
        answer(scheduler, f"{first} last", tuple(range(first, first + 9)), max_tokens=1).n_cached_tokens
        for first in (400, 100, 300, 200)
    ]
    assert found == [8, 8, 8, 0]


def test_cached_blocks_count_as_free_at_admission():
    scheduler = make_scheduler(n_blocks=8)
    answer(scheduler, "a", 24)
    scheduler.add(make_sequence("b", tuple(range(900, 930)), max_tokens=2))
    assert [s.request_id for s in step(scheduler).admitted] == ["b"], "all 8 blocks, whatever was in them"


def test_a_shared_prefix_needs_no_blocks_of_its_own():
    scheduler = make_scheduler(n_blocks=8)
    scheduler.add(make_sequence("a", 20, max_tokens=3))
    step(scheduler)
    scheduler.add(make_sequence("alike", 21, max_tokens=2))
    assert [s.request_id for s in step(scheduler).admitted] == ["alike"], "6 blocks, 3 free, 5 shared"


def test_an_urgent_sequence_counts_blocks_that_others_share_once_before_it_preempts():
    scheduler = make_scheduler(n_blocks=20, max_running=8)
    prompt = tuple(range(1, 41))  # ten blocks, that all share
    scheduler.add(make_sequence("mine", 4, max_tokens=30))
    scheduler.add(make_sequence("low0", prompt, priority=1, max_tokens=30))
    step(scheduler)
    for number in (1, 2):
        scheduler.add(make_sequence(f"low{number}", (*prompt, number), priority=1, max_tokens=30))
    step(scheduler)
    assert scheduler.n_running == 4
    scheduler.add(make_sequence("urgent", tuple(range(200, 280))))  # 20 blocks and one to spare: more than there are
    assert not step(scheduler).preempted
    scheduler.remove(scheduler.running()[0])
    plan = step(scheduler)
    assert [sequence.request_id for sequence in plan.admitted] == ["urgent"]
    assert len(plan.preempted) == 3
