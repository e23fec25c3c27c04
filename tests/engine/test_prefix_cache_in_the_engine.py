"""What a warm engine answers is what a cold one does."""

import random
import threading

import pytest

from onebasis.core.request import ResolvedTask, SamplingParams
from onebasis.engine.runner import Runner
from tests.engine.builders import SCORED, make_request
from tests.engine.engines import SAMPLED, Answer, answers_of, running
from tests.model.families import prompt

PROMPT = prompt(21, seed=77)


def cold(world, request_of):
    """The answer of an engine that has seen nothing."""
    answer = Answer()
    return answers_of(world.engine(prefix_cache=False), [(request_of(answer), answer)])[0]


def one_by_one(parts, requests_of):
    """Answers of one engine to one request after the other."""
    answers = []
    with running(parts) as engine:
        for request_of in requests_of:
            answer = Answer()
            engine.submit([request_of(answer)])
            answer.wait()
            answer.check()
            answers.append(answer)
    parts.check_all_is_free()
    return answers


def asking(name, task, prompt_ids=PROMPT, **fields):
    return lambda answer: make_request(name, prompt_ids, task=task, max_tokens=9, sink=answer, **fields)


def n_cached(answers):
    for answer in answers:
        assert len({event.n_cached_tokens for event in answer.events}) == 1
    return [answer.events[0].n_cached_tokens for answer in answers]


def test_a_replaced_task_answers_as_on_a_cold_server(world):
    old, new = world.tasks[0].resolved, ResolvedTask("task-0", world.tasks[1].resolved.coefficients)
    asked = [asking("old", old), asking("new", new), asking("new again", new), asking("rolled back", old)]
    answers = one_by_one(world.engine(), asked)
    assert [answer.token_ids for answer in answers] == [cold(world, request_of) for request_of in asked]
    assert answers[0].token_ids != answers[1].token_ids
    assert n_cached(answers) == [0, 0, 20, 20]


def test_base_and_tasks_do_not_see_each_others_blocks(world):
    a, b = (task.resolved for task in world.tasks[:2])
    asked = [asking(f"r-{i}", task) for i, task in enumerate((a, None, b, None, a, b))]
    answers = one_by_one(world.engine(), asked)
    assert [answer.token_ids for answer in answers] == [cold(world, request_of) for request_of in asked]
    assert n_cached(answers) == [0, 0, 0, 20, 20, 20]


def test_a_talk_goes_on_from_its_own_answer(world):
    parts = world.engine()
    task = world.tasks[2].resolved
    talk, found = PROMPT, []
    with running(parts) as engine:
        for turn in range(4):
            answer = Answer()
            engine.submit([asking(f"turn-{turn}", task, talk)(answer)])
            answer.wait()
            assert answer.token_ids == cold(world, asking("cold", task, talk))
            found.append(answer.events[-1].n_cached_tokens)
            talk = (*talk, *answer.token_ids, 5, 6)
    assert found == [0, 28, 40, 48]


def test_counts_of_the_cache_reach_the_metrics(world):
    parts = world.engine()
    one_by_one(parts, [asking("a", None), asking("b", None), asking("c", None, sampling=SCORED)])
    assert parts.count("vllm:prefix_cache_queries_total") == 42
    assert parts.count("vllm:prefix_cache_hits_total") == 20
    assert parts.count("vllm:gpu_prefix_cache_hits_total") == 20
    assert parts.count("vllm:prompt_tokens_cached_total") == 20


def test_without_the_cache_nothing_is_looked_up(world):
    parts = world.engine(prefix_cache=False)
    answers = one_by_one(parts, [asking("a", None), asking("b", None)])
    assert n_cached(answers) == [0, 0]
    assert parts.count("vllm:prefix_cache_queries_total") == 0


class FailsOnce(Runner):
    """Its second step fails after it has written to the KV cache: the blocks hold what nobody vouches for."""

    n_steps = 0

    def execute(self, plan):
        found = super().execute(plan)
        self.n_steps += 1
        if self.n_steps == 2:
            raise RuntimeError("out of luck")
        return found


def test_blocks_of_a_failed_step_are_not_found(world):
    answers = one_by_one(world.engine(runner_type=FailsOnce), [asking("a", None), asking("b", None)])
    assert n_cached(answers) == [0, 12], "of two steps of 12 tokens the first was done"
    assert answers[1].token_ids == cold(world, asking("b", None))


def crowd(world, seed):
    """Requests in a random order of arrival: few prefixes, many tails, tasks and none, greedy and sampled."""
    rng = random.Random(seed)
    prefixes = [prompt(16, seed=i) for i in range(3)]
    return [
        asking(
            f"r-{i}",
            rng.choice([None, *[task.resolved for task in world.tasks[:3]]]),
            rng.choice(prefixes)[: rng.choice((4, 9, 16))] + prompt(rng.choice((1, 3, 9)), seed=i % 4),
            sampling=rng.choice([SAMPLED, SamplingParams(temperature=0.0)]),
            tenant=rng.choice(("a", "b", None)),
            priority=rng.choice((0, 0, 1)),
        )
        for i in range(32)
    ]


@pytest.mark.parametrize(("n_blocks", "seed"), [(100, 0), (10, 1)])
def test_tokens_are_the_same_with_and_without_the_cache_whatever_arrives_when(world, n_blocks, seed):
    def answered(parts, *, n_clients):
        requests_of, answers = crowd(world, seed), [Answer() for _ in range(32)]

        def client(which):
            for i in range(which, 32, n_clients):
                engine.submit([requests_of[i](answers[i])])
                answers[i].wait()

        with running(parts) as engine:
            threads = [threading.Thread(target=client, args=(which,)) for which in range(n_clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for answer in answers:
            answer.check()
        parts.check_all_is_free()
        return [answer.token_ids for answer in answers], sum(n_cached(answers))

    expected, none = answered(world.engine(prefix_cache=False), n_clients=1)
    for n_clients in (1, 6):
        found, n_found = answered(world.engine(n_blocks=n_blocks, max_prefill_tokens=6), n_clients=n_clients)
        assert found == expected
        assert n_found > 20
    assert none == 0
