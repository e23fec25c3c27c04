import time

import pytest

from onebasis.core.errors import DeadlineExceeded, InvalidParameter
from onebasis.core.request import FinishReason
from onebasis.engine.interface import EngineLimits
from tests.engine.engines import Answer, answers_of, ask, running


def test_a_running_request_ends_within_a_step_of_its_deadline(world):
    parts = world.engine()

    def let_time_pass(event):
        if len(answer.events) == 3:
            time.sleep(max(0.0, deadline_s - time.monotonic()) + 0.01)

    deadline_s = time.monotonic() + 0.5
    answer = Answer(on_event=let_time_pass)
    late, _ = ask("late", max_tokens=300, answer=answer, deadline_s=deadline_s, task=world.tasks[0].resolved)
    other, other_answer = ask("other", max_tokens=20)
    parts.engine.submit([late, other])
    with running(parts):
        error = answer.wait().error
        assert other_answer.wait().finish is FinishReason.LENGTH
    assert isinstance(error, DeadlineExceeded)
    assert "3 of at most 300 tokens" in str(error)
    assert len(answer.token_ids) == 3
    answer.check()
    assert [other_answer.token_ids] == answers_of(world.engine(), [ask("other", max_tokens=20)])
    parts.check_all_is_free()


def test_a_waiting_request_ends_at_its_deadline_and_never_runs(world):
    parts = world.engine(max_running=1)
    first, first_answer = ask("first", max_tokens=200)
    second, second_answer = ask("second", deadline_s=time.monotonic() + 0.02)
    parts.engine.submit([first, second])
    with running(parts):
        assert isinstance(second_answer.wait().error, DeadlineExceeded)
        assert first_answer.wait().finish is FinishReason.LENGTH
    assert second_answer.token_ids == []
    assert parts.count("vllm:request_queue_time_seconds_count") == 1
    parts.check_all_is_free()


def test_a_deadline_that_is_not_reached_changes_nothing(world):
    plain = answers_of(world.engine(), [ask("a", max_tokens=6)])
    assert answers_of(world.engine(), [ask("a", max_tokens=6, deadline_s=time.monotonic() + 60)]) == plain


@pytest.mark.parametrize(
    ("default_s", "max_s", "asked_s", "expected_s"),
    [(None, None, None, None), (None, None, 7, 7), (5, None, None, 5), (5, 9, 7, 7), (None, 9, None, 9), (5, 9, 9, 9)],
)
def test_the_time_of_a_request(default_s, max_s, asked_s, expected_s):
    limits = EngineLimits(10, 10, 10, 10, default_timeout_s=default_s, max_timeout_s=max_s)
    assert limits.timeout_s(asked_s) == expected_s


def test_more_time_than_the_server_allows_is_refused_by_name():
    with pytest.raises(InvalidParameter, match=r"timeout: is 9.5 s, this server allows 9 s"):
        EngineLimits(10, 10, 10, 10, max_timeout_s=9).timeout_s(9.5)
