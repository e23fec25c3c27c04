"""An engine whose thread stands still or vanishes: everybody is answered without it, once."""

import threading
import time

import pytest

from onebasis.core.errors import Draining, EngineStopped
from onebasis.core.request import FinishReason
from onebasis.engine.runner import Runner
from onebasis.engine.watchdog import Watchdog
from tests.engine.engines import WAIT_S, ask, running


class HangingRunner(Runner):
    """Its third step hangs until it is let go."""

    hangs = threading.Event()
    go_on = threading.Event()
    n_steps = 0

    def execute(self, plan):
        self.n_steps += 1
        if self.n_steps == 3:
            self.hangs.set()
            assert self.go_on.wait(WAIT_S)
        return super().execute(plan)


@pytest.fixture
def hanging():
    HangingRunner.hangs.clear()
    HangingRunner.go_on.clear()
    yield HangingRunner
    HangingRunner.go_on.set()


def test_a_stalled_step_ends_every_request_once_even_if_it_returns(world, hanging):
    parts = world.engine(runner_type=hanging, max_running=2, stall_s=0.3)
    asked = [ask(f"r-{i}", max_tokens=30, task=world.tasks[i].resolved) for i in range(4)]
    parts.engine.submit([request for request, _ in asked])
    with running(parts) as engine:
        for _, answer in asked:
            ending = answer.wait()
            assert isinstance(ending.error, EngineStopped)
            assert "no step has ended for 0.3 s" in str(ending.error)
        assert not engine.is_alive
        with pytest.raises(EngineStopped):
            engine.submit([ask("late")[0]])
        n_events = [len(answer.events) for _, answer in asked]
        hanging.go_on.set()
        engine.stop()
        assert [len(answer.events) for _, answer in asked] == n_events, "the step's news came after the ending"
    for _, answer in asked:
        answer.check()
    assert parts.count("vllm:request_success_total") == 4
    parts.check_all_is_free()


def test_steps_slower_than_the_watch_together_are_no_stall(world):
    class SlowRunner(Runner):
        def execute(self, plan):
            time.sleep(0.1)
            return super().execute(plan)

    parts = world.engine(runner_type=SlowRunner, stall_s=0.5)
    request, answer = ask("slow", max_tokens=8)
    parts.engine.submit([request])
    with running(parts):
        assert answer.wait().finish is FinishReason.LENGTH


def test_an_idle_engine_is_not_taken_for_a_stalled_one(world):
    parts = world.engine(stall_s=0.2)
    with running(parts) as engine:
        time.sleep(0.6)
        assert engine.is_alive
        request, answer = ask("a", max_tokens=2)
        engine.submit([request])
        assert answer.wait().finish is FinishReason.LENGTH


def test_everything_is_ended_at_once_without_waiting_for_the_step(world, hanging):
    parts = world.engine(runner_type=hanging, max_running=2)
    asked = [ask(f"r-{i}", max_tokens=30) for i in range(4)]
    parts.engine.submit([request for request, _ in asked])
    with running(parts) as engine:
        assert hanging.hangs.wait(WAIT_S)
        engine.end_all(Draining())
        assert {type(answer.events[-1].error) for _, answer in asked} == {Draining}
        with pytest.raises(Draining):
            engine.submit([ask("late")[0]])
        hanging.go_on.set()
    for _, answer in asked:
        answer.check()
    parts.check_all_is_free()


def watch(stall_s, **options):
    """(watchdog, its complaints) over a heart that does not beat."""
    complaints = []
    options = {"n_beats": lambda: 0, "is_running": lambda: True} | options
    watchdog = Watchdog(stall_s=stall_s, on_failure=complaints.append, **options)
    watchdog.start()
    return watchdog, complaints


def test_a_dead_thread_is_noticed_before_the_stall_time():
    _, complaints = watch(5.0, is_running=lambda: False)
    time.sleep(1.0)
    assert complaints == ["its thread has ended"]


def test_a_stopped_watchdog_complains_of_nothing():
    watchdog, complaints = watch(0.2)
    watchdog.stop()
    time.sleep(0.4)
    assert complaints == []
