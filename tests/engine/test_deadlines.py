from onebasis.engine.deadlines import Deadlines
from tests.engine.builders import make_sequence


def watched(*deadlines_s):
    deadlines = Deadlines()
    sequences = [make_sequence(f"r{i}", 1, deadline_s=deadline_s) for i, deadline_s in enumerate(deadlines_s)]
    for sequence in sequences:
        deadlines.add(sequence)
    return deadlines, sequences


def test_each_is_told_once_when_its_time_has_come():
    deadlines, (late, early, never, soon) = watched(9.0, 1.0, None, 5.0)
    assert deadlines.passed(0.9) == ()
    assert deadlines.passed(1.0) == (early,)
    assert deadlines.passed(9.0) == (soon, late)
    assert deadlines.passed(1e9) == ()
    assert never.request.deadline_s is None


def test_one_that_has_ended_is_not_told():
    deadlines, (first, second) = watched(1.0, 2.0)
    deadlines.remove(first)
    assert deadlines.passed(3.0) == (second,)


def test_an_id_that_is_used_again_has_the_new_deadline():
    deadlines, (first,) = watched(1.0)
    deadlines.remove(first)
    again = make_sequence("r0", 1, deadline_s=5.0)
    deadlines.add(again)
    assert deadlines.passed(2.0) == ()
    assert deadlines.passed(5.0) == (again,)


def test_ended_ones_do_not_pile_up_until_a_far_deadline():
    deadlines, sequences = watched(*[1e6] * 5000)
    for sequence in sequences[10:]:
        deadlines.remove(sequence)
    assert len(deadlines) == 10
    assert len(deadlines._heap) < 100
    assert len(deadlines.passed(1e6)) == 10
