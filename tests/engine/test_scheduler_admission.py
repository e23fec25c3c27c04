"""Who is admitted next: order, room, urgency, tenants."""

import pytest

from tests.engine.builders import make_sequence
from tests.engine.scheduling import ids, make_scheduler, spans, started, step


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


def test_a_big_request_holds_back_what_is_behind_it_in_its_class_and_below():
    scheduler = make_scheduler(n_blocks=10, max_step_tokens=60)
    started(scheduler, make_sequence("a", 20))
    for name, n_prompt, priority in (("big", 30, 0), ("small", 1, 0), ("low", 1, 1)):
        scheduler.add(make_sequence(name, n_prompt, priority=priority, tenant=name))
    assert step(scheduler).admitted == ()
    scheduler.add(make_sequence("urgent", 1, priority=-1))
    assert ids(step(scheduler).admitted) == ["urgent"]


def test_tenants_share_by_tokens_not_by_requests():
    scheduler = make_scheduler(max_running=1, max_step_tokens=100)
    for i in range(60):
        scheduler.add(make_sequence(f"long-{i}", 6, max_tokens=5, tenant="long"))
        scheduler.add(make_sequence(f"short-{i}", 6, max_tokens=1, tenant="short"))
    order = []
    while len(order) < 60:
        order += [sequence.tenant for sequence in step(scheduler).admitted]
    assert order.count("short") == pytest.approx(60 * 16 / (16 + 8), abs=2), "an output token counts for two"
