import time

import pytest

from onebasis.engine.waiting import WaitingQueue
from tests.engine.builders import make_sequence, make_task


def queue_of(*sequences):
    queue = WaitingQueue()
    for sequence in sequences:
        queue.add(sequence)
        queue.check_integrity()
    return queue


def drain(queue, cost=10):
    """Ids in the order of their turns, each charged."""
    found = []
    while priorities := queue.priorities():
        sequence = queue.head(priorities[0])
        queue.charge(sequence, cost)
        queue.remove(sequence)
        queue.check_integrity()
        found.append(sequence.request_id)
    return found


def named(names, **fields):
    return [make_sequence(name, 1, **fields) for name in names.split()]


def test_a_line_is_first_come_first_served():
    assert drain(queue_of(*named("a b c"))) == ["a", "b", "c"]


def test_the_more_urgent_class_goes_first():
    queue = queue_of(*named("low1 low2", priority=3), *named("high", priority=-1), *named("mid"))
    assert queue.priorities() == (-1, 0, 3)
    assert drain(queue) == ["high", "mid", "low1", "low2"]
    assert (len(queue), queue.priorities(), queue.head(0)) == (0, (), None)


def test_tenants_take_turns():
    queue = queue_of(*named("a1 a2 a3 a4", tenant="a"), *named("b1 b2", tenant="b"), *named("c1"))
    assert drain(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_tasks_of_a_tenant_take_turns_and_do_not_gain_it_any():
    many = [sequence for i in range(3) for sequence in named(f"a{i} a{i}x", tenant="a", task=make_task(f"t{i}"))]
    queue = queue_of(*many, *named("b1 b2 b3", tenant="b", task=make_task("t0")))
    assert drain(queue) == ["a0", "b1", "a1", "b2", "a2", "b3", "a0x", "a1x", "a2x"]


def test_a_replaced_task_shares_the_turns_of_its_name():
    old, new = make_task("t", 1), make_task("t", 2)
    queue = queue_of(*named("old1 old2", task=old), *named("new", task=new), *named("other", task=make_task("o")))
    assert drain(queue) == ["old1", "other", "old2", "new"]


def test_the_preempted_go_before_all_that_have_not_run():
    old, young = named("old young", tenant="b")
    queue = queue_of(*named("a1 a2", tenant="a"))
    queue.put_back(young)
    queue.put_back(old)
    queue.check_integrity()
    assert drain(queue) == ["old", "young", "a1", "a2"]


def test_anyone_can_leave_from_anywhere():
    first, middle, last = named("first middle last")
    (back,) = named("back")
    queue = queue_of(first, middle, last)
    queue.put_back(back)
    for sequence in (middle, back):
        queue.remove(sequence)
        queue.check_integrity()
    with pytest.raises(KeyError):
        queue.remove(middle)
    assert drain(queue) == ["first", "last"]


def test_the_tasks_that_somebody_waits_for_follow():
    queue = queue_of(*named("a1 a2", tenant="a", task=make_task("t")), *named("b", tenant="b"), *named("c", priority=1))
    for _ in range(2):
        assert queue.task_names() == ("t",)
        queue.remove(next(sequence for sequence in queue if sequence.tenant == "a"))
    assert queue.task_names() == ()


def test_a_turn_does_not_get_slower_with_the_crowd():
    """Two hundred times the sequences, tenants and tasks: a scan of them would take as many times as long."""

    def seconds_per_turn(n):
        sequences = [
            make_sequence(f"r{i}", 1, tenant=f"tenant-{i % (n // 10)}", task=make_task(f"task-{i % (n // 5)}"))
            for i in range(n)
        ]
        queue = queue_of_many(sequences)
        started_s = time.perf_counter()
        for sequence in [*sequences[n // 2 : n // 2 + 10], *sequences[-10:]]:
            queue.remove(sequence)
        for _ in range(30):
            sequence = queue.head(0)
            queue.charge(sequence, 5)
            queue.remove(sequence)
        return time.perf_counter() - started_s

    assert min(seconds_per_turn(12_000) for _ in range(3)) < 40 * min(seconds_per_turn(60) for _ in range(3))


def queue_of_many(sequences):
    queue = WaitingQueue()
    for sequence in sequences:
        queue.add(sequence)
    return queue
