"""What a step computes: chunks of prompts, decodes, the blocks they take; who expired; damaged books."""

import subprocess
import sys

import pytest

from tests.engine.builders import make_sequence
from tests.engine.scheduling import finish_step, ids, make_scheduler, spans, started, step


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


def test_damaged_books_are_noticed():
    scheduler = started(make_scheduler(), make_sequence("a", 9))
    (sequence,) = scheduler.running()
    sequence.blocks.pop()
    with pytest.raises(AssertionError, match="lost or doubled"):
        scheduler.check_integrity()


def test_it_needs_no_torch():
    code = "import sys, onebasis.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
