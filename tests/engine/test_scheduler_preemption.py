"""Who gives way when blocks or places run out, and how it comes back."""

from tests.engine.builders import make_sequence
from tests.engine.scheduling import ids, make_scheduler, spans, started, step


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
