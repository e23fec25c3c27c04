import copy
from dataclasses import replace

import pytest

from onebasis.core.request import FinishReason, SamplingParams
from tests.engine.engines import SAMPLED, Answer, answers_of, ask, build_engine
from tests.model.families import greedy_by_transformers
from tests.model.tasks import merged_copy, random_task


def mixed_crowd(world, *, n=9, max_tokens=14):
    """Requests of many tasks and none, greedy and sampled, of many lengths."""
    crowd = []
    for i in range(n):
        task = None if i % 4 == 3 else world.tasks[i % len(world.tasks)].resolved
        sampling = SAMPLED if i % 2 else SamplingParams(temperature=0.0)
        crowd.append(ask(f"r-{i}", 3 + 4 * (i % 5), task=task, sampling=sampling, max_tokens=max_tokens - i % 3))
    return crowd


def test_tokens_are_those_of_transformers_and_end_at_max_tokens(world):
    asked = [ask(f"r-{i}", n_prompt, max_tokens=10 + i) for i, n_prompt in enumerate((8, 1, 30, 17))]
    found = answers_of(world.engine(), asked)
    for (request, answer), token_ids in zip(asked, found, strict=True):
        assert token_ids == greedy_by_transformers(world.base.model, request.prompt_ids, request.max_tokens)
        assert answer.events[-1].finish is FinishReason.LENGTH


def test_a_stop_token_is_the_last_events_token(world):
    request, _ = ask("a", max_tokens=20)
    whole = greedy_by_transformers(world.base.model, request.prompt_ids, 20)
    n_until = next(i for i in range(5, 20) if whole[i] not in whole[:i])
    answer = Answer()
    stopping = replace(request, stop_token_ids=frozenset({whole[n_until], 1000}), sink=answer)
    assert answers_of(world.engine(), [(stopping, answer)]) == [whole[: n_until + 1]]
    assert answer.events[-1].finish is FinishReason.STOP
    assert answer.events[-1].token_id == whole[n_until]


def test_logprobs_travel_with_their_tokens(world):
    request, answer = ask("a", sampling=SamplingParams(temperature=0.0, n_logprobs=2), max_tokens=4)
    answers_of(world.engine(), [(request, answer)])
    for event in answer.events:
        assert event.logprobs is not None
        assert event.logprobs.top[0] == (event.token_id, event.logprobs.chosen)


def test_a_request_answers_the_same_alone_and_in_a_crowd(world):
    crowd = answers_of(world.engine(), mixed_crowd(world))
    for i, (request, answer) in enumerate(mixed_crowd(world)):
        assert answers_of(world.engine(), [(request, answer)]) == [crowd[i]]
    assert len({tuple(token_ids) for token_ids in crowd}) == len(crowd)


def test_each_task_answers_as_its_merged_model(world):
    asked = [ask(f"r-{i}", 5 + i, task=task.resolved, max_tokens=9) for i, task in enumerate(world.tasks[:3])]
    for i, token_ids in enumerate(answers_of(world.engine(), asked)):
        merged = merged_copy(world.base.model, world.basis, world.tasks[i])
        assert token_ids == greedy_by_transformers(merged, asked[i][0].prompt_ids, 9)


def test_preemption_changes_no_token(world):
    roomy, tight = world.engine(), world.engine(n_blocks=9)
    expected = answers_of(roomy, mixed_crowd(world))
    assert answers_of(tight, mixed_crowd(world)) == expected
    assert roomy.count("vllm:num_preemptions_total") == 0
    assert tight.count("vllm:num_preemptions_total") > 0


def test_more_tasks_than_slots_take_turns(world):
    def asked():
        requests = [
            ask(f"{round_}-{i}", 4 + i % 3, task=task.resolved, max_tokens=3 + i % 4, seed=i)
            for round_ in range(2)
            for i, task in enumerate(world.tasks)
        ]
        return [*requests, ask("bare", 5)]

    few = world.engine(max_running=3, n_slots=3)
    many = world.engine(max_running=3, n_slots=len(world.tasks))
    expected = answers_of(many, asked())
    assert answers_of(few, asked()) == expected
    assert expected[: len(world.tasks)] == expected[len(world.tasks) : -1], "the second round is the first again"
    assert few.arena.n_copied > len(world.tasks) == many.arena.n_copied
    for parts in (few, many):
        assert parts.count("onebasis_task_swap_seconds_count") == parts.arena.n_copied


def test_a_task_that_overflows_hurts_only_itself(world):
    """Its keys and values are NaN, and stay in blocks that others get next."""
    broken = random_task(world.basis.spec, 99, scale=1e30).resolved

    def asked(task):
        others = [ask(f"other-{i}", 3 + 5 * (i % 4), max_tokens=6 + i % 5) for i in range(8)]
        broken_ones = [ask(f"broken-{i}", 9, task=task, max_tokens=6) for i in range(4)]
        return [pair for i, other in enumerate(others) for pair in (*broken_ones[i : i + 1], other)]

    found = answers_of(world.engine(n_blocks=12), asked(broken))
    expected = answers_of(world.engine(n_blocks=12), asked(None))
    of_others = [i for i, (request, _) in enumerate(asked(None)) if request.request_id.startswith("other")]
    assert [found[i] for i in of_others] == [expected[i] for i in of_others]


def test_a_snapshot_counts_who_runs_and_who_waits(world):
    parts = world.engine(max_running=2)
    snapshots = []

    def take_one(_):
        if len(snapshots) < 1:
            snapshots.append(parts.engine.snapshot())

    asked = [
        ask(f"r-{i}", 4, max_tokens=6, task=task, answer=Answer(on_event=take_one))
        for i, task in enumerate([world.tasks[1].resolved, None, world.tasks[0].resolved, world.tasks[2].resolved])
    ]
    answers_of(parts, asked)
    (snapshot,) = snapshots
    assert (snapshot.n_running, snapshot.n_waiting) == (2, 2)
    assert snapshot.running_tasks == {"task-1": world.basis.spec.largest_k}
    assert snapshot.waiting_tasks == ("task-0", "task-2")
    assert snapshot.kv_usage == pytest.approx(2 / 100)
    assert (snapshot.n_resident_tasks, snapshot.max_resident_tasks) == (1, 2)


def test_a_server_without_a_basis_serves_the_base(world):
    parts = build_engine(copy.deepcopy(world.base))
    request, answer = ask("a", 9, max_tokens=12)
    (token_ids,) = answers_of(parts, [(request, answer)])
    assert token_ids == greedy_by_transformers(world.base.model, request.prompt_ids, 12)


def test_only_forward_passes_with_a_task_count_as_applied(world):
    parts = world.engine()
    answers_of(parts, [ask("bare", 4, max_tokens=3)])
    assert parts.count("onebasis_reconstruct_apply_seconds_count") == 0
    with_task = world.engine()
    answers_of(with_task, [ask("task", 4, max_tokens=3, task=world.tasks[0].resolved)])
    assert with_task.count("onebasis_reconstruct_apply_seconds_count") == 3
