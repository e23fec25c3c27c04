import random
import threading
import time
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest

from onebasis.core.errors import EngineStopped, QueueFull
from onebasis.core.ids import digest_of
from onebasis.core.request import FinishReason, ResolvedTask, SamplingParams
from onebasis.engine.runner import Runner
from tests.engine.engines import SAMPLED, WAIT_S, Answer, answers_of, ask, running


def test_an_abort_ends_a_request_before_its_next_token(world):
    parts = world.engine()

    def abort_after_three(event):
        if event.finish is None and len(answer.events) == 3:
            parts.engine.abort("a")

    answer = Answer(on_event=abort_after_three)
    request, _ = ask("a", answer=answer, max_tokens=50, task=world.tasks[0].resolved)
    parts.engine.submit([request])
    with running(parts):
        answer.wait()
    answer.check()
    assert [event.finish for event in answer.events] == [None, None, None, FinishReason.ABORT]
    assert answer.events[-1].token_id is None
    parts.check_all_is_free()


def test_an_abort_reaches_requests_that_wait_and_ignores_strangers(world):
    parts = world.engine(max_running=1)
    (first, first_answer), (second, second_answer) = ask("first", max_tokens=5), ask("second")
    parts.engine.submit([first, second])
    parts.engine.abort("second")
    parts.engine.abort("nobody")
    with running(parts):
        first_answer.wait()
        second_answer.wait()
    assert second_answer.token_ids == []
    assert [event.finish for event in second_answer.events] == [FinishReason.ABORT]
    assert first_answer.events[-1].finish is FinishReason.LENGTH
    assert parts.count("vllm:request_success_total") == 2


def test_a_preempted_request_can_be_aborted_while_it_waits(world):
    parts = world.engine(n_blocks=6)

    def abort_when_preempted(event):
        if "young" not in [sequence.request_id for sequence in parts.scheduler.running()] and young_answer.events:
            parts.engine.abort("young")

    old, old_answer = ask(
        "old", 7, max_tokens=16, task=world.tasks[0].resolved, answer=Answer(on_event=abort_when_preempted)
    )
    young, young_answer = ask("young", 5, max_tokens=16, task=world.tasks[0].resolved)
    parts.engine.submit([old, young])
    with running(parts):
        assert young_answer.wait().finish is FinishReason.ABORT
        assert old_answer.wait().finish is FinishReason.LENGTH
    assert parts.count("vllm:num_preemptions_total") == 1
    assert len(young_answer.token_ids) > 1
    parts.check_all_is_free()


def test_an_idle_engine_wakes_for_a_request(world):
    parts = world.engine()
    with running(parts) as engine:
        for i in range(3):
            request, answer = ask(f"r-{i}", max_tokens=2)
            engine.submit([request])
            answer.wait()
    parts.check_all_is_free()


def test_every_accepted_request_of_a_storm_has_one_ending(world):
    parts = world.engine(n_blocks=14, max_running=5, n_slots=5, max_waiting=7)
    answers, refused, lock = {}, [], threading.Lock()

    def submit_many(who):
        rng = random.Random(who)
        for i in range(30):
            name = f"{who}-{i}"
            task = rng.choice([None, *[task.resolved for task in world.tasks]])
            sampling = rng.choice([SAMPLED, SamplingParams(temperature=0.0)])
            pair = [
                ask(f"{name}-{j}", rng.randint(1, 12), task=task, sampling=sampling, max_tokens=rng.randint(1, 9))
                for j in range(rng.randint(1, 2))
            ]
            try:
                parts.engine.submit([request for request, _ in pair])
            except QueueFull:
                refused.append(name)
                time.sleep(0.01)
                continue
            with lock:
                answers.update({request.request_id: answer for request, answer in pair})
            if rng.random() < 0.3:
                parts.engine.abort(pair[0][0].request_id)

    def abort_some():
        rng = random.Random(0)
        for _ in range(60):
            with lock:
                names = list(answers)
            if names:
                parts.engine.abort(rng.choice(names[-6:]))
            parts.engine.snapshot()
            time.sleep(0.002)

    threads = [threading.Thread(target=submit_many, args=(who,)) for who in range(3)]
    threads.append(threading.Thread(target=abort_some))
    with running(parts):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers.values():
            answer.wait()
    for answer in answers.values():
        answer.check()
        assert answer.events[-1].finish is not FinishReason.ERROR
    assert len(answers) > 20
    assert parts.count("vllm:request_success_total") == len(answers)
    parts.check_all_is_free()


def test_a_full_queue_refuses_all_of_a_submit_or_none(world):
    parts = world.engine(max_running=1, max_waiting=2)
    asked = [ask(f"r-{i}", max_tokens=2) for i in range(5)]
    parts.engine.submit([request for request, _ in asked[:2]])
    with pytest.raises(QueueFull, match="3"):
        parts.engine.submit([request for request, _ in asked[2:4]])
    parts.engine.submit([asked[4][0]])
    with running(parts) as engine:
        for i in (0, 1, 4):
            asked[i][1].wait()
        engine.submit([request for request, _ in asked[2:4]])
        for _, answer in asked:
            answer.wait()
    for _, answer in asked:
        answer.check()


class FailingRunner(Runner):
    """Fails every step that has a sequence whose id begins with "bad"."""

    def execute(self, plan):
        if any(run.sequence.request_id.startswith("bad") for run in plan.runs):
            raise RuntimeError("out of luck")
        return super().execute(plan)


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(world):
    parts = world.engine(runner_type=FailingRunner, max_running=2)
    asked = [ask(name, task=world.tasks[i].resolved) for i, name in enumerate(("bad", "beside", "later", "last"))]
    parts.engine.submit([request for request, _ in asked])
    with running(parts) as engine:
        endings = {request.request_id: answer.wait() for request, answer in asked}
        assert engine.is_alive
    assert {name for name, ending in endings.items() if ending.finish is FinishReason.ERROR} == {"bad", "beside"}
    assert str(endings["bad"].error) == "out of luck"
    alone = answers_of(world.engine(), [ask("later", task=world.tasks[2].resolved)])
    assert [asked[2][1].token_ids] == alone
    for _, answer in asked:
        answer.check()
    parts.check_all_is_free()


@dataclass(frozen=True)
class UnreadableCoefficients:
    """The store's bytes are gone when the engine asks for the cores."""

    digest = digest_of(b"unreadable")
    residual = MappingProxyType({})
    rank = 4

    def flat_cores(self) -> np.ndarray:
        raise OSError("the disk is gone")


def test_a_task_that_can_not_be_copied_in_is_an_error_and_pins_nothing(world):
    parts = world.engine()
    bad, bad_answer = ask("bad", task=ResolvedTask("unreadable", UnreadableCoefficients()))
    good, good_answer = ask("good", task=world.tasks[0].resolved, max_tokens=3)
    with running(parts) as engine:
        engine.submit([bad])
        assert isinstance(bad_answer.wait().error, OSError)
        engine.submit([good])
        assert good_answer.wait().finish is FinishReason.LENGTH
    assert bad_answer.token_ids == []
    parts.check_all_is_free()


def test_stop_ends_what_is_in_flight_and_refuses_what_comes(world):
    parts = world.engine(max_running=2)
    first_token = threading.Event()
    asked = [ask(f"r-{i}", max_tokens=300, answer=Answer(on_event=lambda _: first_token.set())) for i in range(5)]
    with running(parts) as engine:
        engine.submit([request for request, _ in asked])
        assert first_token.wait(WAIT_S)
        assert engine.is_alive
    assert not parts.engine.is_alive
    for _, answer in asked:
        answer.check()
        assert answer.events[-1].finish is FinishReason.ERROR
        assert isinstance(answer.events[-1].error, EngineStopped)
    with pytest.raises(EngineStopped):
        parts.engine.submit([ask("late")[0]])
    parts.engine.abort("r-0")
    parts.engine.stop()
    assert all(len([event for event in answer.events if event.finish]) == 1 for _, answer in asked)
    parts.check_all_is_free()


class PausedRunner(Runner):
    """Its first step waits until it is let go."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def execute(self, plan):
        self.reached.set()
        assert self.go_on.wait(WAIT_S)
        return super().execute(plan)


def test_requests_that_come_behind_a_stop_are_answered_and_counted(world):
    runners = []

    class Kept(PausedRunner):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            runners.append(self)

    parts = world.engine(runner_type=Kept)
    (early, early_answer), (late, late_answer) = ask("early", max_tokens=90), ask("late", max_tokens=90)
    parts.engine.submit([early])
    parts.engine.start()
    assert runners[0].reached.wait(WAIT_S)
    stopping = threading.Thread(target=parts.engine.stop)
    stopping.start()
    time.sleep(0.1)  # until the stop is in the inbox, before the engine can read it
    parts.engine.submit([late])
    runners[0].go_on.set()
    stopping.join()
    for answer in (early_answer, late_answer):
        answer.check()
        assert isinstance(answer.wait().error, EngineStopped)
    assert parts.count("vllm:request_success_total") == 2, "each ending is counted"
    parts.check_all_is_free()


def test_submits_that_race_with_a_stop_are_refused_or_answered(world):
    for attempt in range(5):
        parts = world.engine()
        accepted = []

        def submit_until_refused(who, parts=parts, accepted=accepted):
            for i in range(10_000):
                request, answer = ask(f"{who}-{i}", 2, max_tokens=2)
                try:
                    parts.engine.submit([request])
                except QueueFull:
                    time.sleep(0.001)
                    continue
                except EngineStopped:
                    return
                accepted.append(answer)

        threads = [threading.Thread(target=submit_until_refused, args=(who,)) for who in range(3)]
        with running(parts):
            for thread in threads:
                thread.start()
            time.sleep(0.02 * attempt)
        for thread in threads:
            thread.join(WAIT_S)
        for answer in accepted:
            answer.check()
        parts.check_all_is_free()


def test_an_engine_that_breaks_answers_everybody(world, monkeypatch):
    parts = world.engine(max_running=2)
    asked = [ask(f"r-{i}", max_tokens=40, task=world.tasks[i].resolved) for i in range(4)]
    parts.engine.submit([request for request, _ in asked])
    commit = parts.scheduler.commit
    n_steps = iter(range(100))

    def commit_until_it_breaks(plan):
        commit(plan)
        if next(n_steps) == 5:
            raise AssertionError("a bug of ours")

    monkeypatch.setattr(parts.scheduler, "commit", commit_until_it_breaks)
    with running(parts) as engine:
        for _, answer in asked:
            assert isinstance(answer.wait().error, EngineStopped)
        for _ in range(100):
            if not engine.is_alive:
                break
            time.sleep(0.01)
        assert not engine.is_alive
        with pytest.raises(EngineStopped):
            engine.submit([ask("late")[0]])
    for _, answer in asked:
        answer.check()
    parts.check_all_is_free()
